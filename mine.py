"""Mine: serve trained models on a subnet, `python mine.py --help`."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hfa.errors import HFAError
from hfa.serving.flags import translate

CONF = Path(__file__).parent / "conf"
TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR") == "1"


@hydra.main(version_base="1.3", config_path="conf", config_name="mine")
def mine(cfg: DictConfig) -> None:
    """Compose, load, serve."""
    sys.exit(run(lambda: serve(cfg)))  # inside, so that Hydra does not report what is no error of its own


def serve(cfg: DictConfig) -> None:
    """Load and serve until told to stop."""
    values: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    from hfa.config import from_mapping
    from hfa.serving.miner import MinerConfig

    values["checkpoint"] = _downloaded(values["checkpoint"], Path(values["checkpoint_root"]).expanduser())
    config = from_mapping(MinerConfig, values, "")
    with config.build() as miner:
        miner.run()


def _downloaded(checkpoint: Any, root: Path) -> Any:
    """The folder of an artifact that wandb keeps; other checkpoints are there already."""
    if not str(checkpoint).startswith("wandb:"):
        return checkpoint
    from hfa.training.loggers.wandb import download

    return str(download(checkpoint, root))


def run(task: Callable[[], Any]) -> int:
    """Run a task; what a user got wrong is one sentence, and a traceback only with HYDRA_FULL_ERROR=1.

    Returns:
        The exit code: 0, 1 for a hotkey that is not registered, 2 for what a user got wrong, 130 when interrupted.
    """
    try:
        task()
    except (HFAError, HydraException, OmegaConfBaseException) as error:
        if TRACEBACKS:
            raise
        sys.stderr.write(f"{_sentence(error)}\n")
        return 1 if type(error).__name__ == "NotRegisteredError" else 2
    except OSError as error:
        if TRACEBACKS or error.filename is None:
            raise
        sys.stderr.write(f"{error.filename}: {error.strerror}; name another place or change its permissions.\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _sentence(error: Exception) -> str:
    text = str(error)
    if isinstance(error, HFAError):
        return text
    if missing := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{missing[1]}: no value; set it with {missing[1]}=VALUE."
    if option := re.search(r"Could not find '([^/']+)/(.+)'\s+Available options in '.+':((?:\n\t.+)+)", text):
        return f"{option[1]}: got {option[2]!r}, expected one of {', '.join(option[3].split())}."
    if override := re.search(r"Error parsing override '(.*)'", text):
        return f"{override[1]}: got no value, expected key=value."
    if unknown := re.search(r"Could not override '([^']+)'", text):
        close = difflib.get_close_matches(unknown[1], list(_known_keys()), n=1)
        remedy = f"did you mean {close[0]}?" if close else "`python mine.py --help` lists all keys."
        return f"{unknown[1]}: no such key; {remedy}"
    return _first_line(error)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _known_keys() -> Iterator[str]:
    yield from _paths(yaml.safe_load((CONF / "mine.yaml").read_text()))
    for group in ("engine", "network"):
        for option in (CONF / group).glob("*.yaml"):
            yield from (f"{group}.{key}" for key in _paths(yaml.safe_load(option.read_text())))


def _paths(values: Mapping[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        yield key
        if isinstance(value, Mapping):
            yield from (f"{key}.{inner}" for inner in _paths(value))


def main() -> int:
    """The command line."""

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands its errors on, and they become sentences in `run`

    def task() -> None:
        sys.argv[1:] = translate(sys.argv[1:])
        mine()

    return run(task)


if __name__ == "__main__":
    sys.exit(main())
