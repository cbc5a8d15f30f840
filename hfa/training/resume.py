"""Going on from a checkpoint as if nothing had happened, or saying why that cannot be."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hfa.data import tokenizers
from hfa.errors import CheckpointError, ConfigError, first_line
from hfa.models import LanguageModel
from hfa.training.runs import differences, read_config
from hfa.types import Source, Tokenizer

log = logging.getLogger(__name__)

# What a run may have otherwise than the one it goes on from: where it runs, how long, and what is shown of it.
_FREE = {
    *("mode", "name", "output_dir", "cache_dir", "resume", "checkpoint", "callbacks", "logger", "evaluate"),
    *("loader.num_workers", "loader.val_examples"),
    *(f"trainer.{key}" for key in ("accelerator", "devices", "num_nodes", "strategy", "compile", "threads")),
    *(f"trainer.{key}" for key in ("max_steps", "val_check_interval", "log_every_n_steps", "deterministic")),
}


class Resumed(NamedTuple):
    """What a run goes on from."""

    checkpoint: Path
    run_dir: Path
    step: int
    material: Mapping[str, str]  # as :func:`material` gives it, as far as it is known
    weights: Mapping[str, tuple[int, ...]]  # shapes by name

    def check(self, model: LanguageModel, tokenizer: Tokenizer, source: Source) -> None:
        """Refuse to go on with another architecture, other texts or other ids: the weights would mean something else.

        Raises:
            CheckpointError: model, data or tokenizer is not what the run was made with.
        """
        for what, now in material(tokenizer, source).items():
            if what not in self.material:
                log.warning("%s does not say of which %s it is; they are not compared", self.checkpoint, what)
            elif (before := self.material[what]) != now:
                changed = f"the {what} of its data were {before or 'none'} and are {now or 'none'} now (fingerprints)"
                remedy = "put the documents back as they were, or leave out resume to train anew"
                raise CheckpointError(f"resume={self.run_dir}: {changed}; {remedy}.")
        wanted = {f"model.{name}": tuple(value.shape) for name, value in model.state_dict().items()}
        if strange := sorted(dict(wanted.items() ^ self.weights.items())):
            remedy = "train anew, or go on with the commit that its run.json names"
            found = f"its weights are not those of this version's {model.config.name} ({strange[0]})"
            raise CheckpointError(f"resume={self.run_dir}: {found}; {remedy}.")


def material(tokenizer: Tokenizer, source: Source) -> dict[str, str]:
    """What the configuration names and does not hold, as fingerprints: ``documents``, and ``tokens`` made of them."""
    return {"documents": source.fingerprint, "tokens": tokenizer.fingerprint()}


def find_resumed(spec: str, cfg: Mapping[str, Any]) -> Resumed:
    """The checkpoint that ``resume=spec`` means, if a run of `cfg` can go on from it.

    Args:
        spec: ``latest`` (of the runs with the same `name`), a run directory, or a .ckpt file.
        cfg: the resolved configuration of the new run.

    Raises:
        CheckpointError: there is none, or it is torn.
        ConfigError: it was made with another configuration, or is finished.
    """
    path = _newest(Path(cfg["output_dir"]) / cfg["name"]) if spec == "latest" else _inside_run(Path(spec))
    run_dir = path.parent.parent
    try:
        held = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        step, made_of = int(held["global_step"]), dict(held["hfa"].get("material", {}))
        weights = {name: tuple(value.shape) for name, value in held["state_dict"].items()}
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, KeyError, TypeError, AttributeError) as error:
        reason = first_line(error)
        raise CheckpointError(f"resume={spec}: {path} is torn or no checkpoint of train.py ({reason}).") from None
    before = read_config(run_dir)
    for key, old, new in differences(before, cfg, _FREE):
        remedy = f"set {key}={old} again, or leave out resume to train anew"
        raise ConfigError(key, new, f"{old!r} as in {run_dir}", remedy)
    if cfg["trainer"]["strategy"] == "fsdp" and before.get("trainer", {}).get("strategy") in ("auto", "ddp"):
        # Lightning would count the optimizer's parameters in the model's order, and ours are in that of its groups.
        expected = f"auto or ddp, since the optimizer of {run_dir} was whole"
        raise ConfigError("trainer.strategy", "fsdp", expected, "go on without it, or train anew")
    if step >= cfg["trainer"]["max_steps"]:
        expected = f"more than the {step} steps that {run_dir} has done already"
        raise ConfigError("trainer.max_steps", cfg["trainer"]["max_steps"], expected)
    beside = path.with_suffix("") / "tokenizer.json"
    if "tokens" not in made_of and beside.is_file():  # of before it was kept
        made_of["tokens"] = tokenizers.load(beside).fingerprint()
    return Resumed(path, run_dir, step, made_of, weights)


def _newest(root: Path) -> Path:
    found = sorted(root.glob("*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    if not found:
        raise CheckpointError(f"resume=latest: no run below {root} has a checkpoint; name a run directory instead.")
    return found[-1]


def _inside_run(path: Path) -> Path:
    inside = path / "checkpoints" / "last.ckpt"
    found = inside if inside.is_file() else path
    if not found.is_file():
        raise CheckpointError(f"resume={path}: neither a run directory with checkpoints/last.ckpt nor a .ckpt file.")
    return found
