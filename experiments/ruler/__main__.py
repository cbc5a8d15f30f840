"""Train models on RULER's tasks in contexts of 1,024 bytes, and measure what they retain in longer ones.

Options and results are those of experiments.language.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from experiments.entry import leave
from experiments.language import models
from experiments.language.command import command

EXPERIMENT = "ruler"
PARAMETERS = models.PARAMETERS
VARIANTS = {
    name: models.VARIANTS[name] for name in ("transformer", "hfa", "hfa-unread", "delta", "simplemind", "hybrid")
}
SHORTER = ("evaluate.lengths=[1024,4096]",)  # of what takes seconds for each example of 16,384
VARIANTS["transformer"] = dataclasses.replace(VARIANTS["transformer"], evaluation=SHORTER)

if __name__ == "__main__":
    leave(
        lambda: command(
            EXPERIMENT,
            description=__doc__,
            experiment=EXPERIMENT,
            parameters=PARAMETERS,
            variants=VARIANTS,
            folder=Path(__file__).parent,
        )
    )
