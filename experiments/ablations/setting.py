"""What all ablations are measured with."""

EXPERIMENT = "quickstart"  # text and recall at once, minutes a run
PARAMETERS = 860_000
RECALL = ("data.sources.needle.num_needles=8", "data.sources.needle.num_questions=8")
TEXT = "evaluate.text_tokens=131072"  # the same at every length
