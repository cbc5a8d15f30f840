"""The page: everything that was found is in it, and nothing has to be fetched."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from experiments.report.__main__ import main, page
from experiments.report.charts import Curve, draw
from experiments.report.collect import collect
from experiments.report.sections import sections
from hfa.errors import HFAError

STUDIES = Path(__file__).parents[3] / "experiments"
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


def training(folder: Path, seed: int, lr: float, bits: list[float]) -> None:
    folder.mkdir(parents=True)
    metrics = {"val/bits_per_byte": bits[-1], "parameters": 1000.0, "tokens": 512.0, "val/recall/needle": 0.5}
    made = {"commit": "c0ffee" * 6, "command": "python train.py <x>", "seed": seed, "date": "2026-01-02T03:04:05+00:00"}
    (folder / "run.json").write_text(json.dumps({"status": "finished", "metrics": metrics, "device": "cpu", **made}))
    model = "{_target_: hfa.models.hfa.HFAConfig, d_model: 64}"
    (folder / "config.yaml").write_text(f"model: {model}\noptimizer: {{lr: {lr}}}\nseed: {seed}\n")
    rows = [f"{10 * (i + 1)},{value},{i / 10}" for i, value in enumerate(bits)]
    (folder / "metrics.csv").write_text("\n".join(["step,val/bits_per_byte,val/recall/needle", *rows]) + "\n")
    (folder / "samples.txt").write_text("=== step 20\n<b>def</b>\n--- goes on as\nreturn\n\n")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    training(tmp_path / "runs" / "one", 0, 0.001, [3.0, 2.5])
    training(tmp_path / "runs" / "two", 1, 0.002, [3.1, 2.25])
    return tmp_path / "runs"


def test_a_page_of_everything_that_studies_recorded(runs: Path, tmp_path: Path) -> None:
    recorded = [STUDIES / name / "results" for name in ("complexity", "quickstart", "language")]
    assert main([*map(str, [runs, *recorded]), "--out", str(tmp_path / "page.html"), "--title", "A & B"]) == 0
    html = (tmp_path / "page.html").read_text()
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
        "python train.py &lt;x&gt;",
        "&lt;b&gt;def&lt;/b&gt;",
    ):
        assert text in html, text
    assert "@import" not in html
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"|http://www.w3.org/\S+', "", html)


def test_parts_without_content_are_left_out(runs: Path) -> None:
    anchors = [section.anchor for section in sections(collect([runs]))]
    assert anchors == ["comparison", "learning", "samples", "configuration", "origin"]
    assert [section.anchor for section in sections(collect([runs / "one"]))] == [
        "comparison",
        "learning",
        "samples",
        "origin",
    ]


def test_only_what_differs_is_said_of_configurations(runs: Path) -> None:
    (found,) = (section for section in sections(collect([runs])) if section.anchor == "configuration")
    assert found.tables[0].rows == [["optimizer.lr", "0.001", "0.002"]]
    assert found.tables[0].columns == ["key", "one", "two"]


MADE = {"commit": "c", "command": "x", "date": "2026-01-02T03:04:05+00:00", "study": "language"}


def trained(variant: str, lr: float, seed: int, bits: float) -> dict[str, Any]:
    config = {"seed": seed, "optimizer": {"lr": lr}, "model": {"d_ff": 8, "num_retrieved": 32}}
    return {
        "kind": "training", "variant": variant, "lr": lr, "seed": seed, "config": config, "samples": f"of {variant}",
        "overrides": [f"model={variant}", f"optimizer.lr={lr:g}", f"seed={seed}"], "parameters": 5, "tokens": 7,
        "metrics": {"val/bits_per_byte": bits}, "validation": [[1, 9.0], [2, bits]], "training": [[1, bits]], **MADE,
    }  # fmt: skip


def evaluated(variant: str, of: dict[str, Any], bits: float, *edits: str, exact: int = 8) -> dict[str, Any]:
    counts = [
        {"task": "mqar", "length": length, "depth_bin": 0, "answers": 10, "exact": exact, "tokens": 10, "right": exact}
        for length in (64, 128)
    ]
    return {
        "kind": "evaluation", "variant": variant, "lr": of["lr"], "seed": of["seed"], **MADE,
        "overrides": [*of["overrides"], *edits, "evaluate.lengths=[64]"], "recall": [], "loss_by_position": {},
        "bits_per_byte": [{"source": "text", "length": 64, "bits_per_byte": bits}],
        "recall_by_depth": {"depth_bins": 1, "counts": counts},
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
    (comparison, *_) = sections(collect([study]))
    rows = {row[0]: row for row in comparison.tables[0].rows}
    assert len(rows) == 21
    assert rows["language/transformer"][1:7] == ["transformer", "0.001", "3", "5", "7", "2.100 ± 0.100"]
    assert "40 runs at others" in comparison.lead


def test_what_was_measured_only_is_shown_with_its_configuration(study: Path) -> None:
    parts = {section.anchor: section for section in sections(collect([study]))}
    row = next(row for row in parts["comparison"].tables[0].rows if row[0] == "language/hfa-unread")
    assert row[3:] == ["3", "5", "7", "", "20.0% ± 0.0%", "4.500 ± 1.000"]
    table = parts["configuration"].tables[0]
    edited = table.columns.index("language/hfa-unread")
    assert [(row[0], row[edited], row[edited - 1]) for row in table.rows] == [("model.num_retrieved", "1", "32")]


def test_differences_are_taken_seed_by_seed(study: Path) -> None:
    (found,) = (section for section in sections(collect([study])) if section.anchor == "ablations")
    rows = {row[0]: row for row in found.tables[0].rows}
    assert found.tables[0].title == "language: difference to transformer"
    assert rows["transformer"][1] == "2.100 ± 0.100"
    assert rows["other-0"][1] == "+0.010 [+0.010, +0.010]", "the same difference with every seed"
    two = recorded(study, [trained("a", 0.1, 0, 2.0), trained("a", 0.1, 1, 2.0), trained("b", 0.1, 0, 2.1)])
    (found,) = (section for section in sections(collect([two])) if section.anchor == "ablations")
    assert found.tables[0].rows[1][1] == "+0.100", "no interval from one seed"
    recorded(study, [trained(name, 0.1, seed, 2.0 + by * seed) for name, by in (("a", 0), ("b", 1)) for seed in (0, 1)])
    (found,) = (section for section in sections(collect([study])) if section.anchor == "ablations")
    assert found.tables[0].rows[1][1] == "+0.500 [-5.853, +6.853]", "t of one degree of freedom"


def test_charts_are_of_variants_and_say_what_they_leave_out(study: Path) -> None:
    parts = {section.anchor: section for section in sections(collect([study]))}
    validation, training, sweep = parts["learning"].charts
    assert (validation.note, training.note, sweep.note) == ("The best 14 of 20.",) * 3
    assert "FillBetween" in validation.svg
    assert ">transformer<" in validation.svg
    assert ">other-18<" not in validation.svg
    assert [name for name, _ in parts["samples"].texts][:2] == [
        f"language/{name}, learning rate 0.001, seed 0" for name in ("transformer", "other-0")
    ]
    assert len(parts["samples"].texts) == 20
    (by_length,) = parts["retention"].charts
    assert (by_length.title, by_length.svg.count("FillBetween")) == ("mqar: exact answers, by length", 2)
    cell = parts["retention"].grids[0].rows[0][1][0]
    assert cell is not None
    assert (cell.text, cell.note) == ("80.0", "63 to 90, n=30"), "the answers of all seeds"


def test_runs_of_two_folders_are_told_apart_and_none_is_counted_twice(tmp_path: Path, study: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    training(first / "0", 0, 0.001, [3.0, 2.5])
    training(first / "1", 0, 0.002, [3.0, 2.5])
    training(second / "0", 0, 0.003, [3.0, 2.25])
    found = collect([first, second, first / "0", tmp_path / "second" / ".." / "second"])
    assert [run.title for run in found.runs] == [str(first / "0"), "1", str(second / "0")]
    again = recorded(tmp_path / "again", [trained("transformer", 0.001, 0, 2.0)])
    titles = {run.title.rpartition("/")[0] for run in collect([study, again]).runs}
    assert titles == {str(study), str(again)}
    quickstart = collect([STUDIES / "quickstart", STUDIES / "quickstart" / "results"])
    assert [run.title for run in quickstart.runs] == ["quickstart/hfa", "quickstart/simplemind"]


def test_charts_are_legible_on_a_phone() -> None:
    """A phone shows a chart 320 pixels wide: letters keep nearly the size that they are drawn with."""
    svg = draw({f"variant {i}": Curve([1, 2], [3, i]) for i in range(12)}, x="tokens", y="ms", description="a test")
    (width,) = re.findall(r'viewBox="0 0 ([\d.]+) ', svg)
    sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", svg)]
    assert sizes
    assert min(sizes) * 320 / float(width) > 9.5


def test_names_cannot_break_the_page() -> None:
    svg = draw({'a"<b>$x': Curve([1], [2])}, x="tokens", y="ms", description='"><script>')
    assert '<svg role="img" aria-label="&quot;&gt;&lt;script&gt;"' in svg
    assert 'a"&lt;b&gt;$x' in svg.replace("&quot;", '"')


def test_a_chart_has_its_bands_and_its_words() -> None:
    svg = draw({"hfa": Curve([1, 2], [3, 4], [2, 3], [4, 5])}, x="tokens", y="ms", log_y=True, description="a test")
    assert svg.startswith('<svg role="img" aria-label="a test"')
    assert "FillBetween" in svg or "PolyCollection" in svg
    assert ">tokens<" in svg
    assert ">hfa<" in svg


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(HFAError, match="nowhere: there is no such file or folder"):
        collect([tmp_path / "nowhere"])
    with pytest.raises(HFAError, match="no runs here; name run directories"):
        collect([tmp_path])
    assert page(collect([STUDIES / "complexity" / "results" / "prefill.json"]), "t", "c").count("<figure>") == 2
