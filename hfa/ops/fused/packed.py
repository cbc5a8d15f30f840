"""Weights in the order in which the processor's matrix units take them: a product need not reorder them each time.

Packing pays where weights stay as they are, so it is asked for (`pack`), and costs a second copy of them. When a packed
weight changes, in training say, its version tells, and the copy is no longer used.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_LEAST = 1 << 16  # numbers in a matrix; for smaller ones the call costs more than it saves
_KEPT_AS = "_packed_by_hfa"  # an attribute of the weight, which lives as long as that and goes into no checkpoint
_ROWS = 32  # of the products that the order is chosen for; others lose nothing measurable by it


class _Packed(NamedTuple):
    matrix: Tensor  # in oneDNN's own layout
    version: int
    address: int


def packs(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies packed matrices of a type."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


def pack(weight: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """Have products with this matrix [N, D] use a packed copy of a type, where that is possible and pays.

    Vectors, sums and products stay float32; the factors of a sum are rounded to that type.
    """
    apt = weight.is_cpu and weight.dtype == torch.float32 and weight.is_contiguous() and not weight.is_inference()
    there = packed(weight)
    if not apt or weight.numel() < _LEAST or not packs(dtype) or (there is not None and there.dtype == dtype):
        return
    matrix = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype), _ROWS)
    setattr(weight, _KEPT_AS, _Packed(matrix, weight._version, weight.data_ptr()))


def packed(weight: Tensor) -> Tensor | None:
    """The packed copy of a weight that has not changed since."""
    found: _Packed | None = getattr(weight, _KEPT_AS, None)
    if found is None or (found.version, found.address) != (weight._version, weight.data_ptr()):
        return None
    return found.matrix


def packed_product(x: Tensor, matrix: Tensor) -> Tensor:
    """``x W^T`` for x [M, D] and what `packed` returned for W [N, D]."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(matrix.dtype), matrix, None, "none", [], "")
    return y.to(x.dtype)
