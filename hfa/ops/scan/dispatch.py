"""The recurrence, by whatever is fastest for these inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from hfa.ops.scan.chunked import chunked_scan, step_scan
from hfa.ops.scan.operator import scan_operator
from hfa.ops.scan.recurrent import fits, recurrent_scan
from hfa.ops.simd import tracked


def scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    state: Tensor,
    *,
    erase: bool,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """The recurrence of :func:`hfa.ops.scan.naive_scan`, in the form that is fastest for its inputs.

    Computes in float32 at least, whatever autocast says: the state must not be rounded as it is carried. In float32
    on the CPU that is a kernel, elsewhere chunks of matrix products.

    Args:
        chunk_size: tokens per chunk. With a decay per channel, ``chunk_size * -min(log_decay)`` must stay
            under 80, or ``exp`` overflows float32.

    Shapes and the remaining arguments are those of `naive_scan`.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        inputs = [x.to(dtype) for x in (q, k, v, log_decay, beta, state)]
        if fits(*inputs):
            if tracked(*inputs):
                out, state, _ = scan_operator(*inputs, erase, chunk_size)
                return out.transpose(1, 2), state
            return recurrent_scan(*inputs, erase=erase)
        if q.shape[2] == 1:
            return step_scan(*inputs, erase=erase)
        return chunked_scan(*inputs, erase=erase, chunk_size=chunk_size)
