"""Routing, token by token: the reference of the vectorised form."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hfa.ops.scan.naive import naive_scan


def naive_route(scores: Tensor, router: str, theta: Tensor, budget: int, signed: bool) -> Tensor:
    """Channel weights of every token: what rises above a threshold, as a unit vector.

        scores  -0.3  1.2  0.4  2.0        budget = 2
        soft     .    1.2  0.4  2.0        above 0
        hard     .    0.8   .   1.6        above the (budget + 1)-th best, 0.4
        dynamic  .    0.2   .   1.0        above theta = 1.0, which is learnt; at most `budget`, at least one

    Signed, a score counts by its size, and its weight has its sign: the first of these would be above 0.

    Args:
        scores: [..., C].
        router: ``soft``, ``hard`` or ``dynamic``.
        theta: [..., 1], the threshold (`dynamic` only).
        budget: most channels a token may use (`hard` and `dynamic`).
        signed: whether scores below 0 count as those above.

    Returns:
        [..., C], of norm 1 (or 0 where nothing rises above the threshold), non-negative unless signed.
    """
    flat, thetas = scores.reshape(-1, scores.shape[-1]), theta.reshape(-1)
    rows = []
    for scored, own in zip(flat, thetas, strict=True):
        row = scored.abs() if signed else scored
        ranked = row.sort(descending=True).values
        limit = ranked[budget]
        if router == "soft":
            cut = row.new_zeros(())
        elif router == "hard":
            cut = limit
        else:
            cut = torch.maximum(torch.minimum(own, ranked[0] - 0.05), limit)
        above = (row - cut).clamp(min=0) * (scored.sign() if signed else 1)
        rows.append(above / (above.square().sum() + 1e-6).sqrt())
    return torch.stack(rows).view_as(scores)


def naive_routed_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    state: Tensor,
    *,
    router: str,
    budget: int,
    erase: bool,
    signed: bool,
) -> tuple[Tensor, Tensor]:
    """The gated recurrence whose keys and queries are routing weights over C channels a head.

        w, r = route(k / rms(k)), route(q / rms(q))      write and read weights, some zero
        S'   = diag(a) S                                 a = exp(-slowest decay * |w| / max |w|): 1 where w is 0
        S    = S' + w beta (v - w^T S')                  or without w^T S', if it does not erase
        o    = S^T r

    Args:
        q, k: [B, T, H, C], scores.
        v: [B, T, H, V].
        gates: [B, T, 4 H] before their nonlinearities: decay, write strength beta, thresholds of query and of key.
        state: [B, H, C, V].
        router, budget, signed: see :func:`naive_route`.
        erase: whether a write first removes what the channels predicted.

    Returns:
        o [B, T, H, V] and the state after the last token.
    """
    decay, write, q_theta, k_theta = (gate[..., None] for gate in gates.chunk(4, dim=-1))  # [B, T, H, 1]
    r, w = (
        naive_route(x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt(), router, theta, budget, signed)
        for x, theta in ((q, q_theta), (k, k_theta))
    )
    log_decay = F.logsigmoid(decay).clamp(min=-1.2) * w.abs() / (w.abs().amax(-1, keepdim=True) + 1e-6)
    r, w, v, log_decay, beta = (x.transpose(1, 2) for x in (r, w, v, log_decay, write.sigmoid()))
    out, state = naive_scan(r, w, v, log_decay, beta, state, erase=erase)
    return out.transpose(1, 2), state
