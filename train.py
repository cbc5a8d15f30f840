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

CONF = Path(__file__).parent / "conf"
FULL_ERROR = os.environ.get("HYDRA_FULL_ERROR") == "1"


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
        from hfa.training import run

        return run(plain, Path(context.runtime.output_dir), interactive=not sweeping)
    except Exception as error:
        if not sweeping:  # of a sweep's job hfa.training.sweep takes note, and the others go on
            leave_if_mistaken(error)
        raise


def leave_if_mistaken(error: Exception) -> None:
    """One sentence and exit code 2, unless the error is not the user's or a traceback is wanted."""
    from hfa.training.mistakes import sentence

    if (said := sentence(error, CONF)) and not FULL_ERROR:
        sys.stderr.write(f"{said}\n")
        sys.exit(2)


def main() -> None:
    """The command line."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands errors on instead of printing them
    # Flags may stand anywhere: argparse wants them before the overrides.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda argument: "=" in argument and not argument.startswith("-"))
    _, unknown = get_args_parser().parse_known_args()
    try:
        if unknown:
            from hfa.training.mistakes import no_such_flag

            raise no_such_flag(unknown[0])
        job()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        leave_if_mistaken(error)
        raise


if __name__ == "__main__":
    main()
