"""The read of the exact memory: a window and what was retrieved, in one softmax."""

from hfa.ops.anchor.gathered import gathered_anchor_read
from hfa.ops.anchor.naive import naive_anchor_read
from hfa.ops.anchor.read import anchor_read

__all__ = ["anchor_read", "gathered_anchor_read", "naive_anchor_read"]
