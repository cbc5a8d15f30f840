"""What went wrong on the command line, in one sentence.

Hydra's and OmegaConf's errors are known here by name and text, so that only entry points import those packages.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from hfa.errors import PASSING, HFAError, first_line

# Launchers and sweepers that are plugins, and the extra that installs each.
EXTRAS = {
    "hydra/launcher/joblib": "joblib",
    "hydra/launcher/ray": "ray",
    "hydra/launcher/ray_aws": "ray",
    "hydra/launcher/submitit_local": "submitit",
    "hydra/launcher/submitit_slurm": "submitit",
    "hydra/sweeper/optuna": "optuna",
}


def sentence(error: BaseException, main: Path | None = None) -> str | None:
    """What the user has to know about `error`; None when it is not the user's.

    Args:
        error: what was raised while composing or running.
        main: the YAML that was composed, ``conf/train.yaml`` say, to find the key that was meant; None does not look.
    """
    if isinstance(error, HFAError):
        return str(error)
    module, text = type(error).__module__.partition(".")[0], str(error).splitlines()
    if isinstance(error, OSError) and error.errno in PASSING:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}; see to that on this machine, and start again."
    if module == "builtins" and isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; name another place or change its permissions."
    if module not in ("hydra", "omegaconf") or type(error).__name__ == "InstantiationException" or not text:
        return None
    match type(error).__name__:
        case "MissingConfigException":
            return _no_such_option(error)
        case "ConfigCompositionException":
            return _no_such_key(text, main)
        case "OverrideParseException":
            override, reason = getattr(error, "override", ""), text[0].lower()
            return f"{override!r} is not understood ({reason}); write key=value, in quotes if a shell may change it."
        case "MissingMandatoryValue":
            return f"{getattr(error, 'full_key', '')}: no value yet, and it must have one; set it on the command line."
    key = getattr(error, "full_key", None)
    return f"{key}: {text[0]}." if key else f"{text[0].rstrip('.')}."


def is_override(argument: str) -> bool:
    """Whether it is a ``key=value``, ``+key=value`` or ``~key``, and no flag, which argparse wants first."""
    return argument.startswith("~") or ("=" in argument and not argument.startswith("-"))


def no_such_flag(argument: str) -> HFAError:
    """The error about a flag that is none, e.g. ``--lr=0.1``: values are written without dashes here."""
    name, equals, value = argument.lstrip("-").partition("=")
    example = f"{name.replace('-', '_')}={value if equals else 'VALUE'}"
    return HFAError(f"{argument}: there is no such flag; values are set without dashes, as in {example}.")


def _no_such_option(error: BaseException) -> str:
    wanted = str(getattr(error, "missing_cfg_file", ""))
    group, _, option = wanted.rpartition("/")
    if wanted in EXTRAS:
        return f"{group}={option}: it is not installed; pip install 'hfa[{EXTRAS[wanted]}]'."
    options = list(getattr(error, "options", None) or [])
    if not options:
        return f"{first_line(error)}."
    return f"{group}: no option {option!r}; {_closest(option, options)}choose one of {', '.join(options)}."


def _no_such_key(text: list[str], main: Path | None) -> str:
    first = text[0]
    key = first.partition("'")[2].partition("'")[0]
    if first.startswith("Ambiguous value"):
        name, _, values = key.partition("=")
        return f"{name}: got several values, {values}; add -m to run one job for each, or write [{values}] for a list."
    if first.startswith("Could not override"):
        close = _closest(key, keys(main)) if main else ""
        program = f"{main.stem if main else 'train'}.py"
        return f"{key}: there is no such key; {close.strip() or f'python {program} --cfg job shows all there are.'}"
    return f"{' '.join(line.strip() for line in text if line.strip()).rstrip('.')}."


def _closest(word: str, there: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(there), n=1, cutoff=0.7)
    return f"did you mean {close[0]}? " if close else ""


def keys(main: Path) -> list[str]:
    """Every dotted key that `main`, or some option of a group it composes, has; and the names of the groups."""
    composed = _read(main)
    found = set(_flatten(composed, ""))
    groups = {name for entry in composed.get("defaults", []) if isinstance(entry, Mapping) for name in entry}
    for group in groups:
        found.add(group)
        for option in () if group == "experiment" else (main.parent / group).glob("*.yaml"):
            found |= set(_flatten(_read(option), group))
    return sorted(found)


def _read(path: Path) -> Mapping[str, Any]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content if isinstance(content, Mapping) else {}


def _flatten(node: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, value in node.items():
        if name not in ("defaults", "_target_"):
            key = f"{prefix}.{name}" if prefix else name
            yield key
            if isinstance(value, Mapping):
                yield from _flatten(value, key)
