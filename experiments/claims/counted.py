"""Figures that are counted and not timed: the same on every machine, and quick to make again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from experiments.claims.claim import Claim, Table
from experiments.complexity.subjects import VOCAB_SIZE, our_config, random_tokens
from experiments.complexity.tally import per_token
from hfa.models import LanguageModel

MODELS = {"hfa": "HFA", "simplemind": "SimpleMind", "hybrid": "Hybrid", "transformer": "Transformer"}
STATE_TOKENS = 100_000
SHORT, LONG = 1024, 4096
TRAINED = 2048  # tokens of a training example: more than are all read for its being short (`read_all`)
TABLES = ("counted", "counted-work")
_MIB = 1 << 20
_SOURCE = "experiments/claims/counted.py"


def counted(made: dict[str, Any]) -> Iterator[Table]:
    """At the default sizes: parameters, the state and the work of a token of prefill; then of training and decoding.

    Args:
        made: commit and date of this count.
    """
    made = {"command": "make claims", "seed": 0, "machine": "any: counted, not timed", "config": "conf/model", **made}
    values = {title: count(name) for name, title in MODELS.items()}
    for table, columns in zip(TABLES, (titles(), work_titles()), strict=True):
        rows, claims = [], []
        for title, found in values.items():
            for what in columns:
                value, shown = found[what]
                said = f"{title}: {what}"
                claims.append(Claim(claim=said, shown=shown, value=value, interval=None, source=_SOURCE, made=made))
            rows.append([title, *(found[what][1] for what in columns)])
        yield Table(name=table, head=["default size", *columns], rows=rows, claims=claims)


def titles() -> list[str]:
    """What is counted of a model, and of its prefill."""
    lengths = (SHORT, LONG)
    return [
        "parameters, no embedding",
        f"state of {STATE_TOKENS:,} tokens",
        *(f"operations a token, prefill of {length:,}" for length in lengths),
        *(f"allocated a token, prefill of {length:,}" for length in lengths),
    ]


def work_titles() -> list[str]:
    """What is counted of training and decoding."""
    return [
        f"operations a token, training on {TRAINED:,}",
        f"allocated a token, training on {TRAINED:,}",
        *(f"allocated a token, decode after {length:,}" for length in (SHORT, LONG)),
    ]


@contextmanager
def _one_thread() -> Iterator[None]:
    """What torch allocates depends on how many there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def count(name: str) -> dict[str, tuple[float, str]]:
    """The figures of one of conf/model, and how each is shown."""
    config = our_config(name)
    with torch.device("meta"):
        model = config.build()
    body = model.num_parameters - config.vocab_size * config.d_model
    state = model.state_bytes(STATE_TOKENS)
    torch.manual_seed(0)
    model = config.build().eval()
    with torch.inference_mode():
        prefill = partial(model.hidden, last=1)
        work = [per_token(prefill, length, VOCAB_SIZE) for length in (SHORT, LONG)]
        stepped = [_step_bytes(model, length) for length in (SHORT, LONG)]
    trained = per_token(partial(_train, model.train()), TRAINED, VOCAB_SIZE)
    values = [
        (float(body), f"{body / 1e6:.1f}M"),
        (float(state), f"{state / _MIB:.1f} MiB"),
        *((flops, f"{flops / 1e6:.1f}M") for _, flops in work),
        *((allocated, f"{allocated / 1024:.0f} KiB") for allocated, _ in work),
        (trained[1], f"{trained[1] / 1e6:.1f}M"),
        *((allocated, f"{allocated / 1024:.0f} KiB") for allocated in (trained[0], *stepped)),
    ]
    return dict(zip([*titles(), *work_titles()], values, strict=True))


def _step_bytes(model: LanguageModel, length: int) -> float:
    """What a step allocates, logits included; not the first one, in which a memory's buffers may grow."""
    tokens = random_tokens(length, seed=0)
    _, state = model.hidden(tokens, last=1)
    _, state = model.step(tokens[:, 0], state)
    return per_token(lambda token: model.step(token[:, 0], state), 1, VOCAB_SIZE)[0]


def _train(model: LanguageModel, tokens: Tensor) -> None:
    """Forward and backward of the body; the head is the same for all."""
    model.hidden(tokens)[0].sum().backward()
    if (auxiliary := model.auxiliary_loss()) is not None:
        auxiliary.backward()
