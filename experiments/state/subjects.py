"""What is compared: models of two layers and the same width, the recurrent ones with a state of the same size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from omegaconf import OmegaConf
from torch import nn

from hfa.config import config, from_node
from hfa.errors import ConfigError
from hfa.models import ModelConfig
from hfa.models.base import Mixer
from hfa.models.flow import Flow, FlowSettings

CONF = Path(__file__).parents[2] / "conf" / "model"
WIDTH = 128
COMMON: dict[str, Any] = {
    "vocab_size": 8192,
    "d_model": WIDTH,
    "num_layers": 2,
    "d_ff": 128,
    "dropout": 0.0,
    "max_seq_len": 131_072,
}


class Linear(Flow):
    """The flow without the delta rule: gated linear attention, which adds and does not erase.

    Source: arXiv 2312.06635, with one decay a head as in arXiv 2405.21060.
    """

    erase = False


class Matched(Flow):
    """The flow, initialised as :meth:`hfa.models.simplemind.RoutedChannels.match_init` does it."""

    def __init__(self, settings: FlowSettings) -> None:
        super().__init__(settings)
        width, heads = settings.d_model, settings.num_heads
        with torch.no_grad():
            q, k, v = self.qkv.weight.chunk(3)
            nn.init.orthogonal_(q)
            k.copy_(q)
            nn.init.orthogonal_(v)
            self.out.weight.copy_(v.T)
            self.conv.weight.mul_(0.2)
            for taps, tap in zip(self.conv.weight.split(width, dim=1), (0, 1, 0), strict=True):
                taps[tap] += 0.8
            self.gates.bias[:heads] = 10.0
            self.gates.bias[heads:] = -2.0


@config
class LinearConfig(FlowSettings):
    """A model of :class:`Linear` layers."""

    name: ClassVar[str] = "linear"

    def mixer(self, layer: int) -> Mixer:
        return Linear(self)


@config
class DeltaConfig(FlowSettings):
    """A model of :class:`hfa.models.flow.Flow` layers, as they are in HFA."""

    name: ClassVar[str] = "delta"

    def mixer(self, layer: int) -> Mixer:
        return Flow(self)


@config
class MatchedDeltaConfig(FlowSettings):
    """The last layer of :class:`DeltaConfig` is :class:`Matched`."""

    name: ClassVar[str] = "delta-match"

    def mixer(self, layer: int) -> Mixer:
        return Matched(self) if layer == self.num_layers - 1 else Flow(self)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One row of the comparison.

    Args:
        title: in tables and plots.
        config: the model with a state of so many floats a layer.
        grows: whether its state grows with the context instead.
        part: whether it only shows what a part of SimpleMind is worth.
    """

    title: str
    config: Callable[[int], ModelConfig]
    grows: bool = False
    part: bool = False


def configured(name: str, **changes: object) -> ModelConfig:
    """The model of conf/model/`name`.yaml with this study's sizes and `changes`."""
    node = OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), COMMON, changes)
    plain: Any = OmegaConf.to_container(node, resolve=True)
    return from_node(plain, "model", ModelConfig)  # type: ignore[type-abstract]


def simplemind(floats: int, **changes: object) -> ModelConfig:
    """As many channels as make up `floats`; all but one of them active at most, with the hard router a quarter."""
    channels, rest = divmod(floats, WIDTH)
    if rest or channels % 16:
        raise ConfigError("--floats", floats, f"a multiple of {16 * WIDTH}", "8192 is 64 channels")
    shared, hard = bool(changes.get("shared_channel")), changes.get("router") == "hard"
    most = channels // 4 if hard else channels - 1 - shared
    sizes = {"num_heads": 2, "num_channels": channels, "active_channels": most}
    return configured("simplemind", **(sizes | changes))


def flow(floats: int, kind: type[FlowSettings]) -> ModelConfig:
    """Heads of K by K floats, K = d_model / heads, that come to `floats`."""
    heads, rest = divmod(WIDTH * WIDTH, floats)
    if rest or WIDTH % heads:
        raise ConfigError("--floats", floats, f"{WIDTH}^2 over a divisor of {WIDTH}", "8192 is two heads of 64 by 64")
    return kind(**COMMON, num_heads=heads, conv_width=4, chunk_size=32)


def changed(title: str, **changes: object) -> Subject:
    """SimpleMind with other settings."""
    return Subject(title=f"SimpleMind, {title}", config=lambda floats: simplemind(floats, **changes), part=True)


SUBJECTS: Mapping[str, Subject] = {
    "simplemind": Subject(title="SimpleMind", config=simplemind),
    "delta": Subject(title="gated delta rule", config=lambda floats: flow(floats, DeltaConfig)),
    "delta-match": Subject(
        title="gated delta rule, SimpleMind's start", config=lambda floats: flow(floats, MatchedDeltaConfig)
    ),
    "linear": Subject(title="gated linear attention", config=lambda floats: flow(floats, LinearConfig)),
    "transformer": Subject(
        title="Transformer with conv",
        config=lambda _: configured("transformer", num_heads=2, conv_width=4),
        grows=True,
    ),
    "hfa": Subject(
        title="HFA",
        config=lambda _: configured(
            "hfa",
            num_heads=2,
            pattern=["flow", "anchor"],
            window=32,
            block_size=32,
            num_trees=8,
            beam=8,
            num_ranked=256,
        ),
        grows=True,
    ),
    "hard": changed("hard router, a quarter of the channels", router="hard"),
    "soft": changed("soft router", router="soft"),
    "sum": changed("sums", aggregation="sum"),
    "mean": changed("means", aggregation="mean"),
    "active-4": changed("4 active channels", active_channels=4),
    "active-8": changed("8 active channels", active_channels=8),
    "active-16": changed("16 active channels", active_channels=16),
    "active-32": changed("32 active channels", active_channels=32),
    "heads-1": changed("1 head of 128", num_heads=1),
    "heads-4": changed("4 heads of 32", num_heads=4),
    "unsigned": changed("scores above zero alone", signed=False),
    "shared": changed("a shared channel", shared_channel=True),
    "ungated": changed("no output gate", output_gate=False),
}
