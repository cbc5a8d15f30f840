"""Train HFA without one part at a time, and measure recall and bits per byte.

Options are those of experiments.language, and so is everything else but the list of variants.
"""

from __future__ import annotations

from pathlib import Path

from experiments.ablations.setting import EXPERIMENT, PARAMETERS, RECALL, TEXT
from experiments.entry import leave
from experiments.language.command import command
from experiments.language.variant import Variant

VARIANTS = {
    "hfa": Variant(title="HFA", overrides=("model=hfa",)),
    "no-flow": Variant(title="without the flow", overrides=("model=hfa", "model.pattern=[anchor]")),
    "no-anchors": Variant(title="without anchors", overrides=("model=hfa", "model.pattern=[flow]")),
    "no-retrieval": Variant(title="window only", overrides=("model=hfa", "model.num_retrieved=0", "model.read_all=0")),
    "no-convolution": Variant(title="without short convolutions", overrides=("model=hfa", "model.conv_width=1")),
    "no-match-init": Variant(title="without match-init", overrides=("model=ablated/hfa", "model.match_init=false")),
    "summaries": Variant(
        title="block summaries in place of codes", overrides=("model=ablated/hfa", "model.selection=summaries")
    ),
    "mixture": Variant(
        title="a mixture over blocks in place of one softmax",
        overrides=("model=ablated/hfa", "model.softmax=mixture"),
        evaluation=("evaluate.lengths=[512]",),  # its cost is quadratic
    ),
    "unread": Variant(title="HFA, retrieval off when measured", trained_as="hfa", edits={"num_retrieved": 0}),
}

if __name__ == "__main__":
    leave(
        lambda: command(
            "ablations",
            description=__doc__,
            experiment=EXPERIMENT,
            parameters=PARAMETERS,
            variants=VARIANTS,
            folder=Path(__file__).parent,
            evaluation=(*RECALL, "evaluate.lengths=[512,16384]", "evaluate.num_examples=16", TEXT),
        )
    )
