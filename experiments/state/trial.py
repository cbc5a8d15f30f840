"""One training and its test: associative recall in zoology's setting, on one core."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hfa.data.tasks.mqar import MQAR, MQARConfig
from hfa.models import LanguageModel, ModelConfig
from hfa.models.state import flatten
from hfa.training.optimizer import AdamWConfig
from hfa.training.scheduler import CosineConfig
from hfa.types import IGNORE, Split


class Setting(NamedTuple):
    """A kind of example."""

    seq_len: int
    num_pairs: int
    noise: str = "zero"

    def __str__(self) -> str:
        return f"{self.seq_len}/{self.num_pairs}" + ("" if self.noise == "zero" else f" {self.noise}")


TRAIN = [Setting(64, 4), Setting(128, 8), Setting(256, 16), Setting(256, 32), Setting(256, 64)]
TEST = [
    *TRAIN,
    Setting(256, 64, "random"),
    Setting(512, 64),
    Setting(512, 128),
    Setting(1024, 64),
    Setting(1024, 256),
]
FAR = [
    *(Setting(length, 64) for length in (4096, 16_384, 131_072)),
    *(Setting(length, 64, "random") for length in (1024, 4096, 16_384)),
    Setting(2048, 512),
]
ANSWERS = 2048  # of a setting, at least, when tested, and
MOST_TOKENS = 262_144  # unless they take more
BATCH_TOKENS = 4096
LEARNT = 0.01  # of the answers in one setting of the training, or a model is not tested beyond them
DATA_SEED = 7
REPORT_STEPS = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How a model is trained."""

    steps: int
    lr: float
    seed: int
    train: tuple[Setting, ...] = tuple(TRAIN)
    warmup_steps: int = 30
    embedding_lr_factor: float = 1.0

    @property
    def optimizer(self) -> AdamWConfig:
        return AdamWConfig(
            lr=self.lr,
            betas=(0.9, 0.98),
            eps=1e-8,
            weight_decay=0.01,
            embedding_lr_factor=self.embedding_lr_factor,
        )


def trial(settings: ModelConfig, plan: Plan, tests: Sequence[Setting], report: Callable[[str], None]) -> dict[str, Any]:
    """Train and test a model; its accuracy in every setting, and what it took."""
    torch.manual_seed(plan.seed)
    model = settings.build()
    optimizer = plan.optimizer.build(model)
    schedule = CosineConfig(warmup_steps=plan.warmup_steps, final_fraction=0.02).build(optimizer, plan.steps)
    began, losses = time.process_time(), []
    for step, (tokens, labels) in enumerate(batches(plan), 1):
        loss, right = score(model, tokens, labels)
        auxiliary = model.auxiliary_loss()
        (loss if auxiliary is None else loss + auxiliary).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        if step % REPORT_STEPS == 0:
            mean = statistics.mean(losses[-REPORT_STEPS:])
            report(
                f"  step {step}, {time.process_time() - began:.0f} s: loss {mean:.3f}, {right:.1%} of the last batch"
            )
    seconds = round(time.process_time() - began, 1)
    validated = {str(setting): accuracy(model, setting, "val") for setting in plan.train}
    measured = {str(setting): accuracy(model, setting, "test") for setting in plan.train}
    if max(measured.values()) >= LEARNT:
        measured |= {
            str(setting): accuracy(model, setting, "test") for setting in tests if str(setting) not in measured
        }
    return {
        "cpu_seconds": seconds,
        "tokens": plan.steps * BATCH_TOKENS,
        "parameters": model.num_parameters,
        "state_floats": num_floats(model),
        "loss": statistics.mean(losses[-REPORT_STEPS:]),
        "validation": validated,
        "accuracy": measured,
    }


def num_floats(model: LanguageModel) -> int:
    """Floats that the last layer carries before the first token, without the convolution's tail."""
    return max(x.numel() for name, x in flatten(model.init_state(1)[-1]).items() if not name.startswith("tail"))


def batches(plan: Plan) -> Iterator[tuple[Tensor, Tensor]]:
    """The training's batches, each of one setting: the same for the same seed, whatever the model."""
    tasks = [task(setting) for setting in plan.train]
    rng = np.random.default_rng([DATA_SEED, plan.seed])
    at = 0
    for _ in range(plan.steps):
        one = tasks[rng.integers(len(tasks))]
        rows = BATCH_TOKENS // one.seq_len
        yield stack(one, range(at, at + rows), "train")
        at += rows


def task(setting: Setting) -> MQAR:
    """The repository's own task, in zoology's form."""
    return MQAR(
        MQARConfig(
            name="mqar",
            seed=DATA_SEED,
            seq_len=setting.seq_len,
            vocab_size=8192,
            num_pairs=setting.num_pairs,
            num_queries=None,
            layout="first",
            noise=setting.noise,
            noise_vocab_size=512,
            phrase_len=24,
            power_alpha=0.01,
        )
    )


def stack(source: MQAR, indices: range, split: Split) -> tuple[Tensor, Tensor]:
    """Tokens and labels of some examples, [rows, T] each."""
    examples = [source.example(index, split) for index in indices]
    tokens, labels = (np.stack(arrays) for arrays in zip(*((x.tokens, x.labels) for x in examples), strict=True))
    return torch.from_numpy(tokens), torch.from_numpy(labels)


def score(model: LanguageModel, tokens: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """Cross entropy of the labels, and the share of them that is right."""
    hidden, _ = model.hidden(tokens)
    asked = labels != IGNORE
    logits, label = model.head(hidden[asked]), labels[asked]
    return F.cross_entropy(logits, label), (logits.argmax(-1) == label).float().mean().item()


@torch.no_grad()
def accuracy(model: LanguageModel, setting: Setting, split: Split) -> float:
    """The share of right answers to `ANSWERS` questions, if those fit into `MOST_TOKENS`."""
    model.eval()
    source = task(setting)
    rows = max(1, min(-(-ANSWERS // setting.num_pairs), MOST_TOKENS // setting.seq_len))
    piece = max(1, 8192 // setting.seq_len)
    parts = [range(first, min(rows, first + piece)) for first in range(0, rows, piece)]
    right = [score(model, *stack(source, part, split))[1] * len(part) for part in parts]
    model.train()
    return sum(right) / rows
