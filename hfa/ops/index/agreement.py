"""How likely two tokens have the same codes: what the index learns from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_TOGETHER = 4  # groups whose chances are multiplied before a logarithm is taken


def log_agreement(queries: Tensor, keys: Tensor, *, floor: float) -> Tensor:
    """What :func:`hfa.ops.index.naive_log_agreement` computes, with the same arguments.

    It takes fewer logarithms and keeps one tensor for the gradient. `floor` is at least 1e-9. Whatever autocast says,
    it computes in float32 or more: four floors multiplied are nothing in half precision.
    """
    dtype = torch.promote_types(queries.dtype, torch.float32)
    with torch.autocast(queries.device.type, enabled=False):
        agreement: Tensor = _LogAgreement.apply(queries.to(dtype), keys.to(dtype), floor)
    return agreement


class _LogAgreement(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, floor: float) -> Tensor:
        queries, keys = queries.transpose(0, 1), keys.transpose(0, 1)  # [groups, S, codes], M
        same = torch.bmm(queries, keys.mT).add_(floor)
        ctx.save_for_backward(queries, keys, same)
        total = same.new_zeros(same.shape[1:])
        for few in same.split(_TOGETHER):
            product = few[0].clone()
            for chance in few[1:]:
                product *= chance
            total += product.log_()
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        queries, keys, same = ctx.saved_tensors
        slope = grad / same
        return (slope @ keys).transpose(0, 1), (slope.mT @ queries).transpose(0, 1), None
