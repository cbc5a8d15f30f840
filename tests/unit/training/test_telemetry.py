"""What a run says of the machine, after others in the same process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hfa.training.callbacks.telemetry import forget_memory, memory_mib
from hfa.training.settings import TrainSettings, read_settings


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="this system keeps the highest of all")
def test_memory_that_an_earlier_run_held_is_not_a_later_ones() -> None:
    held = torch.ones(200 << 18)  # 200 MiB
    most = memory_mib()
    del held
    assert memory_mib() == pytest.approx(most, abs=20), "it is the most so far"
    forget_memory()
    assert memory_mib() < most - 150


def test_no_gpu_is_started_for_what_runs_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    forget_memory()
    assert not torch.cuda.is_initialized()


def test_threads_that_an_earlier_run_chose_are_not_a_later_ones(composed: Callable[..., dict[str, Any]]) -> None:
    before = torch.get_num_threads()
    trainer = read_settings(composed(), TrainSettings).trainer
    try:
        dataclasses.replace(trainer, threads=before + 1).prepare()
        assert torch.get_num_threads() == before + 1
        dataclasses.replace(trainer, threads=None).prepare()
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(before)
