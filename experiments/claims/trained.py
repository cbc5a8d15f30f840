"""The tables of studies that train models: what they retain, recall and predict, over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from experiments.ablations import __main__ as parts
from experiments.ablations import hybrid, setting, simplemind
from experiments.claims.claim import REPO, Claim, Table, made_by
from experiments.language import report as language_report
from experiments.language.ledger import Ledger as Runs
from experiments.language.models import PARAMETERS, VARIANTS
from experiments.language.study import Study, score
from experiments.language.variant import Variant
from experiments.retention.ledger import Ledger as Cells
from experiments.retention.report import MEASURES
from experiments.ruler import __main__ as rulers
from experiments.state import report as state_report
from experiments.state.subjects import SUBJECTS
from hfa.metrics.plot import percent, short
from hfa.metrics.recall import Recall

_RETENTION = "experiments/retention/results/cells.jsonl"
_ABLATIONS = "experiments/ablations/results/runs.jsonl"
_LANGUAGE = "experiments/language/results/runs.jsonl"
_RULER = "experiments/ruler/results/runs.jsonl"
_STATE = "experiments/state/results/trials.jsonl"
_MISSING = "-"  # not measured at this length


def retention() -> Table:
    """Storage, selection and exact answers by task and length, of all seeds; of several, the worst one's, too."""
    cells = Cells(REPO / _RETENTION)
    if not cells.seeds():
        return unrecorded("retention", ["task", "%"])
    together, by_seed = cells.recall(), [cells.recall(seed) for seed in cells.seeds()]
    made = {(cell["task"], cell["length"]): made_by(cell["provenance"], f"{_RETENTION}, provenance") for cell in cells}
    lengths = sorted({length for _, length in made})
    claims: list[Claim] = []

    def add(said: str, task: str, length: int, value: float, interval: tuple[float, float] | None) -> str:
        shown, said = percent(value, 2), f"retention: {task}, {said} at {length:,} tokens"
        where = made[task, length]
        claims.append(Claim(claim=said, shown=shown, value=value, interval=interval, source=_RETENTION, made=where))
        return shown

    def cell(task: str, length: int) -> str:
        if (task, length) not in made:
            return ""
        shares = {measure: together.at(task, length).share(measure) for measure in MEASURES}
        parts = [
            add(f"{measure}, % of {share.whole:,}", task, length, share.value, share.interval)
            for measure, share in shares.items()
            if share.whole
        ]
        answers = [share.value for one in by_seed if (share := one.at(task, length).share("exact")).whole]
        worst = f" ({add('exact, % of the worst seed', task, length, min(answers), None)})" if answers[1:] else ""
        return " / ".join(parts) + worst

    rows = [[task, *(cell(task, length) for length in lengths)] for task in together.tasks()]
    return Table(name="retention", head=["task", *map(short, lengths)], rows=rows, claims=claims)


def language() -> Table:
    """Bits per byte of every model, by length."""
    return _compared(_study("language", "language", PARAMETERS, VARIANTS, _LANGUAGE))


def ablations() -> Iterator[Table]:
    """What each part of HFA and of SimpleMind is worth, and what each mixture of their layers is."""
    studies = {
        "ablations": parts.VARIANTS,
        "ablations-simplemind": simplemind.VARIANTS,
        "ablations-hybrid": hybrid.VARIANTS,
    }
    for name, variants in studies.items():
        yield _compared(_study(name, setting.EXPERIMENT, setting.PARAMETERS, variants, _ABLATIONS))


def _study(name: str, experiment: str, parameters: int, variants: Mapping[str, Variant], source: str) -> Study:
    return Study(name=name, experiment=experiment, parameters=parameters, variants=variants, ledger=Runs(REPO / source))


def _compared(study: Study) -> Table:
    """Every variant at its best learning rate: bits per byte with the spread over seeds, exact answers of all seeds."""
    variants, source = study.variants, str(study.ledger.path.relative_to(REPO))
    found = {name: language_report.at_best(study, name) for name in variants}
    found = {
        name: (runs, measured)
        for name, (runs, measured) in found.items()
        if measured or (runs and not variants[name].edits)
    }
    if not found:
        return unrecorded(study.name, ["model", "validation"])
    evaluations = [run for _, measured in found.values() for run in measured]
    lengths = sorted({one["length"] for run in evaluations for one in run["bits_per_byte"]})
    asked = sorted({(one["task"], one["length"]) for run in evaluations for one in run["recall"]})
    rows, claims = [], list[Claim]()

    def add(name: str, what: str, shown: str, value: float, ends: tuple[float, float] | None) -> str:
        said, made = f"{study.name}: {variants[name].title}, {what}", made_by(found[name][0][0], f"{source}, config")
        claims.append(Claim(claim=said, shown=shown, value=value, interval=ends, source=source, made=made))
        return shown

    def bits(name: str, what: str, values: Sequence[float]) -> str:
        if not values:
            return ""
        shown, there = language_report.spread(values), language_report.finite(values)
        if not there:
            return shown
        ends = (min(there), max(there)) if len(there) > 1 else None
        return add(name, f"bits per byte, {what}", shown, statistics.mean(there), ends)

    def answers(name: str, task: str, length: int, recall: Recall) -> str:
        share = recall.at(task, length).share("exact")
        if not share.whole:
            return ""
        what = f"{task}, exact answers, % of {share.whole:,}, at {length:,} tokens"
        return add(name, what, percent(share.value), share.value, share.interval)

    for name, (runs, measured) in found.items():
        recall, edited = language_report.recall_of(measured), bool(variants[name].edits)
        cells = [
            bits(name, "validation", [] if edited else [score(run) for run in runs]),
            *(bits(name, f"test, {length:,} tokens", language_report.bits(measured, length)) for length in lengths),
            *(answers(name, task, length, recall) for task, length in asked),
        ]
        counted = language_report.seeds(variants[name], runs, measured)
        rows.append([variants[name].title, f"{runs[0]['lr']:g}", counted, *cells])
    head = ["model", "learning rate", "seeds", "validation", *(f"test, {length:,}" for length in lengths)]
    head += [f"{task}, exact %, {length:,}" for task, length in asked]
    return Table(name=study.name, head=head, rows=rows, claims=claims)


def ruler() -> Table:
    """RULER's own score of every model, by task and length, over all seeds."""
    study = _study(rulers.EXPERIMENT, rulers.EXPERIMENT, rulers.PARAMETERS, rulers.VARIANTS, _RULER)
    measured = {name: runs for name in rulers.VARIANTS if (runs := language_report.at_best(study, name)[1])}
    if not measured:
        return unrecorded("ruler", ["task", "%"])
    recalls = {name: language_report.recall_of(runs) for name, runs in measured.items()}
    tasks = list(dict.fromkeys(task for recall in recalls.values() for task in recall.tasks()))
    lengths = sorted({length for recall in recalls.values() for task in tasks for length in recall.lengths(task)})
    claims: list[Claim] = []

    def cell(name: str, task: str, length: int) -> str:
        share = recalls[name].at(task, length).share("match")
        if not share.whole:
            return _MISSING
        said = (
            f"ruler: {rulers.VARIANTS[name].title}, {task}, answers written, % of {share.whole}, at {length:,} tokens"
        )
        made = made_by(measured[name][0], f"{_RULER}, config")
        shown = percent(share.value)
        claims.append(
            Claim(claim=said, shown=shown, value=share.value, interval=share.interval, source=_RULER, made=made)
        )
        return shown

    rows = [
        [task, *(" / ".join(cell(name, task, length) for length in lengths) for name in measured)] for task in tasks
    ]
    spans = " / ".join(map(short, lengths))
    head = [f"task, answers written, %, at {spans}", *(rulers.VARIANTS[name].title for name in measured)]
    return Table(name="ruler", head=head, rows=rows, claims=claims)


def state() -> Table:
    """Right answers of every model and size of state, by length and pairs: the mean over seeds, and the lowest."""
    groups = state_report.at_best(Runs(REPO / _STATE))
    if not groups:
        return unrecorded("state", ["model", "floats a layer"])
    columns = list(dict.fromkeys(key for records in groups.values() for one in records for key in one["accuracy"]))
    rows, claims = [], list[Claim]()
    for (name, floats), records in groups.items():
        made = made_by(records[0], f"{_STATE}, config")
        title, size = SUBJECTS[name].title, f"{floats:,}" if floats else "grows"
        cells = []
        for key in columns:
            values = [one["accuracy"][key] for one in records if key in one["accuracy"]]
            cells.append(state_report.percent(values))
            if values:
                said = f"state: {title}, {size} floats a layer, right answers, %, length/pairs {key}"
                mean, ends = statistics.mean(values), (min(values), max(values)) if len(values) > 1 else None
                claims.append(Claim(claim=said, shown=cells[-1], value=mean, interval=ends, source=_STATE, made=made))
        rows.append([title, size, f"{records[0]['lr']:g}", str(len(records)), *cells])
    head = ["model", "floats a layer", "learning rate", "seeds", *columns]
    return Table(name="state", head=head, rows=rows, claims=claims)


def unrecorded(name: str, head: Sequence[str]) -> Table:
    """A table that says that there are no results yet."""
    return Table(name=name, head=head, rows=[["not recorded yet", *[""] * (len(head) - 1)]], claims=[])
