"""Train or evaluate one language model, or sweep over many: ``python train.py --help``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from hfa.mistakes import is_override, no_such_flag, sentence

MAIN = Path(__file__).parent / "conf" / "train.yaml"
# What the user set, before `main` sets it; the further processes of a distributed run inherit both.
FULL_ERROR = os.environ.setdefault("HFA_FULL_ERROR", os.environ.get("HYDRA_FULL_ERROR", "")) == "1"


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def job(cfg: DictConfig) -> float | None:
    """One run: compose -> build -> fit or evaluate.

    Returns:
        The monitored metric, which a sweeper may optimise.
    """
    context = HydraConfig.get()
    sweeping = context.mode == RunMode.MULTIRUN
    try:
        plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
        from hfa.allocator import keep_freed_memory
        from hfa.training import run

        keep_freed_memory()  # of the whole process, so here and not in what a test or a notebook calls
        chosen = list(context.overrides.task)
        return run(plain, Path(context.runtime.output_dir), overrides=chosen, interactive=not sweeping)
    except Exception as error:
        if not sweeping:  # of a sweep's job hfa.training.sweep takes note, and the others go on
            leave_if_mistaken(error)
        raise


def leave_if_mistaken(error: Exception) -> None:
    """One sentence and exit code 2, unless the error is not the user's or a traceback is wanted."""
    if (said := sentence(error, MAIN)) and not FULL_ERROR:
        sys.stderr.write(f"{said}\n")
        sys.exit(2)


def main() -> None:
    """The command line."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # else threads that wait take the cores from those that work
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands errors on instead of printing them
    sys.argv[1:] = sorted(sys.argv[1:], key=is_override)
    _, unknown = get_args_parser().parse_known_args()
    try:
        if unknown:
            raise no_such_flag(unknown[0])
        job()
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        sys.exit(130)
    except Exception as error:
        leave_if_mistaken(error)
        raise


if __name__ == "__main__":
    main()
