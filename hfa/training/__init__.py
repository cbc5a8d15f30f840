"""Training and evaluating: plain configuration in, metrics, checkpoints and plots out."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hfa.training.datamodule import DataModule
    from hfa.training.evaluation import Evaluation, evaluate, evaluate_model
    from hfa.training.fit import train
    from hfa.training.module import LMModule

__all__ = ["DataModule", "Evaluation", "LMModule", "evaluate", "evaluate_model", "run", "train"]

_HOMES = {"DataModule": "datamodule", "LMModule": "module", "train": "fit"}


def run(
    cfg: Mapping[str, Any], run_dir: Path, *, overrides: Sequence[str] = (), interactive: bool = False
) -> float | None:
    """Train, evaluate or audit, as ``cfg["mode"]`` says.

    Args:
        cfg: the resolved configuration, plain data.
        run_dir: gets what the run makes.
        overrides: of the command line, which say what was chosen and not only composed.
        interactive: whether a person may be looking at the terminal.

    Returns:
        The best value of the metric that ``callbacks.checkpoints.monitor`` names; None when it was not measured.
    """
    from hfa.training.evaluation import evaluate
    from hfa.training.fit import train
    from hfa.training.tracing import explain

    if look := {"evaluate": evaluate, "audit": explain}.get(cfg["mode"]):
        metrics = look(cfg, run_dir, overrides)
    else:
        metrics = train(cfg, run_dir, interactive=interactive)
    checkpoints = (cfg.get("callbacks") or {}).get("checkpoints")
    return metrics.get(f"best/{checkpoints['monitor']}") if checkpoints else None


def __getattr__(name: str) -> Any:
    """Import what is asked for: torch and Lightning take seconds, and `train.py --help` needs neither."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'evaluation')}"), name)
