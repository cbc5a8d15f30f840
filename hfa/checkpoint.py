"""The artifact: a folder of JSON and safetensors that is trained once and deployed as it is.

    config.json        format, architecture, model sizes, tokenizer, provenance, size and hash of the weights
    model.safetensors  the weights
    tokenizer.json     the tokenizer
    README.md          a model card, written from the above

Loading executes nothing from it: the architecture is looked up by name among this package's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch

from hfa.config import from_mapping
from hfa.data import tokenizers
from hfa.errors import CheckpointError, ConfigError, first_line
from hfa.models import LanguageModel, architectures
from hfa.types import Tokenizer

FORMAT = 1
_CONFIG, _WEIGHTS, _TOKENIZER, _CARD = "config.json", "model.safetensors", "tokenizer.json", "README.md"
_MAX_CONFIG_BYTES = 4 << 20


class Artifact(NamedTuple):
    """What an artifact holds, ready to run."""

    model: LanguageModel  # in eval mode
    tokenizer: Tokenizer
    provenance: dict[str, Any]
    path: Path


def save(folder: Path, *, model: LanguageModel, tokenizer: Tokenizer, provenance: Mapping[str, Any]) -> Path:
    """Write an artifact; whenever the process is killed, `load` finds the old one or the new one, whole.

    Args:
        folder: where it will stand; an artifact that is there is replaced.
        model: its weights are written in their dtype.
        tokenizer: the one the model was trained with.
        provenance: JSON-able: git commit, resolved config, data, seed, metrics.

    Returns:
        `folder`.
    """
    folder = Path(folder)
    fresh, old = _sibling(folder, "new"), _sibling(folder, "old")
    if (standing := _standing(folder)) != folder:
        standing.rename(folder)
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    safetensors.torch.save_file(weights, fresh / _WEIGHTS)
    tokenizer.save(fresh / _TOKENIZER)
    description = {
        "format": FORMAT,
        "architecture": model.config.name,
        "model": model.config.to_dict(),
        "tokenizer": {"name": tokenizer.name, "vocab_size": tokenizer.vocab_size},
        "parameters": model.num_parameters,
        "weights": {"bytes": (fresh / _WEIGHTS).stat().st_size, "sha256": _sha256(fresh / _WEIGHTS)},
        "provenance": dict(provenance),
    }
    (fresh / _CARD).write_text(_card(description), encoding="utf-8")
    (fresh / _CONFIG).write_text(json.dumps(description, indent=2, sort_keys=True), encoding="utf-8")
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def load(folder: Path, device: str | torch.device = "cpu") -> Artifact:
    """Read an artifact.

    Raises:
        CheckpointError: it is missing, torn, foreign, or of a newer format.
    """
    folder = _standing(Path(folder))
    description = read_config(folder)
    known = architectures()
    name = description.get("architecture")
    if not isinstance(name, str) or name not in known:
        raise CheckpointError(f"{folder}: architecture {name!r} is not one of {', '.join(known)}.")
    weights = _checked_weights(folder, description)
    try:
        with torch.device("meta"):
            model = from_mapping(known[name], description["model"], f"{folder.name}/{_CONFIG}: model").build()
        if strange := sorted(model.state_dict().keys() ^ weights.keys()):
            found = f"its weights are not those of this version's {name} of these sizes ({strange[0]})"
            remedy = "train it anew, or use the commit that its provenance names"
            raise CheckpointError(f"{folder}: {found}; {remedy}.")
        model.load_state_dict(weights, assign=True)
    except (ConfigError, RuntimeError, TypeError, OverflowError) as error:  # of sizes beyond any machine, torch's own
        reason = first_line(error)
        raise CheckpointError(f"{folder}: the weights and the sizes in {_CONFIG} disagree ({reason}).") from None
    tokenizer = tokenizers.load(folder / _TOKENIZER)
    return Artifact(model.to(device).eval(), tokenizer, description["provenance"], folder)


def read_config(folder: Path) -> dict[str, Any]:
    """The artifact's config.json, without its weights.

    Raises:
        CheckpointError: there is no artifact, or config.json is not one's.
    """
    folder = Path(folder)
    path = folder / _CONFIG
    try:
        path = _standing(folder) / _CONFIG
        if not path.is_file():
            raise CheckpointError(f"{folder}: no artifact here (no {_CONFIG}); train one, or name another folder.")
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError(f"larger than {_MAX_CONFIG_BYTES} bytes")
        description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(description[key], dict) for key in ("model", "weights", "provenance")):
            raise ValueError("no model, weights and provenance in it")
        if not isinstance(description["provenance"].get("step"), int | None):
            raise ValueError("its provenance has a step that is no number")
        if "_target_" in json.dumps(description["model"]):  # it would be looked up, and perhaps called
            raise ValueError("a model may name no _target_")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path}: not an artifact's config ({error}); the file is torn or foreign.") from None
    if description.get("format") != FORMAT:
        got = description.get("format")
        raise CheckpointError(f"{folder}: artifact format {got!r}, this version reads {FORMAT}; save it again.")
    return description


def resolve(spec: str, *, architecture: str | None, root: Path) -> Path:
    """The folder that `checkpoint=spec` means.

    Args:
        spec: ``latest`` or ``best`` (the newest artifact of that kind below `root`), or a folder.
        architecture: take only artifacts of this one; None for any.
        root: where runs are kept.

    Raises:
        CheckpointError: nothing fits.
    """
    if spec not in ("latest", "best"):
        return _inside_run(Path(spec))
    kind = "last" if spec == "latest" else "best"
    fitting: list[tuple[int, Path]] = []
    for path in artifacts(root):
        with contextlib.suppress(CheckpointError, OSError):  # it was there a moment ago
            if path.name == kind and architecture in (None, read_config(path).get("architecture")):
                fitting.append(((_standing(path) / _CONFIG).stat().st_mtime_ns, path))
    if not fitting:
        what = f"{architecture} artifact" if architecture else "artifact"
        raise CheckpointError(
            f"checkpoint={spec}: no {what} below {root}; train one with `python train.py"
            f"{f' model={architecture}' if architecture else ''}`, or give its folder."
        )
    return max(fitting)[1]


def artifacts(root: Path) -> Iterator[Path]:
    """The folders of all readable artifacts below `root`; torn ones are reported when asked for by name."""
    for path in sorted({_visible(weights.parent) for weights in Path(root).rglob(_WEIGHTS)}):
        try:
            read_config(path)
        except CheckpointError:
            continue
        yield path


def _inside_run(path: Path) -> Path:
    """A run's folder stands for the last artifact in it."""
    last = path / "checkpoints" / "last"
    return last if _standing(last).is_dir() and not _standing(path).joinpath(_CONFIG).exists() else path


def _checked_weights(folder: Path, description: dict[str, Any]) -> dict[str, torch.Tensor]:
    path, expected = folder / _WEIGHTS, description["weights"]
    try:  # not mapped: a file that is cut short while it serves would take the process with it
        content = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: {_WEIGHTS} is missing; the artifact is torn.") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from None
    if len(content) != expected.get("bytes") or hashlib.sha256(content).hexdigest() != expected.get("sha256"):
        raise CheckpointError(f"{path}: not the weights that {_CONFIG} describes; the file is torn or was changed.")
    try:
        return safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error}).") from None


def _sibling(folder: Path, kind: str) -> Path:
    return folder.with_name(f".{folder.name}.{kind}")


def _visible(folder: Path) -> Path:
    """The folder that a hidden sibling belongs to; any other folder as it is."""
    name, _, kind = folder.name[1:].rpartition(".")
    return folder.with_name(name) if folder.name.startswith(".") and name and kind in ("new", "old") else folder


def _standing(folder: Path) -> Path:
    """Where the artifact is: in `folder`, or still beside it when a save was cut off between its two renames."""
    if folder.exists():
        return folder
    fresh = _sibling(folder, "new")
    return fresh if (fresh / _CONFIG).is_file() else folder


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _card(description: dict[str, Any]) -> str:
    provenance = description["provenance"]
    sizes = "\n".join(f"| {key} | {value} |" for key, value in description["model"].items())
    metrics = "\n".join(f"| {key} | {value} |" for key, value in (provenance.get("metrics") or {}).items())
    facts = "\n".join(
        f"- {key}: `{provenance[key]}`" for key in ("commit", "command", "seed", "step", "date") if key in provenance
    )
    return f"""# {description["architecture"]}, {description["parameters"]:,} parameters

{facts or "- no provenance was given"}
- tokenizer: {description["tokenizer"]["name"]}, {description["tokenizer"]["vocab_size"]} ids

| size | value |
| --- | --- |
{sizes}

| metric | value |
| --- | --- |
{metrics or "| none | |"}

Load it with `hfa.checkpoint.load(folder)`; serve it with `python mine.py checkpoint=FOLDER`.
"""
