"""Train SimpleMind with one part changed at a time (`hard` beside `active-16`), and measure recall and bits per byte.

Options are those of experiments.language. Recall by the size of the state is ``python -m experiments.state``'s
question, whose ``--models`` knows the same changes.
"""

from __future__ import annotations

from pathlib import Path

from experiments.ablations.setting import EXPERIMENT, PARAMETERS, RECALL, TEXT
from experiments.entry import leave
from experiments.language.command import command
from experiments.language.variant import Variant

SIMPLEMIND = "model=simplemind"


def changed(title: str, *overrides: str) -> Variant:
    """SimpleMind with other settings."""
    return Variant(title=title, overrides=(SIMPLEMIND, *(f"model.{override}" for override in overrides)))


VARIANTS = {
    "simplemind": changed("SimpleMind"),
    "hard": changed("hard router, 16 channels", "router=hard", "active_channels=16"),
    "soft": changed("soft router", "router=soft"),
    "sum": changed("sums", "aggregation=sum"),
    "mean": changed("means", "aggregation=mean"),
    "channels-32": changed("32 channels", "num_channels=32", "active_channels=31"),
    "channels-128": changed("128 channels", "num_channels=128", "active_channels=127"),
    "channels-256": changed("256 channels", "num_channels=256", "active_channels=255"),
    "active-4": changed("4 active channels", "active_channels=4"),
    "active-16": changed("16 active channels", "active_channels=16"),
    "active-32": changed("32 active channels", "active_channels=32"),
    "unsigned": changed("scores above zero alone", "signed=false"),
    "shared": changed("a shared channel", "shared_channel=true", "active_channels=62"),
    "ungated": changed("no output gate", "output_gate=false"),
}

if __name__ == "__main__":
    leave(
        lambda: command(
            "ablations-simplemind",
            description=__doc__,
            experiment=EXPERIMENT,
            parameters=PARAMETERS,
            variants=VARIANTS,
            folder=Path(__file__).parent,
            evaluation=(*RECALL, "evaluate.lengths=[512,2048]", "evaluate.num_examples=16", TEXT),
        )
    )
