from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from hfa.metrics.bits import LossByPosition
from hfa.metrics.plot import percent, plot_loss, plot_overview, plot_recall, short
from hfa.metrics.recall import Recall


def counted(rate: float, lengths: tuple[int, ...] = (64, 128)) -> Recall:
    recall, draw = Recall(depth_bins=4), np.random.default_rng(0)
    for task in ("mqar", "needle"):
        for length in lengths:
            gold = np.full((16, length), -1)
            gold[:, -1] = draw.integers(0, length, 16)
            recall.update(task, torch.from_numpy(draw.random((16, length)) < rate), torch.from_numpy(gold))
    return recall


def measured(nats: float) -> LossByPosition:
    loss = LossByPosition.doubling(256, 16)
    loss.update(torch.full((1, 256), nats), torch.zeros(1, 256, dtype=torch.int64), np.array([1]))
    return loss


def test_recall_of_several_models(tmp_path: Path) -> None:
    path = plot_recall({"hfa": counted(1.0), "simplemind": counted(0.3, (64,))}, tmp_path / "plots" / "recall.png")
    image = imread(path)
    assert path == tmp_path / "plots" / "recall.png"
    assert image.shape[1] == 1500
    all_right, some_right = image[:, :750, :3], image[:, 750:, :3]
    yellow = np.array([0.995, 0.908, 0.212])  # the bright end of the colour map
    assert np.isclose(all_right, yellow, atol=0.02).all(-1).mean() > 0.3
    assert np.isclose(some_right, yellow, atol=0.02).all(-1).mean() < 0.05


def test_loss_of_several_models(tmp_path: Path) -> None:
    one = imread(plot_loss({"hfa": measured(1.0)}, tmp_path / "one.png"))
    two = imread(plot_loss({"hfa": measured(1.0), "transformer": measured(2.0)}, tmp_path / "two.png"))
    vermilion = np.array([0xD5, 0x5E, 0x00]) / 255
    drawn = [np.isclose(image[..., :3], vermilion, atol=0.02).all(-1).sum() for image in (one, two)]
    assert drawn[0] == 0
    assert drawn[1] > 500


@pytest.mark.parametrize("plot", [plot_recall, plot_loss])
def test_nothing_measured_is_an_empty_figure(tmp_path: Path, plot: object) -> None:
    assert plot({}, tmp_path / "empty.png").stat().st_size > 0  # type: ignore[operator]


def test_overview_has_a_panel_for_every_measure(tmp_path: Path) -> None:
    image = imread(plot_overview({"hfa": counted(1.0)}, tmp_path / "retention.png"))
    yellow = np.isclose(image[..., :3], [0.995, 0.908, 0.212], atol=0.02).all(-1).any(0)
    assert np.count_nonzero(np.diff(yellow.astype(int)) == 1) >= 2, "exact and answer, nothing audited"


@pytest.mark.parametrize(
    ("rate", "decimals", "said"),
    [(1, 0, "100"), (0, 2, "0"), (0.5, 0, "50"), (0.9996, 0, "99.9"), (0.996, 0, "99.6"), (0.99999, 2, "99.99"),
     (0.00001, 1, "0.1"), (0.98765, 2, "98.77")],
)  # fmt: skip
def test_percent_says_100_and_0_of_nothing_else(rate: float, decimals: int, said: str) -> None:
    assert percent(rate, decimals) == said


@pytest.mark.parametrize(
    ("tokens", "said"),
    [(512, "512"), (1 << 17, "128K"), (1 << 20, "1M"), (100_000, "100,000"), (1_234_567, "1,234,567")],
)
def test_lengths_are_short_where_they_are_round(tokens: float, said: str) -> None:
    assert short(tokens) == said
