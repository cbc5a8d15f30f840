"""Where a number comes from: commit, configuration, seed, command, machine, date."""

from __future__ import annotations

import functools
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import torch


def provenance(cfg: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """JSON-able facts about this run.

    Args:
        cfg: the resolved configuration.
        more: what else belongs in it, e.g. ``step`` and ``metrics``.
    """
    commit, dirty = _git()
    return {
        "commit": commit,
        "dirty": dirty,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": _command(),
        "seed": cfg["seed"],
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "device": _device(cfg),
        "threads": torch.get_num_threads(),
        "config": dict(cfg),
        **more,
    }


def _device(cfg: Mapping[str, Any]) -> str:
    """What runs on, by its name: a GPU that is there and was not asked for is idle."""
    chosen = (cfg.get("trainer") or {}).get("accelerator")
    return torch.cuda.get_device_name() if torch.cuda.is_available() and chosen != "cpu" else processor()


def processor() -> str:
    """The processor's own name, where the system says it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _command() -> str:
    """What was typed: a module that was run as one by its name, not by the path of its file on this machine."""
    found = getattr(sys.modules.get("__main__"), "__spec__", None)
    name = found.name.removesuffix(".__main__") if found and found.name != "__main__" else None  # a folder is a script
    return shlex.join(["python", *(("-m", name) if name else sys.argv[:1]), *sys.argv[1:]])


@functools.cache  # a commit that is made while a run goes on is not of the code that runs
def _git() -> tuple[str | None, bool | None]:
    """The commit of this package's checkout and whether files differ from it; None outside a checkout.

    Recorded results do not count: a study that adds to its own is made by the same code as before.
    """
    root = str(Path(__file__).parents[2])
    try:
        commit = _run("git", "-C", root, "rev-parse", "HEAD")
        code = (".", ":(exclude)experiments/*/results/*")
        return commit, bool(_run("git", "-C", root, "status", "--porcelain", "--untracked-files=no", "--", *code))
    except (OSError, subprocess.SubprocessError):
        return None, None


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
