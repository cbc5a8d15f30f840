"""The tables of the documents, read from the results of the studies."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from experiments.claims.claim import REPO, Claim, Table, read
from experiments.complexity.measure import Regime
from experiments.complexity.report import Results

_QUICKSTART = "experiments/quickstart/results/{}.json"
_COMPLEXITY = "experiments/complexity/results/{}.json"
_SOAK = "experiments/soak/results/soak.json"
_TITLES = {"hfa": "HFA", "simplemind": "SimpleMind"}


def tables() -> Iterator[Table]:
    """Every table; one whose results are not recorded says so."""
    yield quickstart()
    yield prefill("prefill-short", {"hfa": "HFA", "xlstm": "xLSTM, the fastest linear peer", "llama": "Llama, SDPA"})
    yield prefill(
        "prefill",
        {"hfa": "HFA", "xlstm": "xLSTM", "minimax": "MiniMax lightning attention", "llama": "Llama, SDPA"},
        ratios=True,
    )
    yield training("train", body_only=False)
    yield training("train-body", body_only=True)
    yield decode()
    yield slopes()
    yield soak()


def quickstart() -> Table:
    """Exact answers and bits per byte of both models of the demo, by length."""
    rows, claims, lengths = [], list[Claim](), list[int]()
    for task, title in (
        ("needle", "needle, exact of {}"),
        ("mqar", "MQAR, exact of {}"),
        (None, "bits per byte of text"),
    ):
        for model, name in _TITLES.items():
            source = _QUICKSTART.format(model)
            data, made = read(source)
            lengths = sorted({one["length"] for one in data["recall"]})
            cells = []
            for length in lengths:
                claim = _answers(data, task, length) if task else _bits(data, length)
                said = f"{name}, {title.format('N') if task else title}, at {length:,} tokens"
                claims.append(Claim(claim=said, source=source, made=made, **claim))
                cells.append(claims[-1].shown)
            count = next((one["answers"] for one in data["recall"] if one["task"] == task), 0)
            rows.append([f"{name}, {title.format(count)}", *cells])
    return Table(name="quickstart", head=["context, tokens", *(f"{n:,}" for n in lengths)], rows=rows, claims=claims)


def prefill(name: str, models: dict[str, str], *, ratios: bool = False) -> Table:
    """Tokens a second of prefill."""
    return _speeds(name, "prefill", models, ratios=ratios)


def training(name: str, *, body_only: bool) -> Table:
    """Tokens a second of forward and backward, with head and loss or without."""
    models = {"hfa": "HFA", "minimax": "MiniMax lightning attention", "xlstm": "xLSTM", "llama": "Llama, SDPA"}
    return _speeds(name, "train", models, ratios=True, body_only=body_only)


def decode() -> Table:
    """Milliseconds a token by context."""
    models = {"hfa": "HFA", "minimax": "MiniMax lightning attention", "xlstm": "xLSTM", "llama": "Llama, SDPA"}
    return _speeds("decode", "decode", models, digits=1)


def slopes() -> Table:
    """Slope of log time over log length, with its bootstrap interval."""
    rows, claims = [], []
    for regime, title in (("prefill", "prefill"), ("train", "training")):
        source = recorded(regime)
        data, made = read(source)
        slope = Results(data).slope("hfa", regime)  # type: ignore[arg-type]
        if slope is None:
            continue
        ends = f" [{slope.interval[0]:.3f}, {slope.interval[1]:.3f}]" if slope.interval else ""
        shown = f"{slope.value:.3f}{ends}"
        said = f"slope of HFA's log time over log length, {title}, {slope.lengths[0]:,} to {slope.lengths[-1]:,} tokens"
        claims.append(
            Claim(claim=said, shown=shown, value=slope.value, interval=slope.interval, source=source, made=made)
        )
        rows.append([title, f"{slope.lengths[0]:,} to {slope.lengths[-1]:,}", shown])
    return Table(name="slopes", head=["HFA", "tokens", "slope [95% interval]"], rows=rows, claims=claims)


def soak() -> Table:
    """What half an hour of load and faults came to."""
    head = ["under load and faults", "recorded"]
    path = REPO / _SOAK
    if not path.exists() or "attempts" not in json.loads(path.read_text(encoding="utf-8")):
        return _unrecorded("soak", head)  # as are results of before attempts were counted
    data, made = read(_SOAK)
    again = sum(sum(ended.values()) - ended.get("answered", 0) for ended in data["attempts"].values())
    facts: dict[str, float] = {
        "minutes": data["provenance"]["config"]["minutes"],
        "faults injected": len(data["faults"]),
        "requests": data["requests"],
        **{f"answered over {wire}": count for wire, count in sorted(data["answered"].items())},
        "wrong answers": len(data["wrong"]),
        "lost requests": len(data["lost"]),
        "answers cut off by a worker that lives": len(data["dropped"]),
        "attempts that were refused or cut off, and made again": again,
        "of those, because the model failed while it served": data["model_failures"],
        "a caller's wait, median, s": data["waited_s"]["p50"],
        "a caller's wait, 99th percentile, s": data["waited_s"]["p99"],
        "a caller's wait, longest, s": data["waited_s"]["max"],
        "requests of intruders": sum(data["intruders"].values()),
        "intruders let in": len(data["intruded"]),
        "resident memory in the middle third, MiB": data["resident_mib"]["middle_third"],
        "resident memory in the last third, MiB": data["resident_mib"]["last_third"],
    }
    claims = [
        Claim(claim=f"soak: {what}", shown=_amount(value), value=float(value), interval=None, source=_SOAK, made=made)
        for what, value in facts.items()
    ]
    return Table(name="soak", head=head, rows=[[what, _amount(value)] for what, value in facts.items()], claims=claims)


def _unrecorded(name: str, head: Sequence[str]) -> Table:
    return Table(name=name, head=head, rows=[["not recorded yet", *[""] * (len(head) - 1)]], claims=[])


def _amount(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def _speeds(
    name: str,
    regime: Regime,
    models: dict[str, str],
    *,
    ratios: bool = False,
    body_only: bool = False,
    digits: int = 0,
) -> Table:
    source = recorded(regime)
    data, made = read(source)
    results = Results(data)
    lengths = [n for n in results.lengths(regime) if all(results.rates(model, regime, n) for model in models)]
    what = "ms a token" if regime == "decode" else "tokens/s"
    rates = {(m, n): _rates(results, m, regime, n, body_only) for m in models for n in lengths}
    middle = {key: statistics.median(values) for key, values in rates.items()}
    claims: list[Claim] = []

    def add(title: str, length: int, shown: str, value: float, spread: list[float]) -> str:
        interval = tuple(map(float, np.quantile(spread, [0.25, 0.75]))) if len(spread) > 1 else None
        said = f"{title}: {what}, {regime}{', body alone' if body_only else ''}, {length:,} tokens"
        claims.append(Claim(claim=said, shown=shown, value=value, interval=interval, source=source, made=made))  # type: ignore[arg-type]
        return shown

    rows = [
        [title, *(add(title, n, f"{middle[m, n]:,.{digits}f}", middle[m, n], rates[m, n]) for n in lengths)]
        for m, title in models.items()
    ]
    if ratios:
        linear = [model for model in models if model in results.linear_peers()]
        others = {"HFA over the fastest linear peer": linear, "HFA over Llama": ["llama"]}
        for title, peers in others.items():
            values = [middle["hfa", n] / max(middle[peer, n] for peer in peers) for n in lengths]
            rows.append([title, *(add(title, n, f"{v:.2f}", v, []) for n, v in zip(lengths, values, strict=True))])
    head = ["sequence, tokens" if regime == "train" else "context, tokens", *(f"{length:,}" for length in lengths)]
    return Table(name=name, head=head, rows=rows, claims=claims)


def _rates(results: Results, model: str, regime: Regime, length: int, body_only: bool) -> list[float]:
    rates = results.rates(model, regime, length)
    if not body_only:
        return rates
    row = results.row(model, regime, length)
    shares = (1 - head_s / all_s for head_s, all_s in zip(row["head_seconds"], row["seconds"], strict=True))
    return [rate / share for rate, share in zip(rates, shares, strict=True)]


def recorded(regime: str) -> str:
    """The run that a regime is read from: its own, or the one of all regimes."""
    own = _COMPLEXITY.format(regime)
    return own if (REPO / own).exists() else _COMPLEXITY.format("complexity")


def _answers(data: dict[str, Any], task: str, length: int) -> dict[str, Any]:
    one = next(one for one in data["recall"] if (one["task"], one["length"]) == (task, length))
    low, high = one["interval"]
    shown = f"{100 * one['accuracy']:.1f}% [{100 * low:.0f}, {100 * high:.0f}]"
    return {"shown": shown, "value": one["accuracy"], "interval": (low, high)}


def _bits(data: dict[str, Any], length: int) -> dict[str, Any]:
    one = next(one for one in data["bits_per_byte"] if one["length"] == length)
    return {"shown": f"{one['bits_per_byte']:.3f}", "value": one["bits_per_byte"], "interval": None}
