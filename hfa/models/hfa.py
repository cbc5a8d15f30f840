"""Hierarchical Flow Anchoring: a flow that carries the stream, and anchors that forget nothing.

Most layers are *flow*: a gated delta rule with a constant state. A few are *anchor* layers: every token's key and
value stay, and a query reads its neighbourhood and the few tokens that an index finds among all of them.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from hfa.config import config
from hfa.models.anchor import Anchor, AnchorSettings
from hfa.models.base import Mixer
from hfa.models.flow import Flow


@config
class HFAConfig(AnchorSettings):
    """See :class:`Flow` and :class:`Anchor`."""

    name: ClassVar[str] = "hfa"

    pattern: tuple[Literal["flow", "anchor"], ...]

    def mixer(self, layer: int) -> Mixer:
        return Anchor(self) if self.kinds[layer] == "anchor" else Flow(self)
