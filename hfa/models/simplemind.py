"""SimpleMind: every token is routed to some channels, writes to them and reads from them. Constant state."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfa.config import PositiveInt, config
from hfa.errors import ConfigError
from hfa.models.base import Mixer, ModelConfig
from hfa.nn.conv import ShortConv
from hfa.nn.linear import Linear
from hfa.nn.norm import RMSNorm
from hfa.ops.fused import pays
from hfa.ops.routing import FASTEST_DECAY, RoutedWeights, Routing, routed_layer_step, routed_scan, routes
from hfa.ops.simd import WIDTH, suits, tracked


@config
class RoutedSettings(ModelConfig):
    """What a layer of routed channels needs."""

    num_channels: PositiveInt  # per head
    active_channels: PositiveInt  # the most a token may use (routers `dynamic` and `hard`)
    router: Literal["dynamic", "soft", "hard"]
    aggregation: Literal["learnable", "mean", "sum"]
    signed: bool  # whether scores below zero route as those above do, with weights below zero; never so for `mean`
    shared_channel: bool  # whether one channel of each head is every token's, as strong as its best
    output_gate: bool
    conv_width: PositiveInt
    chunk_size: PositiveInt

    def check(self) -> None:
        super().check()
        free = self.num_channels - self.shared_channel
        if self.active_channels >= free:
            expected = f"fewer than num_channels={self.num_channels}" + (
                " without the shared one" if free < self.num_channels else ""
            )
            raise ConfigError("active_channels", self.active_channels, expected, f"{free - 1} is the most")
        most = math.ceil(80 / FASTEST_DECAY) - 1  # exp of 80 is near to what float32 holds
        if self.chunk_size > most:
            raise ConfigError("chunk_size", self.chunk_size, f"at most {most}, so that float32 does not overflow")


@config
class SimpleMindConfig(RoutedSettings):
    """See :class:`RoutedChannels`."""

    name: ClassVar[str] = "simplemind"

    def mixer(self, layer: int) -> Mixer:
        return RoutedChannels(self, match=layer == self.num_layers - 1)


class RoutedState(NamedTuple):
    """What a layer of routed channels carries."""

    channels: Tensor  # float32 [B, H, C, V], with one more column of running weights for `mean`
    tail: Tensor  # [B, conv_width - 1, H C + D]: scores and values before their convolutions


class RoutedChannels(Mixer):
    """A gated recurrence whose keys and queries are routing weights over C channels a head.

        w, r = route(rms(conv_k(W x))), route(rms(conv_q(W x)))      write and read weights, some zero, of any sign
        S' = diag(a) S                                               only the channels written to decay
        learnable: S = S' + w b (v - w^T S')                         replaces what the channels predicted
        sum:       S = S' + w b v
        mean:      as sum, read as the weighted mean of what was written; no weight is below zero
        o = S^T r

    A token goes to the channels with the largest scores of either sign: contents then overlap by chance as often
    against each other as with each other, and reads are more exact than with weights above zero alone
    (experiments/state, `unsigned`). Reads and writes share W, so that both know a content by the same channels: better
    than one each in bits per byte, and less to compute. Their convolutions tell them apart. How large a score must be
    is learnt for each head, in units of the token's root mean square, so that tokens differ in how many channels they
    use.

    Args:
        settings: the sizes, router and aggregation.
        match: start as a content-addressed copy of the token after a repeated one; the last layer needs it.
    """

    def __init__(self, settings: RoutedSettings, *, match: bool) -> None:
        super().__init__()
        width, heads = settings.d_model, settings.num_heads
        self.num_heads, self.head_dim, self.num_channels = heads, settings.head_dim, settings.num_channels
        self.aggregation, self.chunk_size = settings.aggregation, settings.chunk_size
        erase, signed = settings.aggregation == "learnable", settings.signed and settings.aggregation != "mean"
        self.routing = Routing(settings.router, settings.active_channels, erase, signed)
        self.shared_channel = settings.shared_channel
        self.widths = [heads * settings.num_channels, width]  # of scores and values
        self.project = Linear(width, sum(self.widths), bias=False)
        self.read_conv = ShortConv(self.widths[0], settings.conv_width)
        self.conv = ShortConv(sum(self.widths), settings.conv_width)  # of what is written
        self.gates = Linear(width, 2 * heads)  # decay and write strength
        share = (
            2 / 3 * settings.active_channels / settings.num_channels
        )  # of the channels; over the budget there is no gradient
        start = NormalDist().inv_cdf(1 - (share / 2 if signed else share))  # which random scores exceed in that share
        self.thresholds = nn.Parameter(torch.full((2 * heads,), max(start, 0.0)))  # of queries and of keys
        with torch.no_grad():  # heads start with memories of different spans, as in the flow
            self.gates.bias[:heads] = torch.linspace(2.0, 5.0, heads)
            self.gates.bias[heads:] = 0.0
        self.out_gate = Linear(width, width, bias=False) if settings.output_gate else None
        self.out_norm = RMSNorm(settings.head_dim)
        self.out = Linear(width, width, bias=False)
        if match:
            self.match_init()

    @torch.no_grad()
    def match_init(self) -> None:
        """A token is written under its predecessor's routing, and what is read is copied to the stream.

        Hardly anything is forgotten, though most tokens write to most channels, and little is written at first.
        """
        scores, v = self.project.weight.split(self.widths)
        nn.init.orthogonal_(scores)
        nn.init.orthogonal_(v)
        self.out.weight.copy_(v.T)
        self.read_conv.peak((0.8,))
        self.conv.weight.mul_(0.2)
        k_conv, v_conv = self.conv.weight.split(self.widths, dim=1)
        k_conv[min(1, len(k_conv) - 1)] += 0.8
        v_conv[0] += 0.8
        self.gates.bias[: self.num_heads] = 10.0
        self.gates.bias[self.num_heads :] = -2.0

    def init_state(self, batch_size: int) -> RoutedState:
        weight = self.project.weight
        columns = self.head_dim + (self.aggregation == "mean")
        shape = (batch_size, self.num_heads, self.num_channels, columns)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return RoutedState(torch.zeros(shape, dtype=dtype, device=weight.device), self.conv.init_state(batch_size))

    def forward(self, x: Tensor, state: RoutedState, last: int | None = None) -> tuple[Tensor, RoutedState]:
        if x.shape[1] == 1:
            weights = self._weights()
            if (
                weights
                and not tracked(x, *state, *weights)
                and pays(x, weights.project, weights.out_gate, weights.out)
                and suits(*state, *weights[:-2])
            ):
                y, *after = routed_layer_step(x, *state, weights, self.routing)
                return y, RoutedState(*after)
        q, k, v, gates, tail = self._mixed(x, state.tail)
        if self.aggregation == "mean":
            v = F.pad(v, (0, 1), value=1.0)
        read, channels = routed_scan(q, k, v, gates, state.channels, self.routing, chunk_size=self.chunk_size)
        if last:
            x, read = x[:, -last:], read[:, -last:]
        if self.aggregation == "mean":
            read = read[..., :-1] / (read[..., -1:] + 1e-3)
        read = self.out_norm(read.to(x.dtype), self.out_gate(x) if self.out_gate else None)  # [B, T, H, V]
        return self.out(read.flatten(2)), RoutedState(channels, tail)

    def routes(self, x: Tensor, state: RoutedState) -> tuple[Tensor, Tensor, Tensor]:
        """How tokens [B, T, D] are routed: see :func:`hfa.ops.routing.routes`."""
        q, k, _, gates, _ = self._mixed(x, state.tail)
        return routes(q, k, gates, self.routing)

    def _mixed(self, x: Tensor, tail: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        projected, scores = self.project(x), self.widths[0]
        read, _ = self.read_conv(projected[..., :scores], tail[..., :scores])
        written, tail = self.conv(projected, tail)
        parts = (read, *written.split(self.widths, dim=-1))
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)) for part in parts)
        if self.shared_channel:
            q, k = (self._shared(part[..., :-1]) for part in (q, k))
        gates = self.gates(x)
        gates = torch.cat([gates, self.thresholds.to(gates.dtype).expand_as(gates)], dim=-1)
        return q, k, v, gates, tail  # [B, T, H, C], [B, T, H, C], [B, T, H, V], [B, T, 4 H]

    def _shared(self, scores: Tensor) -> Tensor:
        """[.., C - 1] and one more channel, as strong as the best of them."""
        sizes = scores.abs() if self.routing.signed else scores
        return torch.cat([scores, sizes.amax(-1, keepdim=True)], dim=-1)

    def _weights(self) -> RoutedWeights | None:
        """For the kernel that decodes; None where that is not made for this layer."""
        if self.out_gate is None or self.shared_channel or self.aggregation == "mean" or self.num_channels % WIDTH:
            return None
        return RoutedWeights(
            self.project.weight,
            self.gates.weight,
            self.out_gate.weight,
            self.out.weight,
            self.read_conv.weight,
            self.conv.weight,
            self.out_norm.weight,
            self.gates.bias,
            self.thresholds,
        )
