from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread

from experiments.complexity import __main__ as command
from experiments.complexity import peers, study, subjects
from experiments.complexity.measure import Worker, WorkerError
from experiments.complexity.plot import plot
from experiments.complexity.report import Results, fit_slope, requirements, skipped, tables
from experiments.complexity.study import Plan, Study
from experiments.complexity.tally import Tally
from hfa.errors import ConfigError, HFAError


def row(model: str, regime: str, length: int, seconds: list[float], **more: Any) -> dict[str, Any]:
    tokens = 16 if regime == "decode" else length
    spread = [0.99 * s for s in seconds] + [1.01 * s for s in seconds]
    return {
        "model": model, "regime": regime, "length": length, "tokens": tokens, "seconds": spread,
        "cpu_seconds": spread, "head_seconds": [0.1 * s for s in spread], "peak_bytes": 1000 * length, **more,
    }  # fmt: skip


def results(**more: Any) -> dict[str, Any]:
    """A run in which hfa is linear and Llama quadratic, and hfa twice as fast as the faster linear peer."""
    models = {
        name: {
            "title": name, "ours": name == "hfa", "same_body": True, "growth": growth, "feeding": "",
            "body_parameters": 25_000_000, "state_bytes_100000": 200 << 20,
        }
        for name, growth in {"hfa": "linear", "llama": "quadratic", "xlstm": "linear", "mamba2": "linear"}.items()
    }  # fmt: skip
    rows = []
    for n in (1024, 4096, 16384, 65536):
        rows += [row("hfa", "prefill", n, [n / 1000]), row("llama", "prefill", n, [n * n / 1e7])]
        rows += [row("xlstm", "prefill", n, [n / 500]), row("mamba2", "prefill", n, [n / 250])]
        rows += [row(name, "decode", n, [0.32]) for name in models]
    rows.append(row("hfa", "train", 1024, [4.0]))
    rows.append(row("llama", "train", 1024, []) | {"skipped": "it was too hot"})
    made = {"commit": "0" * 40, "dirty": True, "date": "2026-01-01", "seed": 0, "threads": 1}
    made |= {"machine": {"processor": "an abacus"}, "load_at_start": 0.0}
    return {"provenance": made, "models": models, "rows": rows, **more}


class TestTally:
    def test_counts_products_and_what_they_allocate(self) -> None:
        a, b = torch.ones(4, 8), torch.ones(8, 2)
        with Tally() as counted:
            a @ b
        assert counted.flops == 2 * 4 * 8 * 2
        assert counted.allocated_bytes == 4 * 2 * 4

    def test_views_and_results_in_place_allocate_nothing(self) -> None:
        a = torch.ones(4, 8)
        with Tally() as counted:
            a.t()[2:].add_(1)
        assert counted.allocated_bytes == 0

    def test_counts_the_backward_pass(self) -> None:
        a, b = torch.ones(4, 8, requires_grad=True), torch.ones(8, 2, requires_grad=True)
        with Tally() as counted:
            (a @ b).sum().backward()
        assert counted.flops == 3 * 2 * 4 * 8 * 2

    def test_inference_mode_counts_the_same(self) -> None:
        layer, x = torch.nn.Linear(8, 2), torch.ones(4, 8)
        with torch.inference_mode(), Tally() as counted:
            layer(x)
        assert counted.flops == 2 * 4 * 8 * 2

    def test_counts_attention(self) -> None:
        q = torch.ones(1, 1, 16, 8)
        with torch.no_grad(), Tally() as counted:
            torch.nn.functional.scaled_dot_product_attention(q, q, q)
        assert counted.flops == 2 * 2 * 16 * 16 * 8


class TestSlope:
    @pytest.mark.parametrize("power", [1.0, 1.3, 2.0])
    def test_is_the_power(self, power: float) -> None:
        slope = fit_slope({n: [(n**power) * s for s in (0.98, 1.0, 1.02)] for n in (4096, 16384, 65536)}, seed=0)
        assert slope is not None
        assert slope.interval is not None
        assert slope.value == pytest.approx(power)
        assert slope.interval[0] <= power <= slope.interval[1]
        assert slope.interval[1] - slope.interval[0] < 0.05

    def test_has_no_interval_without_repeats(self) -> None:
        slope = fit_slope({1: [1.0], 2: [2.0]}, seed=0)
        assert slope is not None
        assert slope.interval is None

    def test_needs_two_lengths(self) -> None:
        assert fit_slope({4096: [1.0, 2.0]}, seed=0) is None


class TestReport:
    def test_ratios(self) -> None:
        run = Results(results())
        ratio = run.over_fastest_linear("hfa", "prefill", 16384)
        assert ratio is not None
        assert ratio[0] == pytest.approx(2.0)
        assert ratio[1] == "xlstm"
        assert run.over("hfa", "llama", "prefill", 65536) == pytest.approx(65536 / 1e7 * 1000, rel=1e-3)

    def test_the_issues_requirements(self) -> None:
        said = {one.text: one.holds for one in requirements(Results(results()))}
        assert said["prefill: slope of hfa, upper end"] is True
        assert said["state of 100,000 tokens, MiB"] is True
        assert said["prefill 16K, over the fastest linear peer"] is True
        assert said["prefill 16K, over Llama"] is True
        assert said["training 1K, over Llama"] is None
        assert said["decode at 16K, time over the fastest linear peer's"] is False

    def test_the_processors_clock(self) -> None:
        data = results()
        for one in data["rows"]:
            one["cpu_seconds"] = [s / 2 for s in one["seconds"]]
        wall, cpu = (Results(data, clock).median("hfa", "prefill", 4096) for clock in ("wall", "cpu"))
        assert cpu == pytest.approx(2 * (wall or 0))

    def test_everything_left_out_says_why(self) -> None:
        assert skipped(Results(results())) == ["llama, train at 1,024: left out: it was too hot"]

    def test_tables_and_picture_from_json_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "run.json"
        path.write_text(command.compact(results()), encoding="utf-8")
        run = Results(json.loads(path.read_text(encoding="utf-8")))
        assert len(list(tables(run))) >= 6
        image = imread(plot(run, tmp_path / "plots" / "run.png"))
        assert image.shape[:2] == (1170, 1560)

    def test_an_empty_run_is_an_empty_picture(self, tmp_path: Path) -> None:
        assert plot(Results(results(rows=[])), tmp_path / "run.png").stat().st_size > 0


class FakeWorker:
    """Takes a second for a thousand tokens; notes who was asked for what."""

    log: list[tuple[str, str]]
    broken: dict[str, str]

    def __init__(self, name: str, regime: str, length: int, **_: object) -> None:
        self.name, self.length = name, length

    def ask(self, what: str, timeout_s: float) -> dict[str, Any]:
        self.log.append((self.name, what))
        if self.broken.get(self.name) == what:
            raise WorkerError("it broke")
        if what == "measure":
            return {"seconds": self.length / 1000, "cpu_seconds": 0.0, "peak_bytes": 1}
        return {"body_parameters": 1} if what == "describe" else {"counted_length": 1}

    def stop(self) -> None:
        self.log.append((self.name, "stop"))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeWorker]:
    FakeWorker.log, FakeWorker.broken = [], {}
    monkeypatch.setattr(study, "Worker", FakeWorker)
    return FakeWorker


def run_plan(*models: str, lengths: tuple[int, ...] = (1024,), limit_s: float = 1e6, cell_s: float = 1e6) -> Study:
    plan = Plan(
        models=models, lengths={"prefill": lengths}, repeats=3, limit_s=limit_s, cell_s=cell_s, threads=1, seed=0
    )
    one = Study(plan, say=lambda line: None, keep=lambda rows: None)
    one.run()
    return one


class TestStudy:
    def test_models_take_turns(self, fake: type[FakeWorker]) -> None:
        run_plan("hfa", "llama")
        assert [name for name, what in fake.log if what == "measure"] == ["hfa", "llama"] * 3

    @pytest.mark.parametrize("what", ["prepare", "measure"])
    def test_a_failure_ends_nothing_else(self, fake: type[FakeWorker], what: str) -> None:
        fake.broken = {"hfa": what}
        hfa, llama = run_plan("hfa", "llama").rows
        assert hfa["skipped"] == "it broke"
        assert len(llama["seconds"]) == 3

    def test_what_would_take_too_long_is_left_out(self, fake: type[FakeWorker]) -> None:
        rows = run_plan("hfa", "llama", lengths=(1024, 16384, 65536), limit_s=40.0).rows
        measured = {(one["model"], one["length"]) for one in rows if one["seconds"]}
        assert measured == {("hfa", 1024), ("llama", 1024), ("hfa", 16384)}
        assert "over the limit of 40 s" in rows[3]["skipped"]
        assert rows[5]["skipped"].startswith("as at 16,384: ")

    def test_a_cell_repeats_within_its_budget(self, fake: type[FakeWorker]) -> None:
        (row,) = run_plan("hfa", lengths=(4096,), cell_s=5.0).rows
        assert len(row["seconds"]) == 2

    def test_a_worker_measures(self) -> None:
        worker = Worker("hfa-tiny", "train", 48, rounds=1, threads=1, seed=0)
        try:
            assert worker.ask("describe", 120)["body_parameters"] > 100_000
            assert worker.ask("prepare", 120)["allocated_bytes_per_token"] > 0
            measured = worker.ask("measure", 120)
        finally:
            worker.stop()
        assert 0 < measured["head_seconds"] < measured["seconds"]
        assert measured["peak_bytes"] > 0

    def test_a_worker_says_what_went_wrong(self) -> None:
        worker = Worker("no-such-model", "prefill", 16, rounds=1, threads=1, seed=0)
        try:
            with pytest.raises(WorkerError, match="no-such-model"):
                worker.ask("prepare", 120)
        finally:
            worker.stop()


class TestCommand:
    def test_quick_is_short(self) -> None:
        options = command.parse(["--quick", "--regimes", "prefill"])
        assert options.lengths["prefill"] == (1024, 4096)
        assert (options.repeats, options.limit_s) == (3, 60.0)

    def test_lengths_of_ones_own(self) -> None:
        assert command.parse(["--lengths", "4K,1000"]).lengths["decode"] == (1000, 4096)

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["--lengths", "4X"], "--lengths: got '4X', expected a number of tokens, such as 4096 or 4K."),
            (["--regimes", "sleep"], "--regimes: got 'sleep', expected some of prefill, train, decode."),
            (["--repeats", "0"], "--repeats: got 0, expected more than 0."),
            (["--plot", "nowhere.json"], "--plot: got 'nowhere.json', expected a JSON file that a run wrote."),
            (["--fast"], "Unrecognized arguments: --fast; --help says what can be chosen."),
        ],
    )
    def test_a_mistake_is_one_sentence(self, arguments: list[str], sentence: str) -> None:
        with pytest.raises(HFAError) as caught:
            command.parse(arguments)
        assert str(caught.value) == sentence

    def test_an_unknown_model_is_one_sentence(self) -> None:
        with pytest.raises(ConfigError, match="--models: got 'gpt', expected some of hfa, "):
            command.check_models(("hfa", "gpt"))


SIZES = {"vocab_size": 64, "d_model": 128, "num_layers": 2, "num_heads": 2, "d_ff": 128}


@pytest.mark.parametrize("name", [*peers.peer_entries()])
def test_a_peer_fed_in_pieces_or_token_by_token_says_the_same(name: str) -> None:
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    peer = peers.load(name, **SIZES)
    peer.body.eval()
    tokens = torch.randint(0, 64, (1, 300), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole, _ = peer.hidden(tokens, None)
        expected = peer.head(whole[:, -1])
        peer.piece = peer.piece and 128
        state: subjects.State = peer.prefill(tokens[:, :-1])[1]
        torch.testing.assert_close(peer.step(tokens[:, -1:], state)[0], expected, atol=1e-4, rtol=1e-4)
        growth = peer.state_bytes(1000) - peer.state_bytes(500)
    assert (growth > 0) == (name == "llama")
    assert statistics.fmean(peer.train_hidden(tokens)[0, -1].tolist()) == pytest.approx(
        float(whole[0, -1].mean()), abs=1e-4
    )


def test_bytes_by_length_have_a_slope_of_their_own() -> None:
    data = results()
    for each in data["rows"]:
        growing = each["length"] if each["model"] == "llama" else 1000
        each |= {"counted_length": each["length"], "allocated_bytes_per_token": 10.0 * growing}
    found = Results(data)
    assert found.allocated_slope("hfa", "prefill") == pytest.approx(1.0)
    assert found.allocated_slope("llama", "prefill") == pytest.approx(2.0)
    assert list(found.allocated("hfa", "prefill")) == found.lengths("prefill")
