"""conf/network/*.yaml: each composes, and each mistake is one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from hfa.config import from_mapping, from_node
from hfa.errors import ConfigError
from hfa.network.base import NetworkConfig, WalletConfig
from hfa.network.bittensor import BittensorNetworkConfig
from hfa.network.local import config_from_yaml

CONF = Path(__file__).parents[3] / "conf"
NAMES = sorted(file.stem for file in (CONF / "network").glob("*.yaml"))


def node(name: str, **changes: Any) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = OmegaConf.to_container(compose(f"network/{name}").network, resolve=True)
    assert isinstance(composed, dict)
    return {**composed, **changes}


@pytest.mark.parametrize("name", NAMES)
def test_every_network_composes_under_its_own_name(name: str) -> None:
    config = from_node(node(name, netuid=439), "network", NetworkConfig)
    assert config.name == name
    assert config.netuid == 439


def test_there_are_three_networks() -> None:
    assert NAMES == ["finney", "local", "test"]


def test_finney_wants_to_know_the_subnet() -> None:
    with pytest.raises(ConfigError, match=r"network\.netuid: got None"):
        from_node(node("finney"), "network", NetworkConfig)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"chain": "tset"}, "network.chain: got 'tset', expected test, finney, or a ws:// or wss:// endpoint."),
        ({"external_ip": "example.org"}, "network.external_ip: got 'example.org', expected a literal IPv4 or IPv6"),
        ({"external_port": 70000}, "network.external_port: got 70000, expected a port from 1 to 65535, or null."),
        ({"min_stake_tao": -1.0}, "network.min_stake_tao: got -1.0"),
        ({"max_staleness_s": 1.0}, "network.max_staleness_s: got 1.0, expected at least sync_interval_s=120."),
        ({"netuid": 70000}, "network.netuid: got 70000, expected 0 to 65535."),
        ({"deny": ["5Nobody"]}, "network.deny: got '5Nobody', expected the ss58 address of a hotkey"),
        ({"netuid": "439"}, "network.netuid: got '439'"),
        ({"min_stake": 5.0}, "did you mean min_stake_tao?"),
    ],
)
def test_mistakes_are_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        from_node(node("test", **changes), "network", NetworkConfig)
    assert sentence in str(raised.value)


def test_finney_is_finney() -> None:
    config = from_node(node("finney", netuid=1), "network", BittensorNetworkConfig)
    assert (config.chain, config.min_stake_tao, config.require_validator_permit) == ("finney", 1000.0, True)


def test_command_line_and_yaml_name_the_same_subnet() -> None:
    assert config_from_yaml() == from_node(node("local"), "network", NetworkConfig)


def test_any_endpoint_is_a_chain() -> None:
    config = from_node(node("test", chain="ws://127.0.0.1:9944"), "network", BittensorNetworkConfig)
    assert config.chain == "ws://127.0.0.1:9944"


def test_a_typo_in_auth_names_the_key() -> None:
    auth = {**node("local")["auth"], "max_age": 3.0}
    with pytest.raises(ConfigError, match=r"network\.auth\.max_age: got 3\.0.*did you mean max_age_s"):
        from_node(node("local", auth=auth), "network", NetworkConfig)


def test_wallet_names_are_names() -> None:
    with pytest.raises(ConfigError, match=r"wallet\.hotkey: got '\.\.', expected a name without a slash"):
        from_mapping(WalletConfig, {"name": "a", "hotkey": "..", "path": "wallets"}, "wallet")
