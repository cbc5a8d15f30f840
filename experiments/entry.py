"""How a study's command begins and ends: its name in the usage line, and what went wrong in one sentence."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from hfa.config import MAX_SEED
from hfa.errors import ConfigError
from hfa.mistakes import sentence

FAILED, MISTAKEN, INTERRUPTED = 1, 2, 130


def program() -> str:
    """``python -m experiments.NAME``, as it was called."""
    spec = sys.modules["__main__"].__spec__
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else sys.argv[0]


def at_least(key: str, values: Sequence[float], least: float) -> None:
    """Raises ConfigError for an option of which a value is below `least`, or is no number."""
    for value in values:
        if not value >= least:
            raise ConfigError(key, value, f"at least {least:g}")


def check_seeds(seeds: Sequence[int], key: str = "--seeds") -> None:
    """Raises ConfigError unless train.py takes each of them."""
    for seed in seeds:
        if not 0 <= seed <= MAX_SEED:
            raise ConfigError(key, seed, f"a whole number from 0 to {MAX_SEED}")


def leave(main: Callable[[], int], interrupted: str = "Interrupted; what was finished is kept.") -> NoReturn:
    """Run a study and exit: with 2 after what a user got wrong, with 1 after a step of the study that failed.

    Args:
        main: gives the exit code.
        interrupted: what to say after Ctrl-C.
    """
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        code, said = INTERRUPTED, interrupted
    except subprocess.CalledProcessError as error:
        code, said = FAILED, f"`{shlex.join(map(str, error.cmd))}` failed with exit code {error.returncode}."
    except Exception as error:
        known = sentence(error)
        if known is None:
            raise
        code, said = MISTAKEN, known
    sys.stderr.write(f"{said}\n")
    sys.exit(code)
