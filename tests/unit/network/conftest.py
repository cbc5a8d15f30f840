"""Wallets, configs and requests on which the tests of the network are made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hfa.config import from_mapping
from hfa.network.base import AuthConfig, DendriteConfig, WalletConfig
from hfa.network.bittensor import HotkeySigner, create_hotkey
from hfa.network.local import LocalNetworkConfig, config_from_yaml


@pytest.fixture
def make_wallet(tmp_path: Path) -> Callable[[str], WalletConfig]:
    return lambda name: WalletConfig(name=name, hotkey="default", path=str(tmp_path / "wallets"))


@pytest.fixture
def make_signer(make_wallet: Callable[[str], WalletConfig]) -> Callable[[str], HotkeySigner]:
    return lambda name: create_hotkey(make_wallet(name))


@pytest.fixture
def auth(tmp_path: Path) -> AuthConfig:
    return AuthConfig(
        max_age_s=10.0,
        allowed_skew_s=2.0,
        require_receiver=True,
        nonce_dir=str(tmp_path / "nonces"),
        max_nonces=1000,
        dendrite=DendriteConfig(
            max_age_s=4.0, max_timeout_s=60.0, allowed_skew_s=2.0, hash_fields=("context", "prompt")
        ),
    )


@pytest.fixture
def make_config(tmp_path: Path, auth: AuthConfig) -> Callable[..., LocalNetworkConfig]:
    def make(**changes: Any) -> LocalNetworkConfig:
        values = {**vars(config_from_yaml(folder=str(tmp_path / "subnets"))), "auth": auth, **changes}
        return from_mapping(LocalNetworkConfig, values, "network")

    return make
