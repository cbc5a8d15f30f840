"""The recurrence as it is written on paper: the reference of the chunked form."""

from __future__ import annotations

import torch
from torch import Tensor


def naive_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    state: Tensor,
    *,
    erase: bool,
) -> tuple[Tensor, Tensor]:
    """One token at a time: decay the state, write a value under a key, read with the query.

        S' = diag(exp(log_decay_t)) S_{t-1}
        u  = beta_t (v_t - S'^T k_t)  if erase else  beta_t v_t
        S_t = S' + k_t u^T            o_t = S_t^T q_t

    Args:
        q, k: [B, H, T, K].
        v: [B, H, T, V].
        log_decay: [B, H, T, 1] for one decay a head, [B, H, T, K] for one a channel; at most 0.
        beta: [B, H, T, 1], how much of the write happens.
        state: [B, H, K, V].
        erase: whether a write first removes what the key already retrieves (the delta rule).

    Returns:
        o [B, H, T, V] and the state after the last token.

    Source: Gated Delta Networks, arXiv 2412.06464, section 3.1.
    """
    outputs = []
    for t in range(q.shape[2]):
        state = log_decay[:, :, t].exp()[..., None] * state
        write = v[:, :, t]
        if erase:
            write = write - torch.einsum("bhkv,bhk->bhv", state, k[:, :, t])
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, :, t], beta[:, :, t] * write)
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, :, t]))
    return torch.stack(outputs, dim=2), state
