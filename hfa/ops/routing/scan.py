"""Routing and its recurrence, by whatever is fastest for these inputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hfa.ops.routing.operator import routed_scan_operator
from hfa.ops.routing.recurrent import Routing, recurrent_routed_scan
from hfa.ops.routing.threshold import EPS, FASTEST_DECAY, route
from hfa.ops.scan.dispatch import scan
from hfa.ops.simd import WIDTH, suits, tracked


def routed_scan(
    q: Tensor, k: Tensor, v: Tensor, gates: Tensor, state: Tensor, routing: Routing, *, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """What :func:`hfa.ops.routing.naive_routed_scan` computes; shapes are those.

    In float32 on the CPU that is a kernel, which takes time for the chosen channels only; elsewhere chunks of matrix
    products over all channels.

    Args:
        chunk_size: tokens per chunk; times ``FASTEST_DECAY`` under 80.
    """
    width = v.shape[-1]
    spare = -width % WIDTH
    if suits(q) and all(x.dtype == torch.float32 for x in (k, v, gates, state)):
        if spare:
            v, state = F.pad(v, (0, spare)), F.pad(state, (0, spare))
        inputs = q, k, v, gates, state
        if tracked(*inputs):
            out, state, _ = routed_scan_operator(*inputs, *routing, chunk_size)
        else:
            out, state = recurrent_routed_scan(*inputs, routing)
        return out[..., :width], state[..., :width]
    beta = torch.sigmoid(gates.chunk(4, dim=-1)[1])[..., None]  # [B, T, H, 1]
    reading, writing, log_decay = routes(q, k, gates, routing)
    r, w, v, log_decay, beta = (x.transpose(1, 2) for x in (reading, writing, v, log_decay, beta))
    out, state = scan(r, w, v, log_decay, beta, state, erase=routing.erase, chunk_size=chunk_size)
    return out.transpose(1, 2), state


def routes(q: Tensor, k: Tensor, gates: Tensor, routing: Routing) -> tuple[Tensor, Tensor, Tensor]:
    """The weights that tokens read and write with, and the log decays of all channels, [B, T, H, C] each.

    Arguments are those of `routed_scan`.
    """
    decay, _, q_theta, k_theta = (gate[..., None] for gate in gates.chunk(4, dim=-1))  # [B, T, H, 1]
    reading, writing = (
        route(_scaled(scores), routing.router, theta, routing.budget, routing.signed)
        for scores, theta in ((q, q_theta), (k, k_theta))
    )
    share = writing.abs()
    share = share / (share.amax(-1, keepdim=True) + EPS)
    return reading, writing, F.logsigmoid(decay).clamp(min=-FASTEST_DECAY) * share  # others stay as they are


def _scaled(scores: Tensor) -> Tensor:
    """Of root mean square 1 over the channels."""
    return scores * (scores.square().mean(-1, keepdim=True) + EPS).rsqrt()
