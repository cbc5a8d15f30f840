"""The read of the exact memory: a window and what was retrieved, in one softmax."""

from hfa.ops.anchor.gathered import gathered_anchor_read
from hfa.ops.anchor.naive import naive_anchor_read
from hfa.ops.anchor.pages import read_pages, read_piece
from hfa.ops.anchor.read import anchor_read
from hfa.ops.anchor.step import AnchorWeights, Row, anchor_step

__all__ = [
    "AnchorWeights",
    "Row",
    "anchor_read",
    "anchor_step",
    "gathered_anchor_read",
    "naive_anchor_read",
    "read_pages",
    "read_piece",
]
