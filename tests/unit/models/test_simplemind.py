"""What SimpleMind starts with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from hfa.config import from_node
from hfa.models.simplemind import RoutedChannels, SimpleMindConfig

CONF = Path(__file__).parents[3] / "conf" / "model" / "simplemind.yaml"


def layer(**changes: object) -> RoutedChannels:
    values = OmegaConf.to_container(OmegaConf.merge(OmegaConf.load(CONF), {"d_model": 128, "num_heads": 2}, changes))
    assert isinstance(values, dict)
    torch.manual_seed(0)
    return RoutedChannels(from_node(values, "model", SimpleMindConfig), match=False)


@pytest.mark.parametrize("budget", [4, 16, 63])
@pytest.mark.parametrize("signed", [True, False])
def test_thresholds_start_where_they_are_learnt(budget: int, signed: bool) -> None:
    """Below the budget for most tokens: one that the budget decides has no gradient."""
    routed = layer(active_channels=budget, signed=signed)
    x = torch.randn(2, 64, 128, generator=torch.Generator().manual_seed(0))
    y, _ = routed(x, routed.init_state(2))
    y.square().mean().backward()
    assert routed.thresholds.grad is not None
    assert (routed.thresholds.grad != 0).all()
    assert (routed.thresholds >= 0).all()
    reading, writing, _ = routed.routes(x, routed.init_state(2))
    for weights in (reading, writing):
        used = (weights != 0).sum(-1)
        assert 0.4 * budget < used.float().mean() < 0.9 * budget
        assert 1 <= used.min() < used.max() <= budget
