"""The checkpoint that ``mode=evaluate`` and ``mode=audit`` are about."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hfa import checkpoint
from hfa.errors import ConfigError
from hfa.models import architectures
from hfa.training.loggers.wandb import download
from hfa.training.settings import EvaluationSettings


def load_artifact(
    settings: EvaluationSettings, cfg: Mapping[str, Any], overrides: Sequence[str], device: str
) -> checkpoint.Artifact:
    """Load what ``checkpoint=`` means, from wandb if need be; ``model=`` says of which architecture.

    Args:
        settings: read from `cfg`.
        cfg: the resolved configuration, plain data.
        overrides: what was chosen on the command line; what was only composed says nothing about a checkpoint.
        device: where its weights go.

    Raises:
        CheckpointError: nothing fits.
        ConfigError: a value of the model or of the tokenizer was chosen, and the checkpoint has another one.
    """
    keys = _keys(overrides)
    target = str(cfg["model"]["_target_"]).rpartition(".")[2]
    named = {kind.__name__: name for name, kind in architectures().items()}.get(target) if "model" in keys else None
    artifact = checkpoint.load(_folder(settings, named), device)
    artifact.model.float()  # as a miner computes, whatever it was trained in
    _check_model(artifact, cfg["model"], named, keys)
    trained = (artifact.provenance.get("config") or {}).get("tokenizer")
    for key in keys:
        if trained and _is_of("tokenizer", key) and cfg["tokenizer"] != trained:
            got, own = (_readable(node) for node in (cfg["tokenizer"], trained))
            raise ConfigError(key, got, f"{own}, as {artifact.path} was trained with", "leave it out")
    return artifact


def as_trained(cfg: Mapping[str, Any], artifact: checkpoint.Artifact, overrides: Sequence[str]) -> dict[str, Any]:
    """`cfg` with the checkpoint's own model and tokenizer in place of those that were composed.

    So with its name, unless the command line has one.
    """
    trained = artifact.provenance.get("config") or {}
    own = {"model", "tokenizer", *({"name"} - set(_keys(overrides)))}
    return {**cfg, **{key: value for key, value in trained.items() if key in own}}


def _keys(overrides: Sequence[str]) -> list[str]:
    return [override.lstrip("+~").partition("=")[0] for override in overrides]


def _is_of(group: str, key: str) -> bool:
    return key == group or key.startswith(f"{group}.")


def _folder(settings: EvaluationSettings, architecture: str | None) -> Path:
    if settings.checkpoint.startswith("wandb:"):
        return download(settings.checkpoint, settings.cache)
    return checkpoint.resolve(settings.checkpoint, architecture=architecture, root=Path(settings.output_dir))


def _check_model(
    artifact: checkpoint.Artifact, chosen: Mapping[str, Any], named: str | None, keys: Sequence[str]
) -> None:
    there = artifact.model.config
    if named not in (None, there.name):
        raise ConfigError("model", named, f"{there.name}, the architecture of {artifact.path}", "leave it out")
    if named and getattr(there, "architecture", None) != chosen.get("architecture"):  # of transformers
        expected = f"{there.architecture}, as {artifact.path} is"  # type: ignore[attr-defined]
        raise ConfigError("model.architecture", chosen["architecture"], expected, "leave it out")
    own = json.loads(json.dumps(there.to_dict()))  # lists, as YAML has them
    for key in keys:
        field = key.removeprefix("model.").partition(".")[0]
        if key.startswith("model.") and chosen.get(field) != own.get(field):
            expected = f"{own.get(field)!r}, as in {artifact.path}"
            raise ConfigError(f"model.{field}", chosen.get(field), expected, "leave it out")


def _readable(node: Mapping[str, Any]) -> str:
    """``BPE, vocab_size=8192, train_bytes=20000000``: what a tokenizer's node says."""
    values = {name: value for name, value in node.items() if name != "_target_"}
    name = str(node.get("_target_")).rpartition(".")[2].removesuffix("Config")
    return name + "".join(f", {key}={value}" for key, value in values.items())
