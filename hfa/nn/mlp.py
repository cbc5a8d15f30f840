"""The feed-forward half of a block."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hfa.nn.linear import Linear
from hfa.ops.fused import swiglu_mlp
from hfa.ops.simd import suits


class SwiGLU(nn.Module):
    """``W_out(silu(W_gate x) * W_up x)``. Source: arXiv 2002.05202."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.gate_up = Linear(d_model, 2 * d_ff, bias=False)
        self.down = Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if suits(x, self.gate_up.weight, self.down.weight):
            return swiglu_mlp(x, self.gate_up.weight, self.down.weight)
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        out: Tensor = self.down(F.silu(gate) * up)
        return out
