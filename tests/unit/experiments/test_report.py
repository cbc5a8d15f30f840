"""The page: everything that was found is in it, and nothing has to be fetched."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from experiments.report import charts
from experiments.report.__main__ import main, page
from experiments.report.charts import Chart, Curve
from experiments.report.collect import collect
from experiments.report.retention import _cell
from experiments.report.section import Section, Table
from experiments.report.sections import sections
from hfa.errors import HFAError
from hfa.metrics.recall import Share

STUDIES = Path(__file__).parents[3] / "experiments"
DATE = "2026-01-02T03:04:05+00:00"
MODEL = {"_target_": "hfa.models.hfa.HFAConfig", "d_model": 64}
VOID = {"meta", "br", "link", "img", "input", "hr", "wbr"}


class Balanced(HTMLParser):
    """Every element that is opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def training(folder: Path, seed: int, lr: float, bits: list[float], name: str = "") -> None:
    folder.mkdir(parents=True)
    metrics = {
        "val/bits_per_byte": bits[-1],
        "val/loss": bits[-1],
        "parameters": 1000.0,
        "tokens": 512.0,
        "val/recall/needle": 0.5,
    }
    made = {"commit": "c0ffee" * 6, "command": f"python train.py <{folder.name}>", "seed": seed, "date": DATE}
    (folder / "run.json").write_text(json.dumps({"status": "finished", "metrics": metrics, "device": "cpu", **made}))
    config = {"model": MODEL, "optimizer": {"lr": lr}, "seed": seed} | ({"name": name} if name else {})
    (folder / "config.yaml").write_text(json.dumps(config))
    rows = [f"{10 * (i + 1)},{value},{i / 10}" for i, value in enumerate(bits)]
    (folder / "metrics.csv").write_text("\n".join(["step,val/bits_per_byte,val/recall/needle", *rows]) + "\n")
    (folder / "samples.txt").write_text("=== step 20\n<b>def</b>\n--- goes on as\nreturn\n\n")


def evaluation(folder: Path, of: Path, exact: int, lengths: tuple[int, ...] = (64, 128)) -> None:
    """What ``mode=evaluate`` leaves of a checkpoint of the training in `of`."""
    folder.mkdir(parents=True)
    trained = json.loads((of / "run.json").read_text())
    config = json.loads((of / "config.yaml").read_text())
    metrics = {key: value for key, value in trained["metrics"].items() if key.startswith("val/")}
    made = {"commit": "b" * 36, "command": f"python train.py mode=evaluate {folder}", "seed": 0, "date": DATE}
    (folder / "run.json").write_text(json.dumps(made))
    (folder / "config.yaml").write_text(json.dumps({"name": "other", "model": {}}))
    data = {"training": {**trained, "metrics": metrics, "config": config}, **made}
    data["bits_per_byte"] = [{"source": "text", "length": 64, "bits_per_byte": 2.125}]
    (folder / "evaluation.json").write_text(json.dumps(data | {"recall_by_depth": counted(exact, lengths)}))


def counted(exact: int, lengths: tuple[int, ...] = (64, 128), task: str = "mqar") -> dict[str, Any]:
    counts = [
        {"task": task, "length": length, "depth_bin": 0, "answers": 10, "exact": exact, "tokens": 10, "right": exact}
        for length in lengths
    ]
    return {"depth_bins": 1, "counts": counts}


def parts(*paths: Path) -> dict[str, Section]:
    return {section.anchor: section for section in sections(collect(paths))}


def columns(table: Table) -> dict[str, list[str]]:
    return {name: [row[i] for row in table.rows] for i, name in enumerate(table.columns)}


def draw(curves: dict[str, Curve], **how: Any) -> str:
    chart = Chart("a test", curves, "tokens", "ms", **how)
    return charts.draw(chart, charts.colours([chart]))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    training(tmp_path / "runs" / "one", 0, 0.001, [3.0, 2.5])
    training(tmp_path / "runs" / "two", 1, 0.002, [3.1, 2.25])
    return tmp_path / "runs"


def test_a_page_of_everything_that_studies_recorded(runs: Path, tmp_path: Path) -> None:
    recorded = [STUDIES / name / "results" for name in ("complexity", "quickstart", "language", "state", "retention")]
    assert main([*map(str, [runs, *recorded]), "--out", str(tmp_path / "page.html"), "--title", "A & B"]) == 0
    html = (tmp_path / "page.html").read_text().replace("<wbr>", "")
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    assert all(source.startswith("#") for source in parser.sources), "nothing is fetched"
    for text in (
        "A &amp; B",
        "Comparison",
        "Learning curves",
        "Retention",
        "Cost by length",
        "Llama, SDPA",
        "MQAR".lower(),
    ):
        assert text in html
    for text in (
        "2.500",
        "2.250",
        "optimizer.lr",
        "0.001",
        "0.002",
        "python train.py &lt;one&gt;",
        "--out",
        "--title &#39;A &amp; B&#39;",
        "&lt;b&gt;def&lt;/b&gt;",
    ):
        assert text in html, text
    assert "@import" not in html
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"|http://www.w3.org/\S+', "", html)


def test_parts_without_content_are_left_out(runs: Path) -> None:
    assert list(parts(runs)) == ["comparison", "learning", "samples", "configuration", "origin"]
    assert list(parts(runs / "one")) == ["comparison", "learning", "samples", "origin"]


def test_means_are_of_the_same_tasks(runs: Path) -> None:
    (mean,) = parts(runs)["learning"].charts[1:]
    assert (mean.title, list(mean.curves)) == ("Validation, exact answers, mean of needle", ["one", "two"])
    table = runs / "two" / "metrics.csv"
    table.write_text(table.read_text().replace("needle", "mqar"))
    titles = [chart.title for chart in parts(runs)["learning"].charts[1:]]
    assert titles == [f"Validation, exact answers by task: {name}" for name in ("one", "two")]


def test_only_what_differs_is_said_of_configurations(runs: Path, tmp_path: Path) -> None:
    found = parts(runs)["configuration"]
    assert found.tables[0].rows == [["optimizer.lr", "0.001", "0.002"]]
    assert found.tables[0].columns == ["key", "one", "two"]
    assert not found.folds
    config = {"model": MODEL | {"sizes": {"hidden": 8}}, "optimizer": {"lr": 0.001}}
    training(tmp_path / "runs" / "three", 0, 0.001, [3.0, 2.5])
    (tmp_path / "runs" / "three" / "config.yaml").write_text(json.dumps(config))
    found = parts(runs)["configuration"]
    assert [row[0] for row in found.tables[0].rows] == ["optimizer.lr"]
    assert found.folds[0].tables[0].rows == [["model.sizes.hidden", "", "8", ""]], "what other models lack is folded"
    assert not found.folds[0].open


def test_a_column_is_set_as_one() -> None:
    table = Table(
        "", ["key", "a", "b", "c"], [["x", "1,024", "2.1 ± 0.1", "c0ffee"], ["y", "", "+1% [+0%, +2%]", "12"]]
    )
    assert table.kinds == ["word", "number", "number", "word"]
    assert Table("", ["key", "a"], [["x", "python " * 9]]).kinds[1] == "long"


MADE = {"commit": "c", "command": "x", "date": DATE, "study": "language"}


def trained(variant: str, lr: float, seed: int, bits: float) -> dict[str, Any]:
    config = {"seed": seed, "optimizer": {"lr": lr}, "model": {"d_ff": 8, "num_retrieved": 32}}
    return {
        "kind": "training", "variant": variant, "lr": lr, "seed": seed, "config": config, "samples": f"of {variant}",
        "overrides": [f"model={variant}", f"optimizer.lr={lr:g}", f"seed={seed}"], "parameters": 5, "tokens": 7,
        "metrics": {"val/bits_per_byte": bits}, "validation": [[1, 9.0], [2, bits]], "training": [[1, bits]], **MADE,
    }  # fmt: skip


def evaluated(variant: str, of: dict[str, Any], bits: float, *edits: str, exact: int = 8) -> dict[str, Any]:
    return {
        "kind": "evaluation", "variant": variant, "lr": of["lr"], "seed": of["seed"], **MADE,
        "overrides": [*of["overrides"], *edits, "evaluate.lengths=[64]"], "recall": [], "loss_by_position": {},
        "bits_per_byte": [{"source": "text", "length": 64, "bits_per_byte": bits}],
        "recall_by_depth": counted(exact),
    }  # fmt: skip


def recorded(folder: Path, records: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "runs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A sweep with seed 0, its best rate with three seeds, and HFA measured with another configuration."""
    records = []
    for number, variant in enumerate(["transformer", *(f"other-{i}" for i in range(18)), "hfa"]):
        records += [trained(variant, lr, 0, 2.0 + number / 100 + lr) for lr in (0.004, 0.001, 0.002)]
        records += [trained(variant, 0.001, seed, 2.0 + number / 100 + seed / 10) for seed in (1, 2)]
    of_hfa = [one for one in records if one["variant"] == "hfa" and one["lr"] == 0.001]
    records += [evaluated("hfa", one, 3.0 + one["seed"]) for one in of_hfa]
    records += [evaluated("hfa-unread", one, 3.5 + one["seed"], "num_retrieved=1", exact=2) for one in of_hfa]
    return recorded(tmp_path / "study", records)


def test_seeds_of_a_variant_are_one_row_at_its_best_learning_rate(study: Path) -> None:
    comparison = parts(study)["comparison"]
    rows = {row[0]: dict(zip(comparison.tables[0].columns, row, strict=True)) for row in comparison.tables[0].rows}
    assert len(rows) == 21
    row = rows["language/transformer"]
    assert row["validation"] == "2.100 ± 0.100"
    assert [row[name] for name in ("model", "learning rate", "runs", "parameters")] == [
        "transformer",
        "0.001",
        "3",
        "5",
    ]
    assert "40 runs at others" in comparison.lead


def test_what_was_measured_only_is_shown_with_its_configuration(study: Path) -> None:
    found = parts(study)
    row = next(row for row in found["comparison"].tables[0].rows if row[0] == "language/hfa-unread")
    said = dict(zip(found["comparison"].tables[0].columns, row, strict=True))
    assert said["validation"] == ""
    assert said["test at 64"] == "4.500 ± 1.000"
    assert said["test recall: mqar at 64 to 128"] == "20.0% ± 0.0%"
    table = found["configuration"].tables[0]
    edited = table.columns.index("language/hfa-unread")
    assert [(row[0], row[edited], row[edited - 1]) for row in table.rows] == [("model.num_retrieved", "1", "32")]


def test_differences_are_taken_seed_by_seed(study: Path) -> None:
    table = parts(study)["differences"].tables[0]
    rows = {row[0]: row for row in table.rows}
    assert table.title == "language: difference to language/transformer"
    assert rows["language/transformer"][1] == "2.100 ± 0.100"
    assert rows["language/other-0"][1] == "+0.010 [+0.010, +0.010]", "the same difference with every seed"
    recorded(study, [trained("a", 0.1, 0, 2.0), trained("a", 0.1, 1, 2.0), trained("b", 0.1, 0, 2.1)])
    assert parts(study)["differences"].tables[0].rows[1][1] == "+0.100", "no interval from one seed"
    recorded(study, [trained(name, 0.1, seed, 2.0 + by * seed) for name, by in (("a", 0), ("b", 1)) for seed in (0, 1)])
    assert parts(study)["differences"].tables[0].rows[1][1] == "+0.500 [-5.853, +6.853]", "t of one degree of freedom"


def test_charts_are_of_variants_and_say_what_they_leave_out(study: Path) -> None:
    found = parts(study)
    validation, training, sweep = found["learning"].charts
    assert (validation.note, training.note, sweep.note) == ("The best 14 of 20.",) * 3
    assert "language/transformer" in validation.curves
    assert "language/other-18" not in validation.curves
    assert len(validation.curves["language/transformer"].low) == 2
    assert [fold.title for fold in found["samples"].folds][:2] == [
        f"language/{name}, learning rate 0.001, seed 0" for name in ("transformer", "other-0")
    ]
    assert len(found["samples"].folds) == 20
    (by_length,) = found["retention"].charts
    assert by_length.title == "mqar: exact answers, by length"
    assert [len(curve.low) for curve in by_length.curves.values()] == [2, 2]
    overview = found["retention"].grids[0]
    assert (overview.columns, overview.rows[0][0]) == (["language/hfa", "language/hfa-unread"], "mqar, 128")
    cell = overview.rows[0][1][0]
    assert cell is not None
    assert (cell.text, cell.notes) == ("80.0", ("62.7 to 90.5", "n=30")), "the answers of all seeds"


def test_a_training_and_its_evaluation_are_one_row(tmp_path: Path) -> None:
    training(tmp_path / "a", 0, 0.001, [3.0, 2.5], name="mine")
    training(tmp_path / "b", 1, 0.001, [3.0, 2.25], name="mine")
    evaluation(tmp_path / "a" / "evaluation", tmp_path / "a", 8)
    evaluation(tmp_path / "b" / "evaluation", tmp_path / "b", 6)
    table = columns(parts(tmp_path)["comparison"].tables[0])
    assert table["run"] == ["mine, seed 0", "mine, seed 1"]
    assert table["validation"] == ["2.500", "2.250"]
    assert table["test at 64"] == ["2.125", "2.125"]
    assert table["test recall: mqar at 64 to 128"] == ["80.0%", "60.0%"]
    commands = columns(parts(tmp_path)["origin"].tables[0])["command"]
    assert commands[:2] == ["python train.py <a>", f"python train.py mode=evaluate {tmp_path / 'a' / 'evaluation'}"]
    evaluation(tmp_path / "later", tmp_path / "b", 4, (64,))
    table = columns(parts(tmp_path)["comparison"].tables[0])
    assert table["run"] == ["mine, seed 0", "mine, seed 1, b", "mine, seed 1, later"]
    assert table["parameters"] == ["1,000"] * 3
    assert table["test recall: mqar at 64 to 128"] == ["80.0%", "60.0%", ""], "means are over the same lengths"
    assert table["test recall: mqar at 64"] == ["80.0%", "60.0%", "40.0%"]
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "mine.json").write_text((tmp_path / "later" / "evaluation.json").read_text())
    assert len(collect([tmp_path]).runs) == 3, "a copy of an evaluation is no other"


def test_runs_of_two_folders_are_told_apart_and_none_is_counted_twice(tmp_path: Path, study: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    training(first / "0", 0, 0.001, [3.0, 2.5], name="hfa")
    training(first / "1", 1, 0.002, [3.0, 2.5], name="hfa")
    training(second / "0", 0, 0.003, [3.0, 2.25], name="hfa")
    found = collect([first, second, first / "0", tmp_path / "second" / ".." / "second"])
    assert [run.title for run in found.runs] == [
        "hfa, seed 0, learning rate 0.001",
        "hfa, seed 1",
        "hfa, seed 0, learning rate 0.003",
    ]
    training(tmp_path / "third" / "0", 0, 0.001, [3.0, 2.125], name="hfa")
    found = collect([first / "0", tmp_path / "third"])
    assert [run.title for run in found.runs] == ["hfa, first/0", "hfa, third/0"]
    again = recorded(tmp_path / "again", [trained("transformer", 0.001, 3, 2.0)])
    titles = {run.title.rpartition("/")[0] for run in collect([study, again]).runs}
    assert titles == {"language, study", "language, again"}
    quickstart = collect([STUDIES / "quickstart", STUDIES / "quickstart" / "results"])
    assert [run.title for run in quickstart.runs] == ["quickstart-hfa", "quickstart-simplemind"]


def test_the_retention_study_is_a_run_a_seed_with_where_it_comes_from(tmp_path: Path) -> None:
    made = {"command": "python -m experiments.retention", "commit": "c0ffee" * 6, "seed": 0, "date": DATE}
    cells = [
        {
            "seed": seed,
            "weights": "c0ffee",
            "task": task,
            "length": 64,
            "recall": counted(9, (64,), task),
            "provenance": {**made, "seed": seed},
        }
        for seed in (0, 1)
        for task in ("a", "b")
    ]
    folder = tmp_path / "retention" / "results"
    folder.mkdir(parents=True)
    (folder / "cells.jsonl").write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    found = parts(folder)
    assert columns(found["comparison"].tables[0])["test recall: a, b at 64"] == ["90.0% ± 0.0%"]
    (grid, *_) = found["retention"].grids
    assert (grid.title, [name for name, _ in grid.rows]) == ("retention: exact", ["a", "b"])
    origin = columns(found["origin"].tables[0])
    assert origin["run"] == ["retention, seed 0", "retention, seed 1"]
    assert origin["commit"] == ["c0ffeec0f"] * 2


def test_the_state_study_has_a_table_and_curves(tmp_path: Path) -> None:
    def trial(model: str, floats: int, seed: int, right: float) -> dict[str, Any]:
        asked = ("64/4", "128/8", "256/16", "256/32", "256/64", "512/64", "512/64 random", "1024/64 random")
        return {
            "kind": "training", "variant": model, "floats": floats, "lr": 0.1, "seed": seed, **MADE,
            "accuracy": dict.fromkeys(asked, right),
        }  # fmt: skip

    trials = [trial("delta", floats, seed, (floats + seed) / 10) for floats in (4, 8) for seed in (0, 1)]
    trials.append(trial("hfa", 0, 0, 1.0))
    (tmp_path / "trials.jsonl").write_text("".join(json.dumps(one) + "\n" for one in trials))
    section = parts(tmp_path)["state"]
    table = section.tables[0]
    assert table.columns == ["length/pairs", "gated delta rule, 4 floats", "gated delta rule, 8 floats", "HFA"]
    assert table.rows[0] == ["64/4", "45.0 (lowest 40.0)", "85.0 (lowest 80.0)", "100.0"]
    by_pairs, by_length, through_noise, by_floats = section.charts
    assert by_pairs.curves["HFA"].x == [4, 8, 16, 32, 64]
    assert by_length.curves["HFA"].x == [256, 512]
    assert through_noise.curves["HFA"].x == [512, 1024]
    assert by_floats.curves["gated delta rule"].x == [4, 8]
    assert by_floats.curves["gated delta rule"].y == pytest.approx([45, 85])


def test_a_name_has_one_colour_on_the_page() -> None:
    one, two = Curve([1, 2], [1, 2]), Curve([1], [2])
    names = [f"model {i}" for i in range(5)]
    pages = [
        Chart("a", {"language/hfa": one, "language/delta": one}, "x", "y"),
        Chart("b", {"Llama": one, "HFA": one}, "x", "y"),
        Chart("c", dict.fromkeys(names, two), "x", "y"),
        Chart("d", {"language/hfa": one, "ablations/hfa": one}, "x", "y"),
    ]
    found = charts.colours(pages)
    assert len(found) == len(set(found.values())) == 8
    assert charts.colours([*pages, Chart("e", {"late": one, "hfa": one}, "x", "y")])["late"] != found["hfa"]
    second = charts.draw(pages[1], found)
    assert second.count(found["hfa"].lower()) > second.count(found["delta"].lower()) == 0
    assert "stroke-dasharray: 6" in charts.draw(pages[3], found), "of two of one colour one is dashed"


def test_a_point_has_its_interval() -> None:
    svg = draw({"hfa": Curve([64], [50], [20], [80])}, limits=(0, 100))
    assert "LineCollection" in svg
    assert "FillBetween" not in svg


def test_a_share_lies_within_its_printed_interval() -> None:
    for part, whole in ((4079, 4080), (4080, 4080), (1, 4080), (0, 10), (9_999, 10_000), (99_999, 100_000)):
        cell = _cell(Share(part, whole, whole))
        assert cell is not None
        low, high = map(float, cell.notes[0].split(" to "))
        assert low <= float(cell.text) <= high
        assert (cell.text == "100") == (part == whole)
        assert (cell.text == "0") == (part == 0)


def test_legends_are_never_cut() -> None:
    """The page's letters are narrower than those that the chart is laid out with."""
    svg = draw({"experiments/retention/results/cells.jsonl, seed 0 and seed 1 and more": Curve([1, 2], [3, 4])})
    lines = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert max(map(len, lines)) <= 42
    assert "experiments/retention/results/cells.jsonl," in lines


def test_charts_are_legible_on_a_phone() -> None:
    """A phone shows a chart 320 pixels wide: letters keep nearly the size that they are drawn with."""
    svg = draw({f"variant {i}": Curve([1, 2], [3, i]) for i in range(12)})
    (width,) = re.findall(r'viewBox="0 0 ([\d.]+) ', svg)
    sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", svg)]
    assert sizes
    assert min(sizes) * 320 / float(width) > 9.5


def test_names_cannot_break_the_page() -> None:
    chart = Chart('"><script>', {'a"<b>$x': Curve([1], [2])}, "tokens", "ms")
    svg = charts.draw(chart, charts.colours([chart]))
    assert '<svg role="img" aria-label="&quot;&gt;&lt;script&gt;"' in svg
    assert 'a"&lt;b&gt;$x' in svg.replace("&quot;", '"')


def test_a_chart_has_its_bands_and_its_words() -> None:
    svg = draw({"hfa": Curve([1, 2], [3, 4], [2, 3], [4, 5])}, log_y=True)
    assert svg.startswith('<svg role="img" aria-label="a test"')
    assert "FillBetween" in svg or "PolyCollection" in svg
    assert ">tokens<" in svg
    assert ">hfa<" in svg


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(HFAError, match="nowhere: there is no such file or folder"):
        collect([tmp_path / "nowhere"])
    with pytest.raises(HFAError, match="no runs here; name run directories"):
        collect([tmp_path])
    assert page(collect([STUDIES / "complexity" / "results" / "prefill.json"]), "t", "c").count("<figure>") >= 2
    done = subprocess.run(
        [sys.executable, "-m", "experiments.report", str(tmp_path)], cwd=STUDIES.parent, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_what_cannot_be_read_is_named(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "run.json").write_text('{"metrics":')
    (tmp_path / "stray").mkdir()
    (tmp_path / "stray" / "notes.json").write_text("no json")
    (tmp_path / "stray" / "runs.jsonl").write_text("{}\n")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "cells.jsonl").write_text('{}\n{"seed": ')
    (tmp_path / "serving").mkdir()
    (tmp_path / "serving" / "serving.json").write_text('{"parts": {}}')
    (tmp_path / "empty").mkdir()
    found = collect([tmp_path, tmp_path / "empty"])
    assert len(found.runs) == 2
    sentences = (
        "cut/cells.jsonl was not read: line 2 is no JSON, or was cut off; take it out.",
        "stray/notes.json was not read: it is no JSON, or was cut off.",
        "stray/runs.jsonl was not read: kind is missing.",
        "torn/run.json was not read: it is no JSON, or was cut off.",
    )
    assert sorted(found.left_out[:-1]) == [f"{tmp_path}/{sentence}" for sentence in sentences]
    assert found.left_out[-1] == f"Nothing to report in {tmp_path}/serving, {tmp_path}/empty."
    assert f'<p class="soft left-out">{found.left_out[-1]}</p>' in page(found, "t", "c")


def test_what_only_looks_like_a_cost_is_left_out_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "prefill.json"
    path.write_text('{"rows": [{"model": "x"}], "models": {"x": {}}, "provenance": {}}')
    with pytest.raises(HFAError, match=r"prefill\.json was not read: \w+ is missing\."):
        collect([path])
