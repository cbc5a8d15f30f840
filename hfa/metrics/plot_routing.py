"""The picture of routing: how often channels are used, how long they keep, and how evenly tokens spread."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hfa.metrics.routing import Usage

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_READ, _WRITE = "#0072B2", "#D55E00"  # Okabe and Ito's
_LONGEST = 1e6  # tokens; beyond it a channel keeps for as long as anybody looks


def plot_routing(usages: Mapping[int, Usage], path: Path, title: str) -> Path:
    """For each layer: the share of tokens that use each channel, its effective length, and entropy by head.

    Args:
        usages: by layer.
        path: where the PNG goes.
        title: stands above.

    Returns:
        `path`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 0.8 + 2.6 * len(usages)), dpi=130, layout="constrained")
    figure.suptitle(title, fontsize=12, fontweight="bold")
    grid = figure.subplots(len(usages), 3, squeeze=False)
    for (layer, usage), (used, kept, spread) in zip(usages.items(), grid, strict=True):
        _used(used, usage, layer)
        _kept(kept, usage)
        _spread(spread, usage)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


def _used(axes: Axes, usage: Usage, layer: int) -> None:
    """Channels from the busiest to the least busy, all heads together."""
    for shares, colour, name in ((usage.reads, _READ, "read"), (usage.writes, _WRITE, "written to")):
        axes.plot(100 * np.sort(shares.numpy().ravel())[::-1], color=colour, label=name)
    axes.set_yscale("symlog", linthresh=0.1)
    axes.set_ylim(bottom=0)
    axes.set(xlabel="channels, by rank", ylabel="% of tokens")
    axes.set_title(f"layer {layer}: utilisation, {usage.dead} of {usage.reads.numel()} dead", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.3)


def _kept(axes: Axes, usage: Usage) -> None:
    lengths = usage.effective_length.clamp(max=_LONGEST).numpy()
    picture = axes.imshow(np.log10(lengths), aspect="auto", cmap="cividis", interpolation="nearest")
    axes.set(xlabel="channel", ylabel="head", yticks=range(usage.heads))
    axes.set_title("effective length of a channel, tokens", fontsize=10)
    bar = axes.figure.colorbar(picture, ax=axes)
    bar.ax.yaxis.set_major_formatter(lambda power, _: f"{10**power:,.0f}")


def _spread(axes: Axes, usage: Usage) -> None:
    """Entropy beside the number of active channels, of reads and writes in each head."""
    places = np.arange(usage.heads)
    for shift, row, colour, name in ((-0.2, 0, _READ, "read"), (0.2, 1, _WRITE, "write")):
        axes.bar(places + shift, usage.entropy[row].numpy(), 0.4, color=colour, label=name)
        for place, bits, active in zip(places, usage.entropy[row], usage.active[row], strict=True):
            axes.text(place + shift, float(bits), f"{float(active):.1f}", ha="center", va="bottom", fontsize=7)
    axes.axhline(math.log2(usage.channels), color="0.5", linestyle=":")
    axes.set(xlabel="head", ylabel="bits", xticks=places)
    axes.set_title("routing entropy (number: active channels)", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
