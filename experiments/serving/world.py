"""A miner on a port of this machine, with default-size models of random weights and keys of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
import yaml
from omegaconf import OmegaConf

from experiments.complexity.subjects import CONF, VOCAB_SIZE
from experiments.serving.bench import build
from hfa import checkpoint
from hfa.config import from_mapping
from hfa.data.tokenizers.bpe import BPEConfig
from hfa.network.base import WalletConfig
from hfa.network.bittensor import create_hotkey
from hfa.network.local import LocalNetworkConfig
from hfa.serving.miner import HFAMiner, MinerConfig

_ROOT = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    """Of a miner that is started as a command."""
    return {**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}


def artifacts(root: Path, *names: str) -> None:
    """Artifacts of the default size below `root`, with random weights and a vocabulary as large as GPT-2's."""
    tokenizer = BPEConfig(vocab_size=VOCAB_SIZE, train_bytes=1 << 20).build(
        lambda: iter([path.read_text(encoding="utf-8") for path in sorted((_ROOT / "hfa").rglob("*.py"))])
    )
    for name in names or ("hfa", "simplemind"):
        folder = root / name / "checkpoints" / "last"
        checkpoint.save(folder, model=build(name), tokenizer=tokenizer, provenance={"seed": 0})


@contextlib.contextmanager
def miner(folder: Path, *names: str) -> Iterator[tuple[HFAMiner, Callable[[int, int], None]]]:
    """A miner that serves these models, and what has callers of another process ask it: how many, for how many
    tokens."""
    artifacts(folder / "outputs", *names)
    values = yaml.safe_load((CONF.parent / "network" / "local.yaml").read_text())
    values.pop("_target_")
    values |= {"folder": str(folder / "subnets"), "wallet_path": str(folder / "wallets")}
    values["auth"] |= {"nonce_dir": str(folder / "nonces")}
    network = from_mapping(LocalNetworkConfig, values, "network")
    signer = create_hotkey(WalletConfig(name="validator", hotkey="default", path=network.wallet_path))
    network.file().register(signer.hotkey, stake_tao=5000.0, validator_permit=True)
    overrides = [
        "server.host=127.0.0.1",
        "server.port=0",
        "server.rate_per_s=1000",
        "server.rate_burst=1000",
        "engine.threads=1",
        "engine.device=cpu",
        f"models=[{','.join(names)}]",
        f"checkpoint_root={folder / 'outputs'}",
        f"statistics_path={folder / 'statistics.json'}",
        f"network.folder={folder / 'subnets'}",
        f"network.wallet_path={folder / 'wallets'}",
        f"network.auth.nonce_dir={folder / 'nonces'}",
    ]
    with hydra.initialize_config_dir(str(CONF.parent), version_base="1.3"):
        composed = hydra.compose("mine", overrides)
    plain: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    config = from_mapping(MinerConfig, plain, "")
    with HFAMiner(config) as running:
        receiver = network.build(WalletConfig(name="miner", hotkey="default", path=network.wallet_path)).hotkey

        def call(count: int, tokens: int) -> None:
            said = [running.url, receiver, str(network.wallet_path), str(count), str(tokens)]
            command = [sys.executable, "-m", "experiments.serving.caller", *said]
            subprocess.run(command, cwd=_ROOT, env=environment(), check=True)

        yield running, call
