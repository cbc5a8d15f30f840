"""What the soak runs on: a loopback chain, keys, tiny models in two versions, and workers that share a hotkey."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
import yaml

from hfa import checkpoint
from hfa.config import from_mapping, from_node
from hfa.data.tokenizers.byte import ByteTokenizer
from hfa.inference import Engine, EngineConfig, GenerationRequest, Sampling, TokenEvent
from hfa.models import LanguageModel, ModelConfig
from hfa.network.base import WalletConfig
from hfa.network.bittensor import HotkeySigner, create_hotkey

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "harness"))  # the loopback node is the tests'
from subtensor_node import SubtensorNode, fixtures  # noqa: E402

ARCHITECTURES = ("hfa", "simplemind")
MAX_TOKENS = 8
POISON = "\x07"  # what a poisoned model fails at: in some questions, and in no request of a warm-up
_POISONED = 5  # every so many questions have it
_MUTE = 0  # a channel of the features that no logit depends on, in any model here
_SPREAD = 4.0
_MARGIN = 0.02  # between the likeliest two logits of every step: no rounding turns such an answer
_SIZES = {
    "vocab_size": 257,
    "d_model": 64,
    "num_layers": 3,
    "num_heads": 2,
    "d_ff": 128,
    "dropout": 0.0,
    "max_seq_len": 20000,
    "pattern": ["flow", "anchor"],
}


class Question(NamedTuple):
    """A prompt, and the right answers to it by architecture: one a version of its weights.

    Right is what an engine with nothing else to do answers. Where the model alone, without an engine, answers
    otherwise, the two disagree: that is counted, and is not the soak's to judge.
    """

    prompt: str
    answers: dict[str, list[str]]
    alone: dict[str, list[str]]

    @property
    def disagreements(self) -> int:
        return sum(a != b for name in self.answers for a, b in zip(self.answers[name], self.alone[name], strict=True))


class World:
    """A folder with everything in it.

    Args:
        folder: made anew.
        seed: of weights and prompts.
        num_questions: to ask.
    """

    def __init__(self, folder: Path, seed: int, num_questions: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder = folder.resolve()
        self.versions = {name: [_model(name, seed + version) for version in (0, 1)] for name in ARCHITECTURES}
        self._seed = seed
        self.questions = list(self._questions(seed, num_questions))
        for name in ARCHITECTURES:
            self.deploy(name, 0)
        self.node = SubtensorNode(fixtures())
        self.node.start()
        wallet = WalletConfig(name="miner", hotkey="default", path=str(self.folder / "wallets"))
        self.miner = create_hotkey(wallet).hotkey
        self.node.register(self.miner)
        self.validators = [self._validator(f"validator{index}", 1000.0 * 10**index) for index in range(3)]
        self.stranger = self._key("stranger")

    def deploy(self, name: str, version: int) -> None:
        """Make a version of an architecture's weights its latest artifact."""
        self.artifact(name).parent.mkdir(parents=True, exist_ok=True)
        model = self.versions[name][version]
        checkpoint.save(self.artifact(name), model=model, tokenizer=ByteTokenizer(), provenance={"version": version})

    def poison(self, name: str, version: int) -> None:
        """Deploy a version that answers everything as ever, but fails wherever it reads `POISON`.

        The embedding of that byte overflows in a channel that the head does not see: its features are NaN, and so is
        all that follows it; the logits of everything else are what they were.
        """
        model = _model(name, self._seed + version)
        with torch.no_grad():
            model.embedding.weight[ord(POISON), _MUTE] = 3e38
        checkpoint.save(self.artifact(name), model=model, tokenizer=ByteTokenizer(), provenance={"version": version})

    def artifact(self, name: str) -> Path:
        return self.folder / "outputs" / name / "checkpoints" / "last"

    def _validator(self, name: str, stake_tao: float) -> HotkeySigner:
        signer = self._key(name)
        self.node.register(signer.hotkey, tao=stake_tao, permit=True)
        return signer

    def _key(self, name: str) -> HotkeySigner:
        return create_hotkey(WalletConfig(name=name, hotkey="default", path=str(self.folder / "wallets")))

    def _questions(self, seed: int, count: int) -> Iterator[Question]:
        """Prompts that every model answers without a close call."""
        generator = torch.Generator().manual_seed(seed)
        engines = {name: [_engine(name, seed + version) for version in (0, 1)] for name in ARCHITECTURES}
        while count:
            length = int(10 ** (1 + 2.3 * torch.rand((), generator=generator).item()))  # 10 to 2,000 bytes
            prompt = bytes(torch.randint(32, 127, (length,), generator=generator).tolist()).decode()
            if count % _POISONED == 0:
                prompt = f"{prompt[:-5]}{POISON}{prompt[-5:]}"
            alone = {name: [_answer(model, prompt) for model in self.versions[name]] for name in ARCHITECTURES}
            if any(given is None for both in alone.values() for given in both):
                continue
            answers = {name: [_engine_answer(engine, prompt) for engine in engines[name]] for name in ARCHITECTURES}
            yield Question(prompt, answers, {name: [str(given) for given in both] for name, both in alone.items()})
            count -= 1
        for both in engines.values():
            for engine in both:
                engine.close()


class Worker:
    """One `python mine.py`, on the chain, with the hotkey and the nonces of all workers.

    `life` is a new object with every start, and None from before it is killed until it is ready again.
    """

    def __init__(self, world: World, index: int) -> None:
        self.world, self.index = world, index
        self.log = world.folder / f"worker{index}.log"
        self.url = ""
        self.life: object | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it is ready."""
        world, folder = self.world, self.world.folder
        words = [
            f"network={world.node.url}",
            "network.external_ip=203.0.113.7",
            f"network.wallet_path={folder}/wallets",
        ]
        words += ["network.sync_interval_s=2.0", "network.retry_s=0.5", "network.rpc_timeout_s=5.0"]
        words += ["network.max_staleness_s=60.0", f"network.auth.nonce_dir={folder}/nonces", "wallet.name=miner"]
        words += [
            f"checkpoint_root={folder}/outputs",
            f"statistics_path={folder}/worker{self.index}.json",
            "watch_s=2.0",
        ]
        words += [
            "server.host=127.0.0.1",
            "server.port=0",
            "server.status_port=0",
            "engine.threads=1",
            "engine.checkpoint_budget_mib=32",
        ]
        words += ["server.rate_per_s=1000.0", "server.rate_burst=1000", f"hydra.run.dir={folder}/logs{self.index}"]
        before = self.log.stat().st_size if self.log.exists() else 0
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as file:
            command = [sys.executable, str(ROOT / "mine.py"), *words]
            self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=file)
        limit = time.monotonic() + 300
        while b"Miner ready" not in (said := self.log.read_bytes()[before:]):
            if self.process.poll() is not None or time.monotonic() > limit:
                raise RuntimeError(f"worker {self.index} did not come up; {self.log} says why")
            time.sleep(0.1)
        self.url = said.partition(b" at http://")[2].split()[0].decode()
        self.life = object()

    def kill(self) -> None:
        """SIGKILL, unless it never ran."""
        self.life = None
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)

    def rss_mib(self) -> float:
        """Resident memory now."""
        assert self.process is not None
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def every(seconds: float, act: object) -> Iterator[None]:
    """Call `act` again and again on a thread of its own while the block runs."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(seconds):
            act()  # type: ignore[operator]

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _model(name: str, seed: int) -> LanguageModel:
    values = yaml.safe_load((ROOT / "conf" / "model" / f"{name}.yaml").read_text())
    torch.manual_seed(seed)
    model = from_node(
        values | {key: value for key, value in _SIZES.items() if key in values}, "model", ModelConfig
    ).build()
    with torch.no_grad():
        for parameter in model.parameters():  # away from the start of training, where a model repeats its last token
            if parameter.ndim > 1:
                parameter += _SPREAD * parameter.std() * torch.randn_like(parameter)
        model.norm.weight[_MUTE] = 0.0
    return model.eval()


def _engine(name: str, seed: int) -> Engine:
    """An engine as conf/engine/default.yaml has it, with nothing else to do."""
    values = yaml.safe_load((ROOT / "conf" / "engine" / "default.yaml").read_text())
    values.pop("_target_")
    return from_mapping(EngineConfig, values | {"threads": 1}, "engine").build(_model(name, seed), name)


def _engine_answer(engine: Engine, prompt: str) -> str:
    async def tokens() -> list[int]:
        sampling = Sampling()
        stop = frozenset({ByteTokenizer().end_of_text})
        request = GenerationRequest(
            tokens=tuple(prompt.encode()), max_tokens=MAX_TOKENS, sampling=sampling, stop_tokens=stop
        )
        return [event.token async for event in engine.submit(request) if isinstance(event, TokenEvent)]

    return bytes(asyncio.run(tokens())).decode(errors="replace")


def _answer(model: LanguageModel, prompt: str) -> str | None:
    """The model's own greedy continuation, computed without the engine; None when some step was a close call."""
    tokens: list[int] = []
    with torch.inference_mode():
        logits, state = model(torch.tensor([list(prompt.encode())]))
        logits = logits[:, -1]
        for _ in range(MAX_TOKENS):
            first, second = logits[0].topk(2)[0].tolist()
            if first - second < _MARGIN:
                return None
            tokens.append(int(logits[0].argmax()))
            if tokens[-1] == 256:  # the end
                return bytes(tokens[:-1]).decode(errors="replace")
            logits, state = model.step(torch.tensor(tokens[-1:]), state)
    return bytes(tokens).decode(errors="replace")
