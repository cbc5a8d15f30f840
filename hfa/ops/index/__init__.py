"""The index: which of all stored tokens a query looks at.

Every token has a *code*: one of 64 values in each of several groups, learnt so that tokens that answer the same
query share many. A trie over the codes, in several orders of the groups, is descended with a beam.
"""

from hfa.ops.index.agreement import log_agreement
from hfa.ops.index.exact import retrieve_exactly
from hfa.ops.index.naive import naive_log_agreement, naive_retrieve
from hfa.ops.index.pages import retrieve_in_pages
from hfa.ops.index.retrieve import CHUNK, Search, retrieve, room
from hfa.ops.index.trie import TOGETHER

__all__ = [
    "CHUNK",
    "TOGETHER",
    "Search",
    "log_agreement",
    "naive_log_agreement",
    "naive_retrieve",
    "retrieve",
    "retrieve_exactly",
    "retrieve_in_pages",
    "room",
]
