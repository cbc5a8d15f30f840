"""Train HFA, SimpleMind and what lies between them at equal parameters: recall at 64K, bits per byte, speed.

Options are those of experiments.language. Layers are routed (SimpleMind's), flow or anchor (HFA's), from the first to
the last.
"""

from __future__ import annotations

from pathlib import Path

from experiments.ablations.setting import EXPERIMENT, PARAMETERS, RECALL, TEXT
from experiments.entry import leave
from experiments.language.command import command
from experiments.language.variant import Variant

PATTERNS = (
    ("flow", "flow", "anchor", "flow"),  # HFA
    ("routed", "routed", "anchor", "routed"),
    ("routed", "anchor", "routed", "anchor"),
    ("routed", "anchor", "routed", "routed"),
    ("routed", "routed", "routed", "anchor"),
    ("routed", "flow", "anchor", "routed"),
    ("flow", "routed", "anchor", "flow"),
    ("routed", "routed", "routed", "routed"),  # SimpleMind
)
VARIANTS = {
    "-".join(pattern): Variant(
        title=", ".join(pattern), overrides=("model=hybrid", f"model.pattern=[{','.join(pattern)}]")
    )
    for pattern in PATTERNS
}

if __name__ == "__main__":
    leave(
        lambda: command(
            "ablations-hybrid",
            description=__doc__,
            experiment=EXPERIMENT,
            parameters=PARAMETERS,
            variants=VARIANTS,
            folder=Path(__file__).parent,
            evaluation=(*RECALL, "evaluate.lengths=[512,65536]", "evaluate.num_examples=4", TEXT),
        )
    )
