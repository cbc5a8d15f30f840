"""The hybrid: SimpleMind's routed channels and HFA's flow and anchors, interleaved by a pattern."""

from __future__ import annotations

from typing import ClassVar, Literal

from hfa.config import config
from hfa.errors import ConfigError
from hfa.models.base import Mixer
from hfa.models.hfa import Anchor, AnchorSettings, Flow
from hfa.models.simplemind import RoutedChannels, RoutedSettings


@config
class HybridConfig(AnchorSettings, RoutedSettings):
    """Every layer is one of the mixers of HFA and SimpleMind."""

    name: ClassVar[str] = "hybrid"

    pattern: tuple[Literal["routed", "flow", "anchor"], ...]  # repeated over the layers

    def check(self) -> None:
        super().check()
        if not self.pattern:
            raise ConfigError("pattern", self.pattern, "at least one of routed, flow, anchor")

    def mixer(self, layer: int) -> Mixer:
        kinds = [self.pattern[i % len(self.pattern)] for i in range(self.num_layers)]
        if kinds[layer] == "routed":
            return RoutedChannels(self, match="routed" not in kinds[layer + 1 :])
        return Anchor(self) if kinds[layer] == "anchor" else Flow(self)
