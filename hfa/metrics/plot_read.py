"""The picture of an audit: what one query read, and how it came to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FAR, _NEAR, _GOLD = "#0072B2", "#999999", "#D55E00"  # Okabe and Ito's
_LISTED = 8  # tokens read that are named


def plot_reads(reads: Sequence[Mapping[str, Any]], gold: int, texts: Mapping[int, str], path: Path, title: str) -> Path:
    """For each anchor layer: the weights by position, the leaves that were reached, and the tokens read most.

    Args:
        reads: of each layer, as `hfa.models.audit.Explanation.to_json` has it.
        gold: position of the evidence.
        texts: what stands around a position, for those that are named.
        path: where the PNG goes.
        title: stands above; the verdict, say.

    Returns:
        `path`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 0.8 + 5.0 * len(reads)), dpi=130, layout="constrained")
    figure.suptitle(title, fontsize=12, fontweight="bold")
    for part, read in zip(figure.subfigures(len(reads), 1, squeeze=False)[:, 0], reads, strict=True):
        upper, lower = part.subfigures(2, 1)
        left, right = lower.subplots(1, 2)
        _weights(upper.subplots(), read, gold)
        _leaves(left, read, gold)
        _most_read(right, read, gold, texts)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


def most_read(read: Mapping[str, Any]) -> list[tuple[int, float]]:
    """The positions with the greatest weight in any head, with it."""
    weights = np.max(np.array(read["weights"]), axis=0)
    order = np.argsort(-weights, kind="stable")[:_LISTED]
    return [(int(read["positions"][i]), float(weights[i])) for i in order]


def _weights(axes: Axes, read: Mapping[str, Any], gold: int) -> None:
    positions, weights = np.array(read["positions"]), np.max(np.array(read["weights"]), axis=0)
    near = positions >= read["near_from"]
    axes.axvspan(read["near_from"], read["position"], color=_NEAR, alpha=0.25, label="window")
    for chosen, colour, name in ((near, _NEAR, "read in the window"), (~near, _FAR, "retrieved")):
        axes.vlines(positions[chosen], 0, weights[chosen], color=colour, linewidth=2, label=name)
    axes.plot([gold], [-0.04], marker="^", color=_GOLD, markersize=9, clip_on=False, linestyle="", label="evidence")
    axes.set_xlim(0, max(1, read["position"]))
    axes.set_ylim(0, max(0.05, 1.08 * float(weights.max())))
    axes.set_title(f"layer {read['layer']}: weight of every token read (the head that reads it most)", fontsize=10)
    axes.set_xlabel("position in the context (tokens)", fontsize=9)
    axes.set_ylabel("weight", fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=4)


def _leaves(axes: Axes, read: Mapping[str, Any], gold: int) -> None:
    leaves = read["leaves"]
    axes.set_title("anchors the query descended to", fontsize=10)
    if not leaves:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "none: all is in the window", ha="center", va="center", fontsize=10)
        return
    named: set[int] = set()  # tries of which a leaf is labelled: the one with the evidence, or the nearest
    with_evidence = {leaf["trie"] for leaf in leaves if gold in leaf["positions"]}
    for leaf in leaves:
        holds = gold in leaf["positions"]
        colour = _GOLD if holds else _FAR
        axes.scatter(leaf["regret"], leaf["trie"], s=12 + 5 * min(leaf["size"], 60), color=colour, alpha=0.65, zorder=3)
        if leaf["trie"] not in named and (holds or leaf["trie"] not in with_evidence):
            named.add(leaf["trie"])
            way = " / ".join(f"{group}:{code}" for group, code in leaf["path"])
            axes.annotate(
                f"{way} ({leaf['size']})",
                (leaf["regret"], leaf["trie"]),
                xytext=(0, 11),
                textcoords="offset points",
                fontsize=7,
                color=colour,
            )
    axes.set_yticks(sorted({leaf["trie"] for leaf in leaves}))
    axes.set_ylim(max(leaf["trie"] for leaf in leaves) + 0.6, -0.8)
    axes.set_xlim(left=-0.15)
    axes.set_ylabel("trie", fontsize=9)
    axes.set_xlabel("regret of the path (0: the query's first choices); label: group:code (tokens)", fontsize=8)
    axes.grid(axis="x", alpha=0.3)


def _most_read(axes: Axes, read: Mapping[str, Any], gold: int, texts: Mapping[int, str]) -> None:
    axes.set_axis_off()
    axes.set_title("tokens read most", fontsize=10)
    for line, (position, weight) in enumerate(most_read(read)):
        y = 0.93 - line / _LISTED
        colour = _GOLD if position == gold else "black"
        axes.text(0.0, y, f"{position:,}", color=colour, fontsize=8.5, family="monospace", transform=axes.transAxes)
        axes.text(0.16, y, f"{weight:.3f}", color=colour, fontsize=8.5, family="monospace", transform=axes.transAxes)
        text = texts.get(position, "")
        axes.text(
            0.28, y, text, color=colour, fontsize=8.5, family="monospace", transform=axes.transAxes, parse_math=False
        )
