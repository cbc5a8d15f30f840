"""The flags that Bittensor users type, as the overrides that Hydra takes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from hfa.errors import HFAError

# flag: the key it sets
_VALUES = {
    "--wallet.name": "wallet.name",
    "--wallet.hotkey": "wallet.hotkey",
    "--wallet.path": "wallet.path",
    "--subtensor.network": "network",
    "--subtensor.chain_endpoint": "network.chain",
    "--netuid": "network.netuid",
    "--axon.ip": "server.host",
    "--axon.port": "server.port",
    "--axon.external_ip": "network.external_ip",
    "--axon.external_port": "network.external_port",
    "--logging.logging_dir": "hydra.run.dir",
}
_NUMBERS = {"network.netuid", "network.external_port", "server.port"}
_NUMBER = re.compile(r"0|[1-9][0-9]*")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_WORDS_WITH_A_MEANING = {"true", "false", "null", "nan", "inf"}
_MODEL = "model="  # a group of train.py's: here the word chooses the default among trained models
_SWITCHES = {
    "--logging.debug": "hydra.job_logging.loggers.hfa.level=DEBUG",
    "--logging.trace": "hydra.verbose=true",
    "--logging.info": "hydra.job_logging.loggers.hfa.level=INFO",
    "--logging.json": "hydra/job_logging=miner_json",
    "--blacklist.force_validator_permit": "network.require_validator_permit=true",
}
_HYDRA = {
    "--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--info", "--config-dir",
    "--config-name", "--config-path", "--shell-completion",
}  # fmt: skip
_CHAIN = "test"  # the network whose YAML takes any endpoint


def translate(arguments: Sequence[str]) -> list[str]:
    """A command line with its Bittensor flags replaced.

        model=hfa --wallet.name me --netuid=439  ->  default=hfa wallet.name=me network.netuid=439

    Args:
        arguments: without the program's name; overrides and Hydra's own flags stay as they are.

    Raises:
        HFAError: a flag that is unknown, or whose value is missing.
    """
    translated: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        flag, given, value = word.partition("=")
        if word.startswith(_MODEL):
            translated.append(f"default={value}")
        elif not word.startswith("--") or flag in _HYDRA:
            translated.append(word)
        elif flag in _SWITCHES and not given:
            translated.append(_SWITCHES[flag])
        elif flag in _VALUES:
            if not given:
                if not rest or rest[0].startswith("--"):
                    raise HFAError(f"{flag}: no value was given; write {flag} VALUE.")
                value = rest.pop(0)
            key = _VALUES[flag]
            translated.append(f"{key}={value if key in _NUMBERS and _NUMBER.fullmatch(value) else _quoted(value)}")
        else:
            raise HFAError(f"{word}: no such flag; {_closest(flag)}")
    return _with_chain(translated)


def _with_chain(overrides: list[str]) -> list[str]:
    """An endpoint given as a network, or without a network that has a chain, belongs to one that has."""
    named = [word for word in overrides if word.startswith("network=")]
    for word in named:
        value = word.removeprefix("network=")
        if "://" in value:
            overrides = [f"network.chain={value}" if other is word else other for other in overrides]
            named.remove(word)
    has_chain = any(word.startswith("network.chain=") for word in overrides)
    if has_chain and not any(word in ("network=test", "network=finney") for word in named):
        overrides = [f"network={_CHAIN}", *(word for word in overrides if word != "network=local")]
    return overrides


def _quoted(value: str) -> str:
    """A text as Hydra's grammar has it: a plain word bare, the rest in quotes."""
    if _WORD.fullmatch(value) and value.lower() not in _WORDS_WITH_A_MEANING:
        return value
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + (r"\'" if found[2] else ""), value)
    return f"'{escaped}'"


def _closest(flag: str) -> str:
    known = [*_VALUES, *_SWITCHES, *_HYDRA]
    close = difflib.get_close_matches(flag, known, n=1)
    return f"did you mean {close[0]}?" if close else "`python mine.py --help` lists them."
