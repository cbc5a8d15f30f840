"""The hybrid: SimpleMind's routed channels and HFA's flow and anchors, interleaved by a pattern."""

from __future__ import annotations

from typing import ClassVar, Literal

from hfa.config import config
from hfa.models.anchor import Anchor, AnchorSettings
from hfa.models.base import Mixer
from hfa.models.flow import Flow
from hfa.models.simplemind import RoutedChannels, RoutedSettings


@config
class HybridConfig(AnchorSettings, RoutedSettings):
    """Every layer is one of the mixers of HFA and SimpleMind."""

    name: ClassVar[str] = "hybrid"

    pattern: tuple[Literal["routed", "flow", "anchor"], ...]

    def mixer(self, layer: int) -> Mixer:
        kind, later = self.kinds[layer], self.kinds[layer + 1 :]
        if kind == "routed":
            return RoutedChannels(self, match="routed" not in later)
        return Anchor(self) if kind == "anchor" else Flow(self)
