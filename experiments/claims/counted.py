"""Figures that are counted and not timed: the same on every machine, and quick to make again."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from experiments.claims.claim import Claim, Table
from experiments.complexity.subjects import VOCAB_SIZE, our_config
from experiments.complexity.tally import per_token

MODELS = {"hfa": "HFA", "simplemind": "SimpleMind", "hybrid": "Hybrid", "transformer": "Transformer"}
STATE_TOKENS = 100_000
SHORT, LONG = 1024, 4096
_MIB = 1 << 20
_SOURCE = "experiments/claims/counted.py"


def counted(made: dict[str, Any]) -> Table:
    """Parameters, the state, and the work of a token of prefill at the default sizes.

    Args:
        made: commit and date of this count.
    """
    made = {"command": "make claims", "seed": 0, "machine": "any: counted, not timed", "config": "conf/model", **made}
    rows, claims = [], []
    for name, title in MODELS.items():
        values = count(name)
        for what, (value, shown) in values.items():
            said = f"{title}: {what}"
            claims.append(Claim(claim=said, shown=shown, value=value, interval=None, source=_SOURCE, made=made))
        rows.append([title, *(shown for _, shown in values.values())])
    head = ["default size", *count_titles()]
    return Table(name="counted", head=head, rows=rows, claims=claims)


def count_titles() -> list[str]:
    """What is counted of a model."""
    lengths = (SHORT, LONG)
    return [
        "parameters, no embedding",
        f"state of {STATE_TOKENS:,} tokens",
        *(f"operations a token, prefill of {length:,}" for length in lengths),
        *(f"allocated a token, prefill of {length:,}" for length in lengths),
    ]


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
    values = [
        (float(body), f"{body / 1e6:.1f}M"),
        (float(state), f"{state / _MIB:.1f} MiB"),
        *((flops, f"{flops / 1e6:.1f}M") for _, flops in work),
        *((allocated, f"{allocated / 1024:.0f} KiB") for allocated, _ in work),
    ]
    return dict(zip(count_titles(), values, strict=True))
