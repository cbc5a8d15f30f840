"""Train HFA, SimpleMind and what lies between them at equal parameters: recall at 64K, bits per byte, speed.

Options are those of experiments.language. Layers are routed (SimpleMind's), flow or anchor (HFA's), from the first to
the last.
"""

from __future__ import annotations

import sys
from pathlib import Path

from experiments.language.command import command
from experiments.language.variant import Variant

PATTERNS = (
    ("flow", "flow", "anchor"),  # HFA
    ("routed", "routed", "anchor"),
    ("routed", "flow", "anchor"),
    ("flow", "routed", "anchor"),
    ("routed", "anchor", "routed"),
    ("anchor", "routed", "routed"),
    ("routed", "routed", "routed"),  # SimpleMind
)
VARIANTS = {
    "-".join(pattern): Variant(
        title=", ".join(pattern), overrides=("model=hybrid", f"model.pattern=[{','.join(pattern)}]")
    )
    for pattern in PATTERNS
}
PARAMETERS = 1_680_000  # of which 1,050,000 embed the vocabulary of the recall tasks

if __name__ == "__main__":
    sys.exit(
        command(
            "ablations-hybrid",
            description=__doc__,
            experiment="retention",
            parameters=PARAMETERS,
            variants=VARIANTS,
            folder=Path(__file__).parent,
            evaluation=("evaluate.lengths=[1024,65536]",),
        )
    )
