"""The studies of trained variants: equal sizes, what is run again and what is not, and what is drawn from results."""

from __future__ import annotations

import dataclasses
import fcntl
import importlib.util
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from experiments.ablations import __main__ as ablations
from experiments.language import __main__ as language
from experiments.language import baseline
from experiments.language.command import follow, parse
from experiments.language.ledger import Ledger
from experiments.language.report import _style, draw, spread, table, written
from experiments.language.study import MONITOR, Study, chosen, different, edited, samples
from experiments.language.variant import Variant, composed
from experiments.ruler import __main__ as ruler
from hfa.errors import HFAError
from hfa.metrics.bits import LossByPosition

LENGTHS = (64, 128)


class Pretended(Study):
    """Runs nothing: a learning rate of 0.016 is best, 0.064 diverges."""

    def train(self, name: str, lr: float, seed: int) -> dict[str, Any]:
        overrides = [*self.overrides(name), *chosen(lr, seed)]
        if done := self.ledger.find("training", name, overrides):
            return done
        bits = float("nan") if lr > 0.05 else 2 + abs(lr - 0.016) + 0.001 * seed
        run = {"variant": name, "overrides": overrides, "lr": lr, "seed": seed, "parameters": 1, "tokens": 2}
        run["config"] = {"data": {"seq_len": 64}}
        self.ledger.append({"kind": "training", **run, "metrics": {MONITOR: bits, "tokens_per_s": 3.0}})
        return self.train(name, lr, seed)

    def evaluate(self, name: str, lr: float, seed: int) -> dict[str, Any]:
        loss = LossByPosition.doubling(128, 64)
        for counted in loss.bins:
            counted.nats, counted.bytes = 100.0 + seed, 64
        bits = [{"source": "text", "length": length, "bits_per_byte": 2.0 + seed} for length in LENGTHS]
        recall = [{"task": task, "length": 64, "accuracy": rate} for task, rate in (("mqar", 0.5), ("needle", 1.0))]
        measured = {"bits_per_byte": bits, "recall": recall, "loss_by_position": {"text": loss.to_json()}}
        overrides = [*self.overrides(name), *chosen(lr, seed), "evaluate.num_examples=1"]
        run = {"variant": name, "overrides": overrides, "lr": lr, "seed": seed}
        self.ledger.append({"kind": "evaluation", **run, **measured})
        return measured


@pytest.fixture
def study(tmp_path: Path) -> Study:
    variants = {
        "plain": Variant(title="Plain", overrides=("model=transformer",)),
        "edited": Variant(title="Edited", trained_as="plain", edits={"num_retrieved": 1}),
    }
    ledger = Ledger(tmp_path / "runs.jsonl")
    return Pretended(name="test", experiment="language", parameters=1_000_000, variants=variants, ledger=ledger)


@pytest.mark.parametrize(
    "main", [language, baseline, ablations, ruler], ids=["language", "baseline", "ablations", "ruler"]
)
def test_parameters_are_equal(main: Any, tmp_path: Path) -> None:
    experiment = getattr(main, "EXPERIMENT", "language")
    ledger = Ledger(tmp_path / "runs.jsonl")
    study = Study(name="test", experiment=experiment, parameters=main.PARAMETERS, variants=main.VARIANTS, ledger=ledger)
    there = importlib.util.find_spec("transformers") is not None
    peers = {name for name, variant in main.VARIANTS.items() if any("=hf/" in each for each in variant.overrides)}
    sizes = {name: study.size(name) for name in main.VARIANTS if there or name not in peers}
    assert max(sizes.values()) < 1.01 * min(sizes.values()), sizes


def test_a_setting_that_was_added_where_users_add_them_is_another_run() -> None:
    old = {"model": {"d_model": 8, "settings": {}, "sizes": {"a": "d_ff"}}, "data": {}, "trainer": {}}
    new = {"model": {"d_model": 8, "newer": 0, "settings": {"b": 1}, "sizes": {"a": "d_ff"}}, "data": {}, "trainer": {}}
    assert different(old, new) == ["model.settings.b"]
    assert different(new, {**old, "model": old["model"] | {"newer": 0}}) == ["model.settings.b"]


def test_rows_of_different_documents_say_so(study: Study) -> None:
    study.train("plain", 0.016, 0)
    study.evaluate("plain", 0.016, 0)
    assert "different documents" not in table(study)
    last = list(study.ledger.read("evaluation"))[-1]
    study.ledger.append({**last, "documents": "12ab", "seed": 1})
    assert "Tested on different documents (fingerprints): not kept: Plain; 12ab: Plain." in table(study)


def test_sweep_goes_on_until_the_best_is_inside(study: Study) -> None:
    assert study.sweep("plain", [0.002, 0.004, 0.008], seed=0)["lr"] == 0.016
    assert [run["lr"] for run in study.ledger.read("training")] == [0.002, 0.004, 0.008, 0.016, 0.032]


def test_a_run_of_other_settings_is_made_anew() -> None:
    """What a configuration did not have at that time is no difference, nor is where it ran and what it showed."""
    old = {"model": {"d_model": 8, "conv_width": 4}, "trainer": {"max_steps": 5, "threads": 1}, "callbacks": {"a": 1}}
    new = {"model": {"d_model": 8, "conv_width": 1, "fresh": 2}, "trainer": {"max_steps": 5, "threads": 2}}
    assert different(old, new) == ["model.conv_width"]


def test_a_run_of_another_version_of_an_architecture_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = {"plain": Variant(title="Plain", overrides=("model=transformer",))}
    ledger = Ledger(tmp_path / "runs.jsonl")
    study = Study(name="versions", experiment="language", parameters=10**6, variants=variants, ledger=ledger)
    overrides = [*study.overrides("plain"), *chosen(0.001, 0)]
    facts = {"kind": "training", "variant": "plain", "overrides": overrides, "config": composed("language", overrides)}
    ledger.append({**facts, "parameters": study.size("plain")})
    assert study.train("plain", 0.001, 0)["parameters"] == study.size("plain")

    def trains(*_: str) -> float:
        raise InterruptedError

    monkeypatch.setattr("experiments.language.study.run", trains)
    ledger.append({**facts, "parameters": study.size("plain") + 1})
    with pytest.raises(InterruptedError):
        study.train("plain", 0.001, 0)


def test_a_seed_that_diverged_is_said() -> None:
    assert spread([1.0, 1.1, float("inf")]) == "1.0500 ± 0.0707, 1 diverged"


def test_weights_that_are_not_here_are_one_sentence(tmp_path: Path) -> None:
    variants = {"plain": Variant(title="Plain", overrides=("model=transformer",))}
    study = Study(
        name="nowhere",
        experiment="language",
        parameters=10**6,
        variants=variants,
        ledger=Ledger(tmp_path / "runs.jsonl"),
    )
    with pytest.raises(HFAError, match="the weights of this run are not here"):
        study.evaluate("plain", 0.001, 0)


def test_what_was_measured_of_earlier_weights_is_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = {"plain": Variant(title="Plain", overrides=("model=transformer",))}
    ledger = Ledger(tmp_path / "runs.jsonl")
    study = Study(name="dated", experiment="language", parameters=10**6, variants=variants, ledger=ledger)
    monkeypatch.chdir(tmp_path)
    run = {"variant": "plain", "overrides": [*study.overrides("plain"), *chosen(0.001, 0)]}
    ledger.append({"kind": "evaluation", **run, "date": "2026-01-02T00:00:00+00:00"})
    ledger.append({"kind": "training", **run, "date": "2026-01-01T23:00:00+00:00"})
    assert study.evaluate("plain", 0.001, 0)["date"] == "2026-01-02T00:00:00+00:00"
    ledger.append({"kind": "training", **run, "date": "2026-01-02T01:00:00+00:00"})
    with pytest.raises(HFAError, match="the weights of this run are not here"):
        study.evaluate("plain", 0.001, 0)


def test_a_seed_that_diverged_is_told_and_spoils_nothing(study: Study, tmp_path: Path) -> None:
    for seed in (0, 1):
        study.train("plain", 0.008, seed)
        study.evaluate("plain", 0.008, seed)
    lines = [json.loads(line) for line in study.ledger.path.read_text().splitlines()]
    for line in lines:
        if line["kind"] == "evaluation" and line["seed"] == 1:
            for one in line["bits_per_byte"]:
                one["bits_per_byte"] = None
            for one in line["loss_by_position"]["text"]["bins"]:
                one["nats"] = None
    study.ledger.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "2.0000, 1 diverged" in table(study)
    assert draw(study, tmp_path / "study.png").stat().st_size > 10_000


def test_a_single_rate_is_taken_as_it_is(study: Study) -> None:
    assert study.sweep("plain", [0.004], seed=0)["lr"] == 0.004
    assert len(list(study.ledger.read("training"))) == 1


def test_a_run_that_diverged_is_not_the_best(study: Study) -> None:
    assert study.sweep("plain", [0.016, 0.064], seed=0)["lr"] == 0.016


def test_what_is_recorded_is_not_run_again(study: Study) -> None:
    asked = parse(["--sweep", "--seeds", "0", "1", "--lrs", "0.008", "0.016", "0.032"], None, list(study.variants))
    assert follow(study, asked) == []
    trained = list(study.ledger.read("training"))
    assert [(run["lr"], run["seed"]) for run in trained] == [(0.008, 0), (0.016, 0), (0.032, 0), (0.016, 1)]
    assert follow(study, asked) == []
    assert list(study.ledger.read("training")) == trained


class Meeting(Pretended):
    """Trains two variants at once, or not at all."""

    barrier = threading.Barrier(2, timeout=20)

    def train(self, name: str, lr: float, seed: int) -> dict[str, Any]:
        if not self.ledger.find("training", name, [*self.overrides(name), *chosen(lr, seed)]):
            self.barrier.wait()
        return super().train(name, lr, seed)


def test_jobs_are_done_at_once_and_what_needs_another_waits_for_it(study: Study) -> None:
    others = {
        "edited": study.variants["edited"],
        "plain": study.variants["plain"],
        "wide": Variant(title="Wide", overrides=("model=transformer", "model.num_heads=4")),
    }
    meeting = Meeting(name="test", experiment="language", parameters=1_000_000, variants=others, ledger=study.ledger)
    words = ["--models", "plain", "edited", "wide", "--sweep", "--seeds", "0", "--lrs", "0.008", "0.016", "0.032"]
    assert follow(meeting, parse([*words, "--jobs", "2"], None, list(others))) == []
    trained = [run["variant"] for run in study.ledger.read("training")]
    assert sorted(trained) == ["plain"] * 3 + ["wide"] * 3
    assert [run["variant"] for run in study.ledger.read("evaluation")].count("edited") == 1


def test_a_line_is_read_and_written_whole(tmp_path: Path) -> None:
    """Another process is in the middle of its line: readers and writers wait."""
    ledger, read = Ledger(tmp_path / "runs.jsonl"), list[dict[str, Any]]()
    line = json.dumps({"kind": "training", "variant": "a"}) + "\n"
    doing = [
        threading.Thread(target=lambda: ledger.append({"kind": "training", "variant": "b"}), daemon=True),
        threading.Thread(target=lambda: read.extend(ledger.read("training")), daemon=True),
    ]
    with ledger.path.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(line[:9])
        other.flush()
        for thread in doing:
            thread.start()
            thread.join(0.3)  # would be done by then
        other.write(line[9:])
    for thread in doing:
        thread.join(20)
    assert [run["variant"] for run in ledger.read("training")] == ["a", "b"]
    assert read


def test_no_two_variants_look_alike() -> None:
    styles = [_style(number) for number in range(len(language.VARIANTS))]
    assert len({json.dumps(style, sort_keys=True) for style in styles}) == len(styles)


def test_without_a_sweep_there_is_no_best_rate(study: Study) -> None:
    assert follow(study, parse(["--models", "plain", "--seeds", "0"], None, list(study.variants))) == ["plain"]


def test_table_and_figure(study: Study, tmp_path: Path) -> None:
    follow(study, parse(["--sweep", "--seeds", "0", "2", "--lrs", "0.016", "0.032"], None, list(study.variants)))
    heads, _, plain, edited_row = table(study).splitlines()
    assert "test, 64" in heads
    assert "recall, 64" in heads
    assert "3.0000 ± 1.4142" in plain
    assert "75.0% (mqar 50.0%)" in plain
    assert edited_row.startswith("| Edited |")
    assert draw(study, tmp_path / "figure.png").stat().st_size > 10_000


def test_results_of_another_size_are_shown_but_not_built_upon(study: Study) -> None:
    follow(study, parse(["--models", "plain", "--sweep", "--seeds", "0", "--lrs", "0.016"], None, ["plain"]))
    larger = dataclasses.replace(study, parameters=2_000_000)
    assert table(larger) == table(study)
    with pytest.raises(LookupError):
        larger.best("plain")


def test_what_was_written_is_shown_for_each_variant(study: Study) -> None:
    follow(study, parse(["--models", "plain", "--sweep", "--seeds", "0", "--lrs", "0.016"], None, ["plain"]))
    (run,) = study.ledger.read("training")
    assert "## Plain" not in written(study)
    study.ledger.append({**run, "samples": "def f():\n--- goes on as\n    return"})
    assert "## Plain\n\nlearning rate 0.016, seed 0\n" in written(study)
    assert written(study).count("~~~~") == 2


def test_an_empty_study_can_be_shown(study: Study, tmp_path: Path) -> None:
    assert len(table(study).splitlines()) == 2
    assert draw(study, tmp_path / "figure.png").exists()


def test_edited_changes_a_copy(tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    (artifact / "config.json").write_text(json.dumps({"model": {"num_retrieved": 32}}))
    copy = edited(artifact, tmp_path / "copy", {"num_retrieved": 1})
    assert json.loads((copy / "config.json").read_text())["model"] == {"num_retrieved": 1}
    assert json.loads((artifact / "config.json").read_text())["model"] == {"num_retrieved": 32}
    with pytest.raises(LookupError, match="no_such"):
        edited(artifact, tmp_path / "other", {"no_such": 1})


def test_samples_of_the_last_step(tmp_path: Path) -> None:
    path = tmp_path / "samples.txt"
    path.write_text("=== step 5\na\n\n=== step 10\nb\n\n=== step 10\nc\n\n")
    assert samples(path) == "=== step 10\nb\n\n=== step 10\nc"
