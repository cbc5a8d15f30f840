"""Every figure of a document is in the ledger, and every entry of the ledger is what the results say."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.claims import __main__ as command
from experiments.claims import counted, studies, trained
from experiments.claims.claim import REPO, Table
from experiments.claims.documents import filled, unknown_figures
from experiments.claims.studies import tables
from experiments.language.study import MONITOR
from hfa.errors import HFAError
from hfa.metrics.recall import Count, Recall


def test_documents_carry_the_ledgers_figures_and_no_others() -> None:
    assert command.document_errors(command.read_ledger()) == []


def test_the_ledger_is_what_the_results_say() -> None:
    assert command.differences({table.name: table for table in tables()}, command.read_ledger()) == []


@pytest.mark.parametrize("name", ["hfa", "simplemind", "hybrid"])
def test_nothing_that_is_counted_has_grown(name: str) -> None:
    """A change that makes a token cost more says so in the ledger, or is not made."""
    ledger = command.read_ledger()
    kept = {claim.claim: claim.value for name in counted.TABLES for claim in ledger[name].claims}
    for what, (value, shown) in counted.count(name).items():
        assert value <= (1 + command.TOLERANCE) * kept[f"{counted.MODELS[name]}: {what}"], f"{what}: {shown}"


def test_every_entry_says_how_it_was_made() -> None:
    for table in command.read_ledger().values():
        figures = " | ".join(cell for row in table.rows for cell in row)
        for claim in table.claims:
            assert claim.shown in figures
            assert {"command", "commit", "seed", "machine", "date", "config"} <= {
                k for k, v in claim.made.items() if v is not None
            }
            assert (REPO / claim.source).exists()
            assert claim.interval is None or claim.interval[0] <= claim.value <= claim.interval[1]


@pytest.mark.parametrize(
    ("text", "figures"),
    [
        ("It reads 1,744 tokens/s, 3 times more, and 12.5% of 0.93.", ["1,744", "3", "12.5%", "0.93"]),
        ("1.6M parameters, 2.5x faster, 3x and 4× more.", ["1.6", "2.5", "3", "4"]),
        ("1,744 tokens a second, 5.12M tokens, 87 of 100, 33 h.", ["1,744", "5.12", "87", "33"]),
        ("97 percent, 12 %, 9 out of 10, 3 million, 40 requests per second, 25M", ["97", "12 %", "9", "3", "40", "25"]),
        ("x86 and 2xlarge in 3 of them, a 4-bit key", []),
        ("| HFA | 12 | about 7 | 64 channels of 8 | 0.5 s each |", ["12", "0.5"]),
        ("| 99.9 [98, 100] | 1.5K | 7 ms | 3 ± 1 |, see arXiv 2312.04927", ["99.9", "1.5", "7", "3"]),
        ("| model | **9** |\n\ntook 4 minutes", ["9", "4"]),
        ("Run `--steps 1.5` at [a page](x/0.5.md) in 3 steps, Python 3.11 to 3.13.", []),
        ("```\n0.5 ms\n```\n64 channels, one of 8 tasks", []),
        ("<!-- table: x -->\n| a | 0.5 |\n<!-- end -->", []),
    ],
)
def test_which_numbers_are_figures(text: str, figures: list[str]) -> None:
    assert [figure for _, figure in unknown_figures(text)] == figures


def test_a_figure_that_nobody_can_make_again_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept = command.read_ledger()
    document = tmp_path / "README.md"
    document.write_text(
        f"HFA is 7.5 times faster.\n<!-- table: slopes -->\n{kept['slopes'].markdown()}\n<!-- end -->\n"
    )
    monkeypatch.setattr(command, "documents", lambda: [document])
    (found,) = command.document_errors(kept)
    assert found.startswith(f"{document}:1: 7.5 is in no entry; make it one")
    document.write_text(document.read_text().replace("7.5", "many").replace("prefill", "Prefill"))
    (found,) = command.document_errors(kept)
    assert found == f"{document}: a table is not the ledger's; python -m experiments.claims --write"
    with pytest.raises(HFAError, match="there is no table 'speed'; there are quickstart, "):
        filled("<!-- table: speed -->\n\n<!-- end -->", kept)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"value": 1.0, "shown": "1.0"}, "1.0 (1, "),
        ({"shown": "23.80"}, "23.80 ("),
        ({"interval": (0.0, 99.0)}, "(0.0, 99.0)) now, "),
        ({"interval": None}, "no interval) now, "),
    ],
)
def test_a_result_that_changed_is_found(change: dict[str, Any], said: str) -> None:
    kept = command.read_ledger()
    claim, *others = kept["decode"].claims
    changed = dataclasses.replace(kept["decode"], claims=[dataclasses.replace(claim, **change), *others])
    (found,) = command.differences({**kept, "decode": changed}, kept)
    assert said in found
    assert found.startswith(f"decode: {claim.claim}: ")


def test_a_figure_without_a_result_is_found_and_a_result_without_a_figure() -> None:
    kept = command.read_ledger()
    claim, *others = kept["decode"].claims
    fewer = {**kept, "decode": dataclasses.replace(kept["decode"], claims=others)}
    assert "decode: in no result: " + claim.claim in command.differences(fewer, kept)[0]
    assert "decode: not in the ledger: " + claim.claim in command.differences(kept, fewer)[0]
    gone = {name: table for name, table in kept.items() if name != "decode"}
    assert len(command.differences(gone, kept)) == len(kept["decode"].claims)


def test_what_was_not_counted_again_is_not_missed() -> None:
    kept = command.read_ledger()
    assert command.differences({n: t for n, t in kept.items() if n not in counted.TABLES}, kept) == []


class TestSpeeds:
    """What a study's table shows of a run in which the peers are too slow for the longest length."""

    @pytest.fixture
    def table(self, monkeypatch: pytest.MonkeyPatch) -> Table:
        speeds = {"hfa": 4.0, "hfa-all-features": 3.0, "xlstm": 2.0, "llama": 1.0}
        rows = [
            {"model": name, "regime": "prefill", "length": n, "tokens": n, "seconds": [n / (1000 * speed)] * 3}
            for name, speed in speeds.items()
            for n in (4096, 65536)
        ]
        for one in rows:
            if one["length"] == 65536 and one["model"] in ("xlstm", "llama"):
                one |= {"seconds": [], "skipped": "would take too long"}
        models = {n: {"ours": n.startswith("hfa"), "growth": "quadratic" if n == "llama" else "linear"} for n in speeds}
        run = {"provenance": {"seed": 0}, "models": models, "rows": rows}
        monkeypatch.setattr(studies, "read", lambda path: (run, {}))
        return studies.prefill("prefill", {**studies._PREFILL, **studies._PEERS}, ratios=True)

    def test_a_slow_peer_costs_us_no_length(self, table: Table) -> None:
        assert table.head == ["context, tokens", "4,096", "65,536"]
        assert [row for row in table.rows if " over " not in row[0]] == [
            ["HFA", "4,000", "4,000"],
            ["HFA, all features", "3,000", "3,000"],
            ["xLSTM", "2,000", "-"],
            ["Llama, SDPA", "1,000", "-"],
        ]

    def test_the_ratio_is_there_with_all_features_and_without(self, table: Table) -> None:
        assert [row for row in table.rows if " over " in row[0]] == [
            ["HFA over the fastest linear peer", "2.00", "-"],
            ["HFA over Llama", "4.00", "-"],
            ["HFA, all features, over the fastest linear peer", "1.50", "-"],
            ["HFA, all features, over Llama", "3.00", "-"],
        ]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, list[dict[str, Any]]], None]:
    """Lines of results in the place of those of the repository, which has none of most studies."""
    monkeypatch.setattr(trained, "REPO", tmp_path)

    def write(path: str, lines: list[dict[str, Any]]) -> None:
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text("".join(json.dumps(line) + "\n" for line in lines))

    return write


def test_the_worst_seed_stands_beside_all_together(recorded: Callable[..., None]) -> None:
    lines = []
    for seed, exact in ((0, 10), (1, 8)):
        recall = Recall(depth_bins=1)
        recall._counts["needle", 1024, None] = Count(10, exact, 10, exact, 10, 10, 9)
        where = {"seed": seed, "task": "needle", "length": 1024, "weights": "w"}
        lines.append({**where, "recall": recall.to_json(), "provenance": {"seed": seed, "commit": "c"}})
    recorded(trained._RETENTION, lines)
    table = trained.retention()
    assert (table.head, table.rows) == (["task", "1K"], [["needle", "100 / 90.00 / 90.00 (80.00)"]])
    assert [claim.value for claim in table.claims] == [1.0, 0.9, 0.9, 0.8]
    assert all(claim.made["commit"] == "c" for claim in table.claims)


def test_scores_of_ruler_stand_by_task_and_model(recorded: Callable[..., None]) -> None:
    lines: list[dict[str, Any]] = []
    for variant, matched in (("transformer", 1), ("hfa", 4)):
        recall = Recall(depth_bins=1)
        recall._counts["vt", 1024, None] = Count(4, 4, 8, 8, generated=4, matched=matched)
        run = {"variant": variant, "lr": 0.002, "seed": 0, "overrides": [variant, "lr", "seed"], "commit": "c"}
        lines.append({"kind": "training", **run, "metrics": {MONITOR: 2.0}})
        lines.append({"kind": "evaluation", **run, "recall_by_depth": recall.to_json()})
    recorded(trained._RULER, lines)
    table = trained.ruler()
    assert table.head == ["task, answers written, %, at 1K", "Transformer", "HFA"]
    assert table.rows == [["vt", "25", "100"]]
    assert [claim.value for claim in table.claims] == [0.25, 1.0]


def test_recall_by_state_is_the_mean_over_seeds_at_the_best_rate(recorded: Callable[..., None]) -> None:
    trained_on = ("64/4", "128/8", "256/16", "256/32", "256/64")
    lines = [
        {"kind": "training", "variant": "simplemind", "floats": 8192, "lr": lr, "seed": seed}
        | {"accuracy": dict.fromkeys(trained_on, right)}
        for lr, seed, right in ((0.002, 0, 0.25), (0.004, 0, 0.75), (0.004, 1, 1.0))
    ]
    recorded(trained._STATE, lines)
    [row] = trained.state().rows
    assert row[1:5] == ["8,192", "0.004", "2", "87.5 (lowest 75.0)"]


def test_trials_of_other_lengths_and_rates_without_a_common_seed_are_no_reason_to_fail(
    recorded: Callable[..., None],
) -> None:
    trained_on = ("64/4", "128/8", "256/16", "256/32", "256/64")
    lines = [
        {"kind": "training", "variant": "simplemind", "floats": 8192, "lr": lr, "seed": seed, "steps": steps}
        | {"loss": loss, "accuracy": dict.fromkeys(trained_on, right)}
        for lr, seed, steps, loss, right in (
            (0.002, 1, 400, 0.5, 1.0),
            (0.004, 0, 400, 0.1, 1.0),
            (0.008, 0, 2000, 0.0, 1.0),
        )
    ]
    recorded(trained._STATE, lines)
    [row] = trained.state().rows
    assert row[1:5] == ["8,192", "0.004", "1", "100.0"], "alike in what is right, and its loss is lower"


def test_a_study_without_results_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(trained, "REPO", tmp_path)
    for table in (trained.retention(), trained.language(), trained.ruler(), trained.state()):
        assert [row[0] for row in table.rows] == ["not recorded yet"]
        assert table.claims == []


def test_slopes_of_time_and_memory_in_all_three_regimes() -> None:
    """None is left out, and what was measured too seldom for an interval says so."""
    rows = {row[0]: row[2] for row in studies.slopes().rows}
    regimes = ("prefill", "training", "decode, of a token")
    measured = [("HFA", regime) for regime in regimes] + [("HFA, tiny", "prefill")]
    assert [row for row in rows if row.startswith("HFA")] == [
        f"{model}, {regime}: {what}" for model, regime in measured for what in ("time", "peak memory")
    ]
    assert any(row.startswith("SimpleMind, prefill") for row in rows)
    assert all(shown.endswith(("]", ", measured too seldom")) for shown in rows.values())
