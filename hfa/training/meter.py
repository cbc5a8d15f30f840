"""What a window of batches adds up to, as one vector: one reduction adds up processes, and a checkpoint keeps it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hfa.types import Batch

LossAverage = Literal["tokens", "examples"]


class Scored(NamedTuple):
    """The N scored positions of a batch."""

    nats: Tensor  # float32 [N], cross entropy of the label, or of all that is right of its group
    correct: Tensor  # bool [N], the likeliest token was the label, or another of its group
    label: Tensor  # int64 [N]
    recalled: Tensor  # bool [N], the label stands somewhere in the context
    row: Tensor  # int64 [N], where in the batch
    column: Tensor  # int64 [N]

    def weights(self, num_rows: int, average: LossAverage) -> Tensor:
        """What each position weighs in the loss, [N]: 1, or 1 over the scored positions of its example."""
        if average == "tokens":
            return torch.ones_like(self.nats)
        return 1.0 / torch.bincount(self.row, minlength=num_rows)[self.row]


class Meter:
    """Sums over batches, read as the means a person asks for.

    Args:
        kinds: name of each source to ``text`` or ``recall``, in the order that `Batch.source` counts.
        byte_lengths: bytes of text per token id, int64 [vocab_size].
        device: where the sums are kept.
    """

    _SCALARS = ("loss", "weight", "auxiliary", "batches", "text_nats", "text_bytes")

    def __init__(self, kinds: Mapping[str, str], byte_lengths: Tensor, device: torch.device) -> None:
        self.names = tuple(kinds)
        self._recall = [kind == "recall" for kind in kinds.values()]
        self._is_text = torch.tensor([kind == "text" for kind in kinds.values()], device=device)
        self._byte_lengths = byte_lengths.to(device)
        # the scalars, then per source the recalled positions that are correct, and all of them
        self.sums = torch.zeros(len(self._SCALARS) + 2 * len(self.names), dtype=torch.float64, device=device)

    def add(self, batch: Batch, scored: Scored, weights: Tensor, auxiliary: Tensor | None = None) -> None:
        """Count one batch in, without waiting for the device."""
        source = batch.source[scored.row]
        text = self._is_text[source].double()
        nats = scored.nats.detach().double()
        one = torch.ones((), dtype=torch.float64, device=nats.device)
        scalars = torch.stack(
            [
                (nats * weights).sum(),
                weights.sum().double(),
                one * 0 if auxiliary is None else auxiliary.detach().double(),
                one,
                (nats * text).sum(),
                (self._byte_lengths[scored.label] * text).sum(),
            ]
        )
        per_source = nats.new_zeros(2, len(self.names))
        per_source[0].index_add_(0, source, (scored.correct & scored.recalled).double())
        per_source[1].index_add_(0, source, scored.recalled.double())
        self.sums += torch.cat([scalars, per_source.flatten()])

    def read(self, sums: Tensor | None = None) -> dict[str, float]:
        """The means, of `sums` (a reduction over processes, say) or of what was added here."""
        values = (self.sums if sums is None else sums).tolist()
        loss, weight, auxiliary, batches, text_nats, text_bytes = values[: len(self._SCALARS)]
        correct, seen = values[len(self._SCALARS) : -len(self.names)], values[-len(self.names) :]
        means: dict[str, float] = {}
        if weight:
            means["loss"] = loss / weight
        if auxiliary:
            means["auxiliary_loss"] = auxiliary / batches
        if text_bytes:
            means["bits_per_byte"] = text_nats / math.log(2) / text_bytes
        for name, recall, right, scored in zip(self.names, self._recall, correct, seen, strict=True):
            if recall and scored:
                means[f"token_recall/{name}"] = right / scored
        return means

    def reset(self) -> None:
        self.sums.zero_()
