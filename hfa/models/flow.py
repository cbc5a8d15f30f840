"""The flow layer: a gated linear recurrence that carries the stream in a state of constant size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hfa.config import PositiveInt, config
from hfa.models.base import Mixer, ModelConfig
from hfa.nn.conv import ShortConv
from hfa.nn.linear import Linear
from hfa.nn.norm import RMSNorm
from hfa.ops.fused import FlowWeights, flow_step
from hfa.ops.scan import scan
from hfa.ops.simd import WIDTH, suits, tracked


@config
class FlowSettings(ModelConfig):
    """What flow layers need."""

    conv_width: PositiveInt
    chunk_size: PositiveInt


class FlowState(NamedTuple):
    """What a flow layer carries."""

    memory: Tensor  # float32 [B, H, K, V]
    tail: Tensor  # [B, conv_width - 1, 3 D]


class Flow(Mixer):
    """The gated delta rule behind a short convolution, with a gated norm on the way out.

    Source: Gated Delta Networks, arXiv 2412.06464, section 3.
    """

    erase = True  # whether a write first removes what its key retrieves: the delta rule

    def __init__(self, settings: FlowSettings) -> None:
        super().__init__()
        width, heads = settings.d_model, settings.num_heads
        self.num_heads, self.head_dim, self.chunk_size = heads, settings.head_dim, settings.chunk_size
        self.qkv = Linear(width, 3 * width, bias=False)
        self.conv = ShortConv(3 * width, settings.conv_width)
        self.gates = Linear(width, 2 * heads)  # decay and write strength
        with torch.no_grad():  # heads start with memories of different spans, from a handful of tokens to hundreds
            self.gates.bias[:heads] = torch.linspace(2.0, 5.0, heads)
            self.gates.bias[heads:] = 0.0
        self.out_gate = Linear(width, width, bias=False)
        self.out_norm = RMSNorm(settings.head_dim)
        self.out = Linear(width, width, bias=False)

    def init_state(self, batch_size: int) -> FlowState:
        weight = self.qkv.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        shape = (batch_size, self.num_heads, self.head_dim, self.head_dim)
        memory = torch.zeros(shape, dtype=dtype, device=weight.device)
        return FlowState(memory, self.conv.init_state(batch_size))

    def forward(self, x: Tensor, state: FlowState, last: int | None = None) -> tuple[Tensor, FlowState]:
        if x.shape[1] == 1 and self.takes_varlen and suits(x, *state) and not tracked(x, *state, *self._weights()):
            y, after = self.step(x[:, 0], state, (1,) * len(x))
            return y[:, None], after
        heads = (3, self.num_heads, self.head_dim)
        unit = {"silu": True, "unit_heads": 2 * self.num_heads, "head_dim": self.head_dim}
        mixed, tail = self.conv(self.qkv(x), state.tail, **unit)
        q, k, v = (part.transpose(1, 2) for part in mixed.unflatten(-1, heads).unbind(2))  # [B, H, T, K]
        decay, write = self.gates(x).transpose(1, 2)[..., None].chunk(2, dim=1)  # [B, H, T, 1]
        read, memory = scan(
            q,
            k,
            v,
            F.logsigmoid(decay),
            torch.sigmoid(write),
            state.memory,
            erase=self.erase,
            chunk_size=self.chunk_size,
        )
        if last:
            x, read = x[:, -last:], read[:, :, -last:]
        read = self.out_norm(read.to(x.dtype).transpose(1, 2), self.out_gate(x))  # [B, T, H, V]
        return self.out(read.flatten(2)), FlowState(memory, tail)

    @property
    def takes_varlen(self) -> bool:
        return self.erase and suits(*self._weights()[:-1]) and not self.head_dim % WIDTH

    def step(self, x: Tensor, state: FlowState, lengths: Sequence[int]) -> tuple[Tensor, FlowState]:
        y, memory, tail = flow_step(x, *state, lengths, self._weights())
        return y, FlowState(memory, tail)

    def _weights(self) -> FlowWeights:
        return FlowWeights(
            self.qkv.weight,
            self.gates.weight,
            self.out_gate.weight,
            self.out.weight,
            self.conv.weight,
            self.out_norm.weight,
            self.gates.bias,
        )
