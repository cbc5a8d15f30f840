"""The picture of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hfa.metrics.plot import COLOURS

# what is asked of each figure: label, part, key in it, limit, and whether more is better
CLAIMS: tuple[tuple[str, str, str, float, bool], ...] = (
    ("32 requests, total time over the peer's generate", "concurrent", "over_generate", 0.65, False),
    ("the same over the peer's fastest loop, which users would have to write", "concurrent", "over_loop", 1.0, False),
    ("batch decode, tokens/s over the peer's generate, float32", "decode", "over_generate", 2.0, True),
    ("the same over the peer's fastest loop, float32", "decode", "over_loop", 1.0, True),
    ("the faster of float32 and bfloat16 for either, generate", "decode", "best_over_generate", 1.0, True),
    ("the faster of float32 and bfloat16 for either, fastest loop", "decode", "best_over_loop", 1.0, True),
    ("second turn of a session, share of the cold first token", "session", "share_of_cold", 0.02, False),
    ("p99 gap beside a long prompt, over alone", "gap", "over_alone", 3.0, False),
    ("processor time of scheduling, text and HTTP over the model's, eight streams", "overhead", "share", 0.05, False),
    ("from step to step by the clock, beyond the model's step alone", "overhead", "clock_share", 0.05, False),
    ("seconds to ready, two models", "ready", "median_s", 10.0, False),
    ("requests neither answered nor refused", "load", "lost", 0.0, False),
    ("memory of the last third of them, growth over the second", "load", "growth_in_the_last_third", 0.02, False),
)


def plot(data: dict[str, Any], path: Path) -> Path:
    """How far each figure is from what is asked: left of the line is better."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = []
    for label, part, key, limit, more in CLAIMS:
        value = data["parts"].get(part, {}).get(key)
        if value is not None and limit:
            rows.append((label, value, limit, limit / value if more else value / limit))
    figure, axes = plt.subplots(figsize=(9, 0.55 * len(rows) + 1.2), layout="constrained")
    beside = axes.get_yaxis_transform()  # x counts the picture's width
    for place, (_, value, limit, share) in enumerate(reversed(rows)):
        axes.barh(place, share, color=COLOURS[0] if share <= 1 else COLOURS[1], height=0.6)
        axes.text(1.02, place, f"{value:.3g} (asked {limit:g})", va="center", fontsize=9, transform=beside)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), [row[0] for row in reversed(rows)], fontsize=9)
    axes.set_xlim(0, max([1.2, *(row[3] * 1.1 for row in rows)]))
    axes.set_xlabel("share of what is allowed; shorter is better")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
