"""Mine: serve trained models on a subnet, `python mine.py --help`."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from hfa.errors import PASSING, PassingError
from hfa.mistakes import is_override, sentence
from hfa.serving.flags import translate

MAIN = Path(__file__).parent / "conf" / "mine.yaml"
CRASHED, LATER = 70, 75  # EX_SOFTWARE and EX_TEMPFAIL of sysexits.h
TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR") == "1"


@hydra.main(version_base="1.3", config_path="conf", config_name="mine")
def mine(cfg: DictConfig) -> None:
    """Compose, load, serve."""
    sys.exit(run(lambda: serve(cfg)))  # inside, so that Hydra does not report what is no error of its own


def serve(cfg: DictConfig) -> None:
    """Load and serve until told to stop."""
    values: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    from hfa.allocator import share_arenas
    from hfa.config import from_mapping
    from hfa.serving.miner import MinerConfig
    from hfa.serving.server import allow_files

    share_arenas()  # before there are threads, of the whole process

    values["checkpoint"] = _downloaded(values["checkpoint"], Path(values["checkpoint_root"]).expanduser())
    config = from_mapping(MinerConfig, values, "")
    allow_files(config.server.max_connections)  # of the whole process, too
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
        The exit code: 0; 1 for a hotkey that is not registered, 2 for what a user got wrong; 70 for what is our fault,
        and 75 for what passes, as a chain that is away or a disk that is full: those two are worth another start; 130
        when interrupted.
    """
    try:
        task()
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        said = sentence(error, MAIN)
        if said is None or TRACEBACKS:
            traceback.print_exc()
        else:
            sys.stderr.write(f"{said}\n")
        return CRASHED if said is None and not _is_systems(error) else _code(error)
    return 0


def _is_systems(error: Exception) -> bool:
    """Whether the system said so; some of Hydra's errors are OSErrors, too."""
    return isinstance(error, OSError) and error.errno is not None


def _code(error: Exception) -> int:
    if isinstance(error, OSError) and _is_systems(error):
        return LATER if error.errno in PASSING else CRASHED if error.filename is None else 2
    return LATER if isinstance(error, PassingError) else 1 if type(error).__name__ == "NotRegisteredError" else 2


def main() -> int:
    """The command line."""

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # else threads that wait take the cores from those that work
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands its errors on, and they become sentences in `run`

    def task() -> None:
        sys.argv[1:] = sorted(translate(sys.argv[1:]), key=is_override)
        mine()

    return run(task)


if __name__ == "__main__":
    sys.exit(main())
