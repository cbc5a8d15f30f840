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
VOID = {"meta", "br", "link", "img", "input", "hr"}


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


def test_seeds_of_a_variant_are_one_row(tmp_path: Path) -> None:
    def record(seed: int, bits: float) -> dict[str, Any]:
        made = {"commit": "c", "command": "x", "date": "2026-01-02T03:04:05+00:00"}
        return {
            "kind": "training", "study": "language", "variant": "hfa", "lr": 0.001, "seed": seed, "config": {"seed": 0},
            "metrics": {"val/bits_per_byte": bits}, "parameters": 5, "tokens": 7, "validation": [[1, bits]],
            "training": [[1, bits]], **made,
        }  # fmt: skip

    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(record(seed, 2.0 + seed / 10)) + "\n" for seed in range(3)))
    (comparison, *_) = sections(collect([tmp_path]))
    assert comparison.tables[0].rows == [["language/hfa lr 0.001", "hfa", "3", "5", "7", "2.100 ± 0.100"]]


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
