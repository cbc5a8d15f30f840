"""The read of the exact memory: a local window and a bounded number of retrieved tokens, one softmax."""

from hfa.ops.anchor.blocked import anchor_read
from hfa.ops.anchor.naive import naive_anchor_read

__all__ = ["anchor_read", "naive_anchor_read"]
