"""A matrix times a few vectors, which takes as long as the matrix takes to be read from memory; and times many."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from numba import njit
from torch import Tensor

from hfa.ops.fused.matmul import Times, takes
from hfa.ops.fused.packing import packed, packed_product
from hfa.ops.simd import WIDTH, load, prefetch, put, splat, suits, total, tracked

_FEW = 10  # vectors; for more, torch's blocked product is faster
_FEW_OF_PACKED = 3  # the same where the matrix is packed
_MANY = 96  # vectors, up to which it is faster the other way round, with the matrix as its left side
_THREADS = 2  # of torch, up to which the kernel's one is faster than all of them
_STREAMS = 4  # parts of the matrix that are read at once: the processor fetches ahead in each of them
_AHEAD = 256  # floats; it does not do so across the end of a memory page


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``W x + b``: torch's own, but in float32 what is faster on this processor for many vectors; and without gradients
    a kernel for a few of them on a few threads, and for more the packed weight if there is one, in its type.

    Args:
        x: [..., D].
        weight: [N, D].
        bias: [N].
    """
    if x.shape[-1] != weight.shape[1]:
        return F.linear(x, weight, bias)  # which says so
    if not tracked(x, weight, bias) and pays(x, weight):
        y = product(x.reshape(-1, x.shape[-1]).contiguous(), weight)
    elif takes(x, weight):
        y = cast(Tensor, Times.apply(x.reshape(-1, x.shape[-1]), weight))
    else:
        return F.linear(x, weight, bias)
    y = y.view(*x.shape[:-1], len(weight))
    return y if bias is None else y.add_(bias)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """``x W^T`` for x [M, D] and W [N, D] that `pays` is true of, by what is fastest."""
    if decodes(x, weight):
        y = x.new_empty(len(x), len(weight))
        products(x.data_ptr(), weight.data_ptr(), y.data_ptr(), len(x), *weight.shape)
        return y
    matrix = packed(weight)
    return turned(torch.mm(weight, x.t())) if matrix is None else packed_product(x, matrix)


def projections(x: Tensor, matrices: Iterable[Tensor], few: bool) -> list[Tensor]:
    """``x W^T`` for each W [M, D] and x [N, D], each W read once for all; of a few, room for a kernel's own."""
    if few:
        return [x.new_empty(len(x), len(matrix)) for matrix in matrices]
    return [product(x, matrix) for matrix in matrices]


def turned(y: Tensor) -> Tensor:
    """The transpose of a matrix, contiguous."""
    return y.t().contiguous()


def pays(x: Tensor, *weights: Tensor) -> bool:
    """Whether `product` is faster than torch's own for x [..., D] and these weights, and they suit it."""
    if not suits(x, *weights) or not all(map(Tensor.is_contiguous, weights)):
        return False
    few = x.numel() <= _MANY * x.shape[-1] and torch.get_num_threads() <= _THREADS
    return few or all(packed(weight) is not None for weight in weights)


def decodes(x: Tensor, *weights: Tensor) -> bool:
    """Whether x [..., D] is so few vectors that the kernel is for them, and they and the weights suit it.

    The first weight, a large one, is looked at: of those that can be packed, a model packs all.
    """
    count = x.numel() // x.shape[-1]
    if count > _FEW or torch.get_num_threads() > _THREADS:
        return False
    matrix = packed(weights[0])
    if matrix is not None and (count > _FEW_OF_PACKED or matrix.dtype != x.dtype):
        return False
    return suits(x, *weights) and all(map(Tensor.is_contiguous, weights))


@njit(cache=True, nogil=True, error_model="numpy")
def products(x: int, weight: int, y: int, count: int, rows: int, width: int) -> None:
    """``y = x W^T``: addresses of x [count, width], W [rows, width] and y [count, rows]."""
    part, zero = rows // _STREAMS, splat(0.0)
    gap = part * width
    for row in range(part):
        w0, w1, w2, w3 = row * width, row * width + gap, row * width + 2 * gap, row * width + 3 * gap
        for i in range(count):
            s0, s1, s2, s3 = zero, zero, zero, zero
            for c in range(0, width, WIDTH):
                z = load(x, i * width + c)
                for w in (w0, w1, w2, w3):
                    prefetch(weight, w + c + _AHEAD)
                s0, s1 = s0 + z * load(weight, w0 + c), s1 + z * load(weight, w1 + c)
                s2, s3 = s2 + z * load(weight, w2 + c), s3 + z * load(weight, w3 + c)
            place = i * rows + row
            put(y, place, total(s0))
            put(y, place + part, total(s1))
            put(y, place + 2 * part, total(s2))
            put(y, place + 3 * part, total(s3))
    for row in range(part * _STREAMS, rows):
        for i in range(count):
            s0 = zero
            for c in range(0, width, WIDTH):
                s0 = s0 + load(x, i * width + c) * load(weight, row * width + c)
            put(y, i * rows + row, total(s0))
