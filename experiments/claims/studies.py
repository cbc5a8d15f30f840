"""The tables of the documents, read from the results of the studies."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.claims.claim import REPO, Claim, Table, made_by, read
from experiments.claims.trained import ablations, language, retention, ruler, state, unrecorded
from experiments.complexity.figures import Results
from experiments.complexity.measure import Regime
from experiments.serving.plot import CLAIMS
from hfa.metrics.plot import percent
from hfa.metrics.recall import Recall

_QUICKSTART = "experiments/quickstart/results/{}.json"
_COMPLEXITY = "experiments/complexity/results/{}.json"
_SOAK = "experiments/soak/results/soak.json"
_SUBNET = "experiments/subnet/results/subnet.json"
_SERVING = "experiments/serving/results/serving.json"
_HARNESS = "experiments/harness/results/harness.json"
_TITLES = {"hfa": "HFA", "simplemind": "SimpleMind"}
_MISSING = "-"  # a peer that was too slow at a length, or failed there
_PEERS = {"xlstm": "xLSTM", "minimax": "MiniMax lightning attention", "llama": "Llama, SDPA"}
_PREFILL = {  # what leaves nothing out in prefill, as the peers do not, beside what does
    "hfa": "HFA",
    "hfa-all-features": "HFA, all features",
    "simplemind": "SimpleMind",
    "simplemind-all-features": "SimpleMind, all features",
}


def tables() -> Iterator[Table]:
    """Every table; one whose results are not recorded says so."""
    yield quickstart()
    yield prefill(
        "prefill-short", {**_PREFILL, "xlstm": "xLSTM, the faster of two linear peers", "llama": "Llama, SDPA"}
    )
    yield prefill("prefill", {**_PREFILL, **_PEERS}, ratios=True)
    yield training("train", body_only=False)
    yield training("train-body", body_only=True)
    yield decode()
    yield slopes()
    yield soak()
    yield subnet()
    yield serving()
    yield harness()
    yield retention()
    yield language()
    yield from ablations()
    yield ruler()
    yield state()


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
    return _speeds(name, "train", {**_TITLES, **_PEERS}, ratios=True, body_only=body_only)


def decode() -> Table:
    """Milliseconds a token by context."""
    return _speeds("decode", "decode", {**_TITLES, **_PEERS}, digits=1)


def slopes() -> Table:
    """Slopes of our models' log time and log peak memory over log length, with their bootstrap intervals."""
    rows, claims = [], []
    regimes: dict[Regime, str] = {"prefill": "prefill", "train": "training", "decode": "decode, of a token"}
    models = {**_TITLES, "hfa-tiny": "HFA, tiny"}  # which is measured for its slope alone
    for (model, name), (regime, title) in itertools.product(models.items(), regimes.items()):
        source = _COMPLEXITY.format(regime)
        data, made = read(source)
        results = Results(data)
        if model not in results.tried(regime):
            continue
        found = {"time": results.slope(model, regime), "peak memory": results.peak_slope(model, regime)}
        for what, slope in found.items():
            if slope is None:
                continue
            span = f"{slope.lengths[0]:,} to {slope.lengths[-1]:,}"
            said = f"slope of {name}'s log {what} over log length, {title}, {span} tokens"
            claims.append(
                Claim(
                    claim=said, shown=str(slope), value=slope.value, interval=slope.interval, source=source, made=made
                )
            )
            rows.append([f"{name}, {title}: {what}", span, str(slope)])
    return Table(name="slopes", head=["model", "tokens", "slope [95% interval]"], rows=rows, claims=claims)


def soak() -> Table:
    """What half an hour of load and faults came to."""
    head = ["under load and faults", "recorded"]
    path = REPO / _SOAK
    if not path.exists() or "attempts" not in json.loads(path.read_text(encoding="utf-8")):
        return unrecorded("soak", head)  # as are results of before attempts were counted
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


def subnet() -> Table:
    """Right answers by length, and the weight that a validator would set, of every miner."""
    if not (REPO / _SUBNET).exists():
        return unrecorded("subnet", ["miner", "right answers", "weight"])
    data, made = read(_SUBNET)
    lengths = sorted({one["length"] for one in data["outcomes"]})
    rows, claims = [], list[Claim]()

    def add(said: str, shown: str, value: float) -> str:
        claims.append(
            Claim(claim=f"subnet: {said}", shown=shown, value=value, interval=None, source=_SUBNET, made=made)
        )
        return shown

    for miner, weight in sorted(data["weights"].items(), key=lambda item: -item[1]):
        cells = []
        for length in lengths:
            right = [o["right"] for o in data["outcomes"] if (o["miner"], o["length"]) == (miner, length)]
            rate = sum(right) / len(right)
            cells.append(add(f"{miner}, right of {len(right)} at {length:,} bytes", f"{100 * rate:.0f}%", rate))
        rows.append([miner, *cells, add(f"{miner}, weight", f"{weight:.3f}", weight)])
    return Table(
        name="subnet", head=["miner", *(f"right at {n:,} bytes" for n in lengths), "weight"], rows=rows, claims=claims
    )


def serving() -> Table:
    """What is asked of the engine, and what was measured; each part has a run of its own."""
    head = ["figure", "measured", "asked"]
    if not (REPO / _SERVING).exists():
        return unrecorded("serving", head)
    parts = json.loads((REPO / _SERVING).read_text(encoding="utf-8"))["parts"]
    rows, claims = [], []
    for label, part, key, limit, more in CLAIMS:
        if part in parts:
            value = parts[part][key]
            made = made_by(parts[part]["provenance"], f"{_SERVING}, parts.{part}.provenance.config")
            shown = f"{value:.3g}"
            claims.append(
                Claim(claim=f"serving: {label}", shown=shown, value=value, interval=None, source=_SERVING, made=made)
            )
            rows.append([label, shown, f"{'at least' if more else 'at most'} {limit:g}"])
    return Table(name="serving", head=head, rows=rows, claims=claims)


def _amount(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def harness() -> Table:
    """What the language-model evaluation harness found: a row a task, with its standard error where it gives one."""
    data, made = read(_HARNESS)
    rows, claims = [], []
    for task, measures in data["results"].items():
        for name in ("bits_per_byte", "acc", "match"):
            if name in measures:
                value, error = measures[name], measures.get(f"{name}_stderr")
                shown = f"{value:.3f} ± {error:.3f}" if error else f"{value:.3f}"
                most = math.inf if name == "bits_per_byte" else 1.0  # the others are shares
                ends = (max(0.0, value - 1.96 * error), min(most, value + 1.96 * error)) if error else None
                said = f"lm-evaluation-harness on HFA: {task}, {name}"
                claims.append(Claim(claim=said, shown=shown, value=value, interval=ends, source=_HARNESS, made=made))
                rows.append([f"{task}, {name.replace('_', ' ')}", shown])
    return Table(name="harness", head=["task and measure", "value"], rows=rows, claims=claims)


def _speeds(
    name: str,
    regime: Regime,
    models: dict[str, str],
    *,
    ratios: bool = False,
    body_only: bool = False,
    digits: int = 0,
) -> Table:
    source = _COMPLEXITY.format(regime)
    data, made = read(source)
    results = Results(data)
    models = {model: title for model, title in models.items() if model in results.tried(regime)}
    rates = {(m, n): results.rates(m, regime, n, body_only=body_only) for m in models for n in results.lengths(regime)}
    middle = {key: statistics.median(values) for key, values in rates.items() if values}
    lengths = sorted({n for m, n in middle if results.models[m]["ours"]})
    what = "ms a token" if regime == "decode" else "tokens/s"
    claims: list[Claim] = []

    def add(title: str, length: int, shown: str, value: float, spread: list[float]) -> str:
        interval = tuple(map(float, np.quantile(spread, [0.25, 0.75]))) if len(spread) > 1 else None
        said = f"{title}: {what}, {regime}{', body alone' if body_only else ''}, {length:,} tokens"
        claims.append(Claim(claim=said, shown=shown, value=value, interval=interval, source=source, made=made))  # type: ignore[arg-type]
        return shown

    def speed(model: str, length: int) -> str:
        if (model, length) not in middle:
            return _MISSING
        value = middle[model, length]
        return add(models[model], length, f"{value:,.{digits}f}", value, rates[model, length])

    def ratio(title: str, model: str, peers: list[str], length: int) -> str:
        theirs = [middle[peer, length] for peer in peers if (peer, length) in middle]
        if (model, length) not in middle or not theirs:
            return _MISSING
        value = middle[model, length] / max(theirs)
        return add(title, length, f"{value:.2f}", value, [])

    rows = [[title, *(speed(model, n) for n in lengths)] for model, title in models.items()]
    ours = [model for model in models if results.models[model]["ours"]] if ratios else []
    linear = [model for model in models if model in results.linear_peers()]
    for model in ours:
        for other, peers in (("the fastest linear peer", linear), ("Llama", ["llama"])):
            title = f"{models[model]}{',' if ',' in models[model] else ''} over {other}"
            rows.append([title, *(ratio(title, model, peers, n) for n in lengths)])
    head = ["sequence, tokens" if regime == "train" else "context, tokens", *(f"{length:,}" for length in lengths)]
    return Table(name=name, head=head, rows=rows, claims=claims)


def _answers(data: dict[str, Any], task: str, length: int) -> dict[str, Any]:
    count = Recall.from_json(data["recall_by_depth"]).at(task, length)
    shown = f"{100 * count.accuracy:.1f}% [{', '.join(map(percent, count.interval))}]"
    return {"shown": shown, "value": count.accuracy, "interval": tuple(count.interval)}


def _bits(data: dict[str, Any], length: int) -> dict[str, Any]:
    one = next(one for one in data["bits_per_byte"] if one["length"] == length)
    return {"shown": f"{one['bits_per_byte']:.3f}", "value": one["bits_per_byte"], "interval": None}
