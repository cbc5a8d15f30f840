"""`python -m experiments.language.baseline`: could the Transformer be better? One setting changed at a time.

Options and results are those of experiments.language. `--sweep --lrs 2e-3`, with the rate that it found, trains each
once.
"""

from __future__ import annotations

from pathlib import Path

from experiments.entry import leave
from experiments.language.command import command
from experiments.language.models import PARAMETERS, TRANSFORMER
from experiments.language.variant import Variant

VARIANTS = {
    "transformer": Variant(title="as compared", overrides=TRANSFORMER),
    "heads-2": Variant(title="2 heads of 64", overrides=("model=transformer", "model.num_heads=2")),
    "rope-1000": Variant(title="RoPE base 1,000", overrides=(*TRANSFORMER, "model.rope_base=1000.0")),
    "no-decay": Variant(title="no weight decay", overrides=(*TRANSFORMER, "optimizer.weight_decay=0.0")),
    "layers-6": Variant(title="6 layers", overrides=(*TRANSFORMER, "model.num_layers=6")),
}

if __name__ == "__main__":
    leave(
        lambda: command(
            "baseline",
            description=__doc__,
            experiment="language",
            parameters=PARAMETERS,
            variants=VARIANTS,
            folder=Path(__file__).parent,
        )
    )
