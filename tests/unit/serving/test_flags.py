"""Bittensor's flags become overrides that Hydra reads back as the same values."""

from __future__ import annotations

from pathlib import Path

import hydra
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from hfa.errors import HFAError
from hfa.serving.flags import translate

CONF = Path(__file__).parents[3] / "conf"


def test_an_operator_s_command_line_composes():
    typed = (
        "--wallet.name hfa_silx --wallet.hotkey=hfa_silx_hot --wallet.path ~/w --subtensor.network test --netuid 439 "
        "--axon.port 8092 --axon.external_ip 203.0.113.5 --axon.external_port=80 --logging.debug "
        "--blacklist.force_validator_permit model=simplemind engine.device=cpu"
    )
    words = typed.split()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("mine", translate(words), return_hydra_config=True)
    assert (config.wallet.name, config.wallet.hotkey, config.wallet.path) == ("hfa_silx", "hfa_silx_hot", "~/w")
    assert (config.network.name, config.network.netuid, config.network.external_ip) == ("test", 439, "203.0.113.5")
    assert (config.server.port, config.network.external_port) == (8092, 80)
    assert (config.default, config.engine.device) == ("simplemind", "cpu")
    assert config.network.require_validator_permit is True
    assert config.hydra.job_logging.loggers.hfa.level == "DEBUG"


def test_both_spellings_are_the_same():
    assert translate(["--netuid", "1"]) == translate(["--netuid=1"]) == ["network.netuid=1"]


def test_overrides_and_hydra_s_own_flags_are_left_alone():
    words = ["--help", "--cfg", "job", "--info=all", "-c", "job", "network=local", "+a=1", "~b", "server.port=0"]
    assert translate(words) == words


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--subtensor.network", "finney"], ["network=finney"]),
        (["--subtensor.network", "ws://127.0.0.1:9944"], ["network=test", "network.chain='ws://127.0.0.1:9944'"]),
        (["--subtensor.chain_endpoint", "ws://[::1]:9944"], ["network=test", "network.chain='ws://[::1]:9944'"]),
        (
            ["--subtensor.network=local", "--subtensor.chain_endpoint", "ws://127.0.0.1:9944"],
            ["network=test", "network.chain='ws://127.0.0.1:9944'"],
        ),
        (["network=finney", "--subtensor.chain_endpoint", "ws://x"], ["network=finney", "network.chain='ws://x'"]),
    ],
)
def test_an_endpoint_goes_to_a_network_that_has_a_chain(words, expected):
    assert translate(words) == expected


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--wallet.nam", "x"], "--wallet.nam: no such flag; did you mean --wallet.name?"),
        (["--neuron.full_path"], "--neuron.full_path: no such flag; `python mine.py --help` lists them."),
        (["--netuid"], "--netuid: no value was given; write --netuid VALUE."),
        (["--netuid", "--wallet.name", "x"], "--netuid: no value was given; write --netuid VALUE."),
        (["--logging.debug=1"], "--logging.debug=1: no such flag; did you mean --logging.debug?"),
    ],
)
def test_what_cannot_be_translated_is_one_sentence(words, sentence):
    with pytest.raises(HFAError) as refused:
        translate(words)
    assert str(refused.value) == sentence


@given(st.text(st.characters(codec="utf-8", exclude_characters="$\r\n"), min_size=1).filter(lambda s: s[:2] != "--"))
def test_any_text_arrives_as_it_was_typed(value):
    """Quotes, backslashes, braces and spaces are no syntax in a flag's value, and a name of digits is a name."""
    (override,) = translate(["--wallet.name", value])
    parsed = OverridesParser.create().parse_override(override)
    assert parsed.key_or_group == "wallet.name"
    read = parsed.value()
    assert str(getattr(read, "text", read)) == value
    assert not isinstance(read, int | float | bool | None)


@pytest.mark.parametrize("value", ["12", "0"])
def test_numbers_are_numbers_where_one_is_meant(value):
    (override,) = translate(["--netuid", value])
    assert OverridesParser.create().parse_override(override).value() == int(value)


def test_the_help_names_every_flag_and_network():
    text = (CONF / "hydra" / "help" / "miner.yaml").read_text()
    for flag in ("--wallet.name", "--subtensor.chain_endpoint", "--netuid", "--axon.external_port", "--logging.trace"):
        assert flag in text
    for network in (CONF / "network").glob("*.yaml"):
        assert network.stem in text
