"""Learning rate schedules."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from hfa.training.scheduler import ConstantConfig, CosineConfig, SchedulerConfig


def rates(settings: SchedulerConfig, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = settings.build(optimizer, steps)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_warm_up_is_a_line_that_does_not_begin_at_zero() -> None:
    assert rates(ConstantConfig(warmup_steps=4), 6) == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0])


def test_cosine_falls_from_the_top_to_the_final_fraction() -> None:
    seen = rates(CosineConfig(warmup_steps=2, final_fraction=0.1), 102)
    assert seen[1] == seen[2] == pytest.approx(2.0)
    assert seen[52] == pytest.approx(2.0 * 0.55)
    assert all(a > b for a, b in pairwise(seen[2:]))
    assert CosineConfig(warmup_steps=2, final_fraction=0.1).factor(102, 102) == pytest.approx(0.1)


def test_steps_beyond_the_last_stay_at_the_final_fraction() -> None:
    assert CosineConfig(warmup_steps=0, final_fraction=0.2).factor(500, 100) == pytest.approx(0.2)


def test_no_warm_up() -> None:
    assert rates(ConstantConfig(warmup_steps=0), 2) == pytest.approx([2.0, 2.0])
