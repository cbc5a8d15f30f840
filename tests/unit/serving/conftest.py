"""Miners in this process: real keys, a real subnet in a file, a real port, tiny models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
import yaml
from omegaconf import OmegaConf

from hfa import checkpoint
from hfa.config import from_mapping, from_node
from hfa.data.tokenizers.byte import ByteTokenizer
from hfa.models import LanguageModel, ModelConfig
from hfa.network.base import WalletConfig
from hfa.network.bittensor import HotkeySigner, create_hotkey
from hfa.network.client import HFAClient
from hfa.network.local import LocalNetworkConfig
from hfa.serving.miner import HFAMiner, MinerConfig

CONF = Path(__file__).parents[3] / "conf"
TINY = {
    "vocab_size": 257,
    "d_model": 32,
    "num_layers": 3,
    "num_heads": 2,
    "num_kv_heads": 2,
    "d_ff": 64,
    "dropout": 0.0,
    "max_seq_len": 40000,
    "pattern": ["flow", "anchor"],
    "num_channels": 8,
    "active_channels": 4,
    "window": 8,
    "block_size": 4,
    "num_retrieved": 8,
    "chunk_size": 16,
}


def tiny_model(name: str, **sizes: int) -> LanguageModel:
    """A real architecture at a size for tests, from its own YAML, with random weights."""
    values = yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())
    small = {key: value for key, value in (TINY | sizes).items() if key in values}
    torch.manual_seed(0)
    return from_node(values | small, "model", ModelConfig).build().eval()


@pytest.fixture(scope="session")
def tiny() -> Callable[..., LanguageModel]:
    """``tiny(name, **sizes)``"""
    return tiny_model


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with an artifact of HFA and one of SimpleMind; SimpleMind takes longer requests."""
    root = tmp_path_factory.mktemp("outputs")
    for name, length in (("hfa", 20000), ("simplemind", 40000)):
        folder = root / name / "checkpoints" / "last"
        model = tiny_model(name, max_seq_len=length)
        checkpoint.save(folder, model=model, tokenizer=ByteTokenizer(), provenance={"seed": 0})
    return root


class Subnet:
    """A subnet of its own, with its own wallets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        values = yaml.safe_load((CONF / "network" / "local.yaml").read_text())
        values.pop("_target_")
        values |= {"folder": str(folder / "subnets"), "wallet_path": str(folder / "wallets")}
        values["auth"] |= {"nonce_dir": str(folder / "nonces")}
        self.config = from_mapping(LocalNetworkConfig, values, "network")

    def signer(
        self, name: str, *, stake_tao: float = 5000.0, permit: bool = True, register: bool = True
    ) -> HotkeySigner:
        """A new hotkey, on the subnet or not."""
        signer = create_hotkey(WalletConfig(name=name, hotkey="default", path=self.config.wallet_path))
        if register:
            self.config.file().register(signer.hotkey, stake_tao=stake_tao, validator_permit=permit)
        return signer


@pytest.fixture
def subnet(tmp_path: Path) -> Subnet:
    return Subnet(tmp_path)


class Running:
    """A miner that runs, and a validator that may call it."""

    def __init__(self, miner: HFAMiner, subnet: Subnet, validator: HotkeySigner) -> None:
        self.miner, self.subnet, self.validator, self.url = miner, subnet, validator, miner.url
        own = WalletConfig(name="miner", hotkey="default", path=subnet.config.wallet_path)
        self.hotkey = subnet.config.build(own).hotkey

    def client(self, signer: HotkeySigner | None = None) -> HFAClient:
        return HFAClient(signer or self.validator, url=self.url, receiver=self.hotkey, timeout_s=60)


def compose(runs: Path, subnet: Subnet, *overrides: str) -> MinerConfig:
    """conf/mine.yaml with overrides, everything written below the subnet's folder."""
    own = [
        "server.host=127.0.0.1",
        "server.port=0",
        "server.status_port=0",
        "engine.threads=1",
        "engine.device=cpu",
        f"checkpoint_root={runs}",
        f"statistics_path={subnet.folder / 'statistics.json'}",
        f"network.folder={subnet.config.folder}",
        f"network.wallet_path={subnet.config.wallet_path}",
        f"network.auth.nonce_dir={subnet.config.auth.nonce_dir}",
    ]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        composed = hydra.compose("mine", [*own, *overrides])
    values: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    return from_mapping(MinerConfig, values, "mine")


@pytest.fixture
def settings(runs: Path, subnet: Subnet) -> Callable[..., MinerConfig]:
    """``settings("server.port=1", ...)``"""
    return lambda *overrides: compose(runs, subnet, *overrides)


@pytest.fixture
def start(settings: Callable[..., MinerConfig], subnet: Subnet) -> Iterator[Callable[..., Running]]:
    """``start("server.rate_burst=1", ...)`` runs a miner until the test ends."""
    number = count()
    with ExitStack() as running:

        def enter(*overrides: str) -> Running:
            record = f"statistics_path={subnet.folder / f'statistics{next(number) or str()}.json'}"
            miner = running.enter_context(HFAMiner(settings(record, *overrides)))
            return Running(miner, subnet, subnet.signer("validator"))

        yield enter


@pytest.fixture(scope="module")
def shared(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A miner for tests that only talk to it."""
    subnet = Subnet(tmp_path_factory.mktemp("shared"))
    with HFAMiner(compose(runs, subnet, "server.rate_per_s=1000", "server.rate_burst=1000")) as miner:
        yield Running(miner, subnet, subnet.signer("validator"))
