"""The recurrence in chunks: matrix products inside a chunk, one state handed from chunk to chunk."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_FORGETS = -40.0  # log decay below which nothing is left, in float64 either; -inf would be subtracted from itself


def step_scan(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor, *, erase: bool
) -> tuple[Tensor, Tensor]:
    """The recurrence for exactly one token (T = 1), as decoding needs it."""
    state = log_decay.exp().transpose(-1, -2) * state  # [B, H, K, V]
    write = v - k @ state if erase else v  # [B, H, 1, V]
    state = state + k.transpose(-1, -2) @ (beta * write)
    return q @ state, state


def chunked_scan(
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
    """The recurrence, chunk-parallel: the writes of a chunk solve one unit-triangular system (the WY form).

    Within a chunk, with G the running sum of log_decay and A_ij = beta_i (k_i exp(G_i)) . (k_j exp(-G_j)), j < i:

        U = (I + A)^-1 beta (V - (K exp(G)) S)         what each token writes
        O = (Q exp(G)) S + tril((Q exp(G)) (K exp(-G))^T) U
        S = exp(G_last) S + (K exp(G_last - G))^T U

    Source: arXiv 2412.06464, section 3.3, with decay per channel as in arXiv 2312.06635.
    """
    length, value_width = q.shape[2], v.shape[-1]
    pad = -length % chunk_size
    q, k, v, log_decay, beta = (_chunks(x, pad, chunk_size) for x in (q, k, v, log_decay, beta))

    total = log_decay.clamp(min=_FORGETS).cumsum(-2)  # G: [B, H, N, chunk, 1 or K]
    grown = total.exp()
    key_in = k * grown
    query_in = q * grown
    key_out = (k * (total[..., -1:, :] - total).exp()).transpose(-1, -2)
    carry = grown[..., -1, :, None]
    if log_decay.shape[-1] == 1:
        ratio = (total - total.transpose(-1, -2)).tril().exp().tril()  # exp(G_i - G_j), never above 1
        query_key = (q @ k.transpose(-1, -2)) * ratio
        key_key = (k @ k.transpose(-1, -2)) * ratio if erase else None
    else:
        key_back = (k * (-total).exp()).transpose(-1, -2)
        query_key = (query_in @ key_back).tril()
        key_key = key_in @ key_back if erase else None

    write = beta * v
    if key_key is not None:
        # By substitution: a series of powers of A cancels catastrophically where a token repeats and beta nears 1.
        both = torch.cat([write, beta * key_in], dim=-1)
        both = torch.linalg.solve_triangular(beta * key_key, both, upper=False, unitriangular=True)
        write, erased_in = both.split([value_width, key_in.shape[-1]], dim=-1)
        erased = erased_in.unbind(2)

    # Unbound before the loop: the backward of x[:, :, i] would write a whole zero tensor for every chunk.
    parts = zip(*(x.unbind(2) for x in (query_in, query_key, key_out, carry, write)), strict=True)
    outputs = []
    for i, (query_in_i, query_key_i, key_out_i, carry_i, update) in enumerate(parts):
        if erase:
            update = update - erased[i] @ state
        outputs.append(query_in_i @ state + query_key_i @ update)
        state = carry_i * state + key_out_i @ update
    return torch.stack(outputs, 2).flatten(2, 3)[:, :, :length, :value_width], state


def _chunks(x: Tensor, pad: int, chunk_size: int) -> Tensor:
    """[B, H, T, X] to [B, H, N, chunk, X], the end padded with zeros, which write nothing and decay nothing."""
    chunks: Tensor = F.pad(x, (0, 0, 0, pad)).unflatten(2, (-1, chunk_size))
    return chunks
