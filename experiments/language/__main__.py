"""Train, measure and compare every model on the same text.

Each run is a command that is printed before it starts. A run that is in the results already is not made again, so
the command goes on where it was cut off.
"""

from __future__ import annotations

from pathlib import Path

from experiments.entry import leave
from experiments.language.command import command
from experiments.language.models import PARAMETERS, VARIANTS

if __name__ == "__main__":
    leave(
        lambda: command(
            "language",
            description=__doc__,
            experiment="language",
            parameters=PARAMETERS,
            variants=VARIANTS,
            folder=Path(__file__).parent,
        )
    )
