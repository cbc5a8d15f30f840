"""Weights in the order in which the processor's matrix units take them: a product need not reorder them each time.

Packing pays where weights stay as they are, so it is asked for (`pack`), and costs a second copy of them. A weight that
changes is noticed by its version, as of an optimizer's step or a loaded state, and its copy is dropped; what changes it
behind torch's back (`weight.data`, numpy, a fused optimizer) is not, and has to `unpack` first.
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

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(None), ()  # a weight that is pickled goes without it


def packs(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether this processor multiplies a packed copy of a weight, of a type."""
    if not torch.backends.mkldnn.is_available():
        return False
    known = dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    apt = weight.is_cpu and weight.dtype == torch.float32 and weight.is_contiguous() and not weight.is_inference()
    return bool(known and apt)


def pack(weight: Tensor, dtype: torch.dtype = torch.float32) -> bool:
    """Have products with this matrix [N, D], which `packs`, use a packed copy of a type; whether they will.

    Both factors are rounded to that type, and the product; what a small matrix is multiplied with stays as it is.
    """
    if weight.numel() < _LEAST or not packs(weight, dtype):
        return False
    matrix = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype), _ROWS)
    setattr(weight, _KEPT_AS, _Packed(matrix, weight._version, weight.data_ptr()))
    return True


def unpack(weight: Tensor) -> None:
    """Drop the packed copy, if there is one."""
    if getattr(weight, _KEPT_AS, None) is not None:
        delattr(weight, _KEPT_AS)


def packed(weight: Tensor) -> Tensor | None:
    """The packed copy of a weight that has not changed since."""
    found: _Packed | None = getattr(weight, _KEPT_AS, None)
    if found is None:
        return None
    if (found.version, found.address) != (weight._version, weight.data_ptr()):
        unpack(weight)
        return None
    return found.matrix


def packed_product(x: Tensor, matrix: Tensor) -> Tensor:
    """``x W^T`` for x [M, D] and what `packed` returned for W [N, D]."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(matrix.dtype), matrix, None, "none", [], "")
    return y.to(x.dtype)
