"""How likely two tokens have the same codes: what the index learns from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_TOGETHER = 4  # groups whose chances are multiplied before a logarithm is taken: floors of 1e-4 are no underflow yet


def log_agreement(queries: Tensor, keys: Tensor, *, floor: float) -> Tensor:
    """What :func:`hfa.ops.index.naive_log_agreement` computes, with the same arguments.

    It takes fewer logarithms and keeps one tensor for the gradient. `floor` is at least 1e-9.
    """
    agreement: Tensor = _LogAgreement.apply(queries, keys, floor)
    return agreement


class _LogAgreement(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, floor: float) -> Tensor:
        queries, keys = queries.transpose(0, 1), keys.transpose(0, 1)  # [G, S, C] and [G, M, C]
        same = torch.bmm(queries, keys.mT).add_(floor)
        ctx.save_for_backward(queries, keys, same)
        total = same.new_zeros(same.shape[1:])
        for few in same.split(_TOGETHER):
            product = few[0] * few[1]
            for chance in few[2:]:
                product *= chance
            total += product.log_()
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        queries, keys, same = ctx.saved_tensors
        slope = grad / same
        return (slope @ keys).transpose(0, 1), (slope.mT @ queries).transpose(0, 1), None
