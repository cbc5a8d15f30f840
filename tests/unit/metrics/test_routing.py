from __future__ import annotations

import math
from pathlib import Path

import torch
from matplotlib.image import imread

from hfa.metrics.plot_routing import plot_routing
from hfa.metrics.routing import Usage, entropy


def test_what_tokens_did_is_counted_by_hand() -> None:
    """Two tokens and one head of four channels: the first uses one, the second two alike."""
    half = math.sqrt(0.5)
    weights = torch.tensor([[1.0, 0, 0, 0], [half, half, 0, 0]]).view(1, 2, 1, 4)
    decays = torch.tensor([[-0.1, 0, 0, 0], [-0.3, -0.2, 0, 0]]).view(1, 2, 1, 4)
    usage = Usage(heads=1, channels=4)
    usage.update(weights, weights.flip(-1), decays)
    assert usage.tokens == 2
    torch.testing.assert_close(usage.reads, torch.tensor([[1.0, 0.5, 0, 0]]).double())
    torch.testing.assert_close(usage.writes, torch.tensor([[0, 0, 0.5, 1.0]]).double())
    torch.testing.assert_close(usage.effective_length[0, :2], torch.tensor([5.0, 10.0]).double())
    assert torch.isinf(usage.effective_length[0, 2:]).all()
    torch.testing.assert_close(usage.active, torch.full((2, 1), 1.5).double())
    torch.testing.assert_close(usage.entropy, torch.full((2, 1), 0.5).double())
    assert usage.dead == 4  # each is only read, or only written to, or neither


def test_entropy_of_an_even_spread_is_the_logarithm_of_its_size() -> None:
    torch.testing.assert_close(entropy(torch.full((3, 8), 8**-0.5)), torch.full((3,), 3.0))


def test_the_picture_has_a_row_a_layer(tmp_path: Path) -> None:
    usages = {layer: Usage(heads=2, channels=16) for layer in (0, 2)}
    for usage in usages.values():
        weights = torch.rand(2, 9, 2, 16, generator=torch.Generator().manual_seed(0))
        usage.update(weights, weights, -weights)
    one = plot_routing({0: usages[0]}, tmp_path / "one.png", "one layer")
    both = plot_routing(usages, tmp_path / "both.png", "two layers")
    assert imread(both).shape[0] > 1.5 * imread(one).shape[0]
