"""The serving study: what it prints comes from what it measured."""

from __future__ import annotations

import json
import os

import pytest

from experiments.serving import __main__ as command
from experiments.serving.load import flood
from experiments.serving.parts import FULL, PARTS, QUICK
from experiments.serving.plot import CLAIMS, plot


def test_every_part_has_both_sizes_and_every_claim_a_part():
    assert set(PARTS) == set(FULL) == set(QUICK)
    assert {part for _, part, _, _, _ in CLAIMS} <= set(PARTS)


def test_a_flood_loses_nobody():
    said: list[str] = []
    made = flood(120, said.append)
    assert made["lost"] == 0
    assert sum(made["ended"].values()) + sum(made["refused"].values()) == 120
    assert set(made["ended"]) <= {"length", "left", "deadline", "displaced"}
    assert made["pages"]["held"] == 0
    assert said[0].startswith("120 of 120")


def test_parts_that_are_there_are_kept_and_the_rest_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "OUTPUTS", tmp_path)
    environ = dict(os.environ)
    monkeypatch.setitem(PARTS, "gap", lambda sizes, say: {"over_alone": 2.5})
    (tmp_path / "quick.json").write_text(json.dumps({"parts": {"ready": {"median_s": 12.0}}}))
    try:
        assert command.main(["--quick", "--parts", "ready,gap"]) == 0
    finally:
        os.environ.clear()
        os.environ.update(environ)
    out = capsys.readouterr().out
    assert "ready: there already" in out
    lines = {line.split("  ")[0]: line for line in out.splitlines()}
    assert lines["p99 gap beside a long prompt, over alone"].endswith("holds")
    assert lines["seconds to ready, two models"].endswith("DOES NOT HOLD")
    kept = json.loads((tmp_path / "quick.json").read_text())["parts"]
    assert kept["ready"] == {"median_s": 12.0}
    assert kept["gap"]["provenance"]["seed"] == 0
    assert (tmp_path / "quick.png").is_file()


def test_an_unknown_part_is_named(capsys):
    assert command.main(["--parts", "speed"]) == 2
    assert "--parts: got 'speed', expected some of concurrent" in capsys.readouterr().err


def test_the_picture_of_nothing_but_one_part(tmp_path):
    pytest.importorskip("matplotlib")
    assert plot({"parts": {"decode": {"over_generate": 2.2}}}, tmp_path / "one.png").stat().st_size > 5000
