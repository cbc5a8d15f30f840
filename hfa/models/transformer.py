"""The Transformer baseline: RoPE, SwiGLU, RMSNorm and exact attention to every token."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from hfa.config import NonNegativeInt, PositiveFloat, PositiveInt, config
from hfa.errors import ConfigError
from hfa.models.base import Mixer, ModelConfig
from hfa.models.memory import Memory
from hfa.models.pages import PagedMemory
from hfa.nn.conv import ShortConv
from hfa.nn.linear import Linear
from hfa.nn.rotary import rotate
from hfa.ops.anchor import read_pages
from hfa.ops.attention import causal_attention


@config
class TransformerConfig(ModelConfig):
    """See :class:`Attention`."""

    name: ClassVar[str] = "transformer"

    num_kv_heads: PositiveInt
    rope_base: PositiveFloat
    conv_width: NonNegativeInt  # taps of a short convolution before q, k and v; 0 leaves it out

    def check(self) -> None:
        super().check()
        if self.num_heads % self.num_kv_heads:
            raise ConfigError("num_kv_heads", self.num_kv_heads, f"a divisor of num_heads={self.num_heads}")
        if self.head_dim % 2:
            raise ConfigError("num_heads", self.num_heads, f"an even d_model / num_heads for RoPE, not {self.head_dim}")

    def mixer(self, layer: int) -> Attention:
        return Attention(self)


class AttentionState(NamedTuple):
    """What an attention layer carries."""

    memory: Memory | PagedMemory  # keys (already rotated) and values of every token
    tail: Tensor  # [B, conv_width - 1, channels] of the convolution; [B, 0] without one


class Attention(Mixer):
    """Causal softmax attention with rotary positions and grouped key-value heads."""

    def __init__(self, settings: TransformerConfig) -> None:
        super().__init__()
        self.num_kv_heads, self.head_dim = settings.num_kv_heads, settings.head_dim
        self.rope_base = settings.rope_base
        self.widths = [self.head_dim * n for n in (settings.num_heads, self.num_kv_heads, self.num_kv_heads)]
        self.qkv = Linear(settings.d_model, sum(self.widths), bias=False)
        self.conv = ShortConv(sum(self.widths), settings.conv_width) if settings.conv_width else None
        self.out = Linear(settings.d_model, settings.d_model, bias=False)

    def init_state(self, batch_size: int) -> AttentionState:
        weight = self.qkv.weight
        page = weight.new_empty(self.num_kv_heads, self.head_dim)
        memory = Memory.empty(batch_size, page, page)
        if self.conv:
            return AttentionState(memory, self.conv.init_state(batch_size))
        return AttentionState(memory, torch.zeros(batch_size, 0, dtype=weight.dtype, device=weight.device))

    def reserve(self, state: AttentionState, count: int) -> AttentionState:
        return state._replace(memory=state.memory.reserved(count))

    def state_bytes(self, seq_len: int) -> int:
        return super().state_bytes(seq_len) + seq_len * 2 * self.widths[1] * self.qkv.weight.element_size()

    def forward(self, x: Tensor, state: AttentionState, last: int | None = None) -> tuple[Tensor, AttentionState]:
        memory, tail = state
        qkv = self.qkv(x)
        if self.conv:
            qkv, tail = self.conv(qkv, tail)
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in qkv.split(self.widths, dim=-1))
        start = memory.length
        positions = start[:, None] + torch.arange(x.shape[1], device=x.device)
        q = rotate(q.transpose(1, 2), positions, self.rope_base)
        k = rotate(k.transpose(1, 2), positions, self.rope_base)
        if last and last < x.shape[1]:
            q, start = q[:, :, -last:], start + x.shape[1] - last
        fresh = q.shape[2] == x.shape[1] and memory.capacity == 0
        memory = memory.append(k.transpose(1, 2), v)
        if isinstance(memory, PagedMemory) and x.shape[1] == 1 and memory.has_kernels:
            scaled = q * self.head_dim**-0.5
            keys, values = memory.pools
            mixed = read_pages(scaled, keys, values, memory.table, start)
            return self.out(mixed.transpose(1, 2).flatten(2)), AttentionState(memory, tail)
        keys, values = memory.read()
        mixed = causal_attention(
            q, keys.transpose(1, 2), values.transpose(1, 2), None if fresh else start, scale=self.head_dim**-0.5
        )
        return self.out(mixed.transpose(1, 2).flatten(2)), AttentionState(memory, tail)
