"""Which models the study compares, and how large they are."""

from __future__ import annotations

from experiments.language.variant import Variant

TRANSFORMER = ("model=transformer", "model.num_heads=4")  # of 32: better than 2 of 64, see README.md
VARIANTS = {
    "transformer": Variant(title="Transformer", overrides=TRANSFORMER),
    "transformer-conv": Variant(title="Transformer with conv", overrides=(*TRANSFORMER, "model.conv_width=4")),
    "hfa": Variant(title="HFA", overrides=("model=hfa",)),
    "hfa-unread": Variant(title="HFA, retrieval off", trained_as="hfa", edits={"num_retrieved": 0}),
    "hfa-constant": Variant(title="HFA, logit scale not growing", trained_as="hfa", edits={"logn_length": 1 << 40}),
    "delta": Variant(title="Gated delta rule: HFA without anchors", overrides=("model=hfa", "model.pattern=[flow]")),
    "simplemind": Variant(title="SimpleMind", overrides=("model=simplemind",)),
    "hybrid": Variant(title="Hybrid", overrides=("model=hybrid",)),
    "hybrid-alternating": Variant(
        title="Hybrid, an anchor every other layer", overrides=("model=hybrid", "model.pattern=[routed,anchor]")
    ),
    "llama": Variant(title="Llama, of transformers", overrides=("model=hf/llama", "model.num_heads=4")),
    "gated-deltanet": Variant(title="Gated DeltaNet", overrides=("model=hf/gated_deltanet",)),
    "mamba2": Variant(title="Mamba-2", overrides=("model=hf/mamba2", "model.settings.state_size=112")),
    "xlstm": Variant(title="xLSTM", overrides=("model=hf/xlstm",)),
    "minimax": Variant(title="Lightning attention", overrides=("model=hf/minimax",)),
}
PARAMETERS = 1_080_000
