"""What every floor of the house speaks: the legend of dimensions, batches, and two protocols.

Dimension letters, used in shape comments everywhere:

    B  batch         T  time (tokens)      D  model width (d_model)   V  value width, or vocabulary for logits
    H  heads         K  key width          G  heads of the memory     C  channels
    R  retrieved     W  all keys' width    N  as said beside it       J  taps of a convolution
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch

Split = Literal["train", "val", "test"]
IGNORE = -100  # a label that is not scored
NOWHERE = -1  # a label whose answer stands nowhere in the context


class Example(NamedTuple):
    """One sequence of a source, labels already shifted.

    tokens   k1 v1 k2 v2 .. k1
    labels    .  .  .  .  . v1       logits at t are scored against labels[t]; `.` is IGNORE
    gold      .  .  .  .  .  1       the position in `tokens` of the label's evidence; `.` is NOWHERE

    Where several labels may come in any order, they share a group, and each of them is right until it was said:

    labels    .  a  .  b  .  c       b is right at the first of these as well, a is not at the second
    group     .  0  .  0  .  1       `.` is NOWHERE
    """

    tokens: np.ndarray  # int64 [T]
    labels: np.ndarray  # int64 [T]
    gold: np.ndarray  # int64 [T]
    group: np.ndarray | None = None  # int64 [T]; None: every label stands alone
    form: str = ""  # which of its forms the task took, where the length decides that


class Batch(NamedTuple):
    """Examples of one length, stacked."""

    tokens: torch.Tensor  # int64 [B, T]
    labels: torch.Tensor  # int64 [B, T]
    gold: torch.Tensor  # int64 [B, T]
    source: torch.Tensor  # int64 [B], index into the names of the sources
    group: torch.Tensor  # int64 [B, T]


class Tokenizer(Protocol):
    """Text to token ids and back."""

    name: str
    vocab_size: int
    end_of_text: int  # the id that ends a document and stops a generation

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Many texts at once, int64 [T] each: what the fast tokenizers are fast at."""
        ...

    def decode(self, tokens: Iterable[int]) -> str: ...

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        """What `decode` turns into text: a token may end in the middle of a character."""
        ...

    def byte_lengths(self) -> np.ndarray:
        """Bytes of text each id stands for, int64 [vocab_size]; special ids count 0."""
        ...

    def fingerprint(self) -> str:
        """A short hash of everything that decides what `encode` returns."""
        ...

    def save(self, path: Path) -> None:
        """Write the tokenizer as one JSON file."""
        ...


class Source(Protocol):
    """A stream of examples in which example `index` is a pure function of seed, split and index.

    Resuming is therefore starting at another index, and worker processes need no coordination.
    """

    name: str
    kind: Literal["text", "recall"]
    seq_len: int
    vocab_size: int  # the ids of its examples are below it
    fingerprint: str  # of the documents it takes its text from, if any: other documents, other examples

    def example(self, index: int, split: Split) -> Example: ...

    def num_examples(self, split: Split) -> int | None:
        """Examples in one pass over the split; None when they are generated without end."""
        ...

    def parts(self) -> dict[str, Source]:
        """The sources this one is made of, by name; just itself unless it is a mixture."""
        ...

    def at_length(self, seq_len: int) -> Source:
        """The same source with examples of another length."""
        ...
