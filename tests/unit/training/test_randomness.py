"""Random states that are kept and put back."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from hfa.training.randomness import capture, restore, seed_everything


def draw() -> tuple[float, float, float, torch.Tensor]:
    dropped = torch.nn.functional.dropout(torch.ones(20), 0.5)
    return random.random(), random.gauss(0, 1), float(np.random.standard_normal()), dropped


def same(a: tuple[float, float, float, torch.Tensor], b: tuple[float, float, float, torch.Tensor]) -> bool:
    return a[:3] == b[:3] and torch.equal(a[3], b[3])


def test_a_state_survives_a_file_that_nothing_is_executed_from(tmp_path: Path) -> None:
    seed_everything(1)
    draw()  # leaves half a pair of normal numbers waiting in Python and numpy
    torch.save(capture(), tmp_path / "state")
    expected = draw()
    seed_everything(2)
    assert not same(draw(), expected)
    restore(torch.load(tmp_path / "state", weights_only=True))
    assert same(draw(), expected)


def test_one_seed_decides_everything() -> None:
    seed_everything(3)
    first = draw()
    seed_everything(3)
    assert same(draw(), first)
