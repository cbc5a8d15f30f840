from __future__ import annotations

import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread

from experiments.complexity import __main__ as command
from experiments.complexity import peers, products, study, subjects
from experiments.complexity.figures import Results, fit_slope
from experiments.complexity.measure import Cell, Regime, Worker, WorkerError
from experiments.complexity.plot import plot
from experiments.complexity.report import skipped, tables
from experiments.complexity.requirement import requirements
from experiments.complexity.study import Plan, Study
from experiments.complexity.tally import Tally
from hfa.errors import ConfigError, HFAError
from hfa.nn.linear import Linear
from hfa.nn.mlp import SwiGLU
from hfa.ops.anchor import anchor_read
from hfa.ops.fused import matmul

RECORDED = command.RESULTS


def row(model: str, regime: str, length: int, seconds: list[float], **more: Any) -> dict[str, Any]:
    tokens = 16 if regime == "decode" else length
    spread = [share * s for s in seconds for share in (0.99, 1.0, 1.01)]
    return {
        "model": model, "regime": regime, "length": length, "tokens": tokens, "seconds": spread,
        "cpu_seconds": spread, "head_seconds": [0.1 * s for s in spread],
        "peak_bytes": [1000 * length for _ in spread], **more,
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

    @pytest.mark.parametrize("library", products.libraries())
    def test_a_product_counts_the_same_by_every_library(self, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(matmul, "library", lambda: library)
        layer, x, pull = Linear(64, 320, bias=False), torch.ones(300, 64, requires_grad=True), torch.ones(300, 320)
        with Tally() as counted:
            layer(x).backward(pull)
        assert counted.flops == 3 * 2 * 300 * 64 * 320
        assert counted.allocated_bytes == 4 * (300 * 320 + 300 * 64 + 320 * 64)

    def test_counts_attention(self) -> None:
        q = torch.ones(1, 1, 16, 8)
        with torch.no_grad(), Tally() as counted:
            torch.nn.functional.scaled_dot_product_attention(q, q, q)
        assert counted.flops == 2 * 2 * 16 * 16 * 8

    def test_a_feed_forward_of_one_operator_counts_as_its_products_do(self) -> None:
        layer, x = SwiGLU(64, 128), torch.ones(1, 32, 64)
        with torch.inference_mode(), Tally() as counted:
            layer(x)
        assert counted.flops == 3 * 2 * 32 * 64 * 128
        with Tally() as trained:
            layer(x.requires_grad_()).sum().backward()
        assert trained.flops == 3 * counted.flops

    def test_the_windows_of_an_anchor_count_as_attention_does(self) -> None:
        q, k = torch.ones(1, 2, 48, 16, requires_grad=True), torch.ones(1, 48, 1, 16)
        nothing, start = torch.full((1, 48, 1), -1, dtype=torch.int32), torch.zeros(1, dtype=torch.long)
        with Tally() as whole:
            torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()
        for window, share in ((64, 1), (16, None)):
            with Tally() as counted:
                anchor_read(q, k, k, nothing, start, window=window, block_size=16).sum().backward()
            assert counted.flops == whole.flops if share else 0 < counted.flops < whole.flops


class TestSlope:
    @pytest.mark.parametrize("power", [1.0, 1.3, 2.0])
    def test_is_the_power(self, power: float) -> None:
        slope = fit_slope({n: [(n**power) * s for s in (0.98, 1.0, 1.02)] for n in (4096, 16384, 65536)}, seed=0)
        assert slope is not None
        assert slope.interval is not None
        assert slope.value == pytest.approx(power)
        assert slope.interval[0] <= power <= slope.interval[1]
        assert slope.interval[1] - slope.interval[0] < 0.05

    def test_has_no_interval_where_one_length_was_measured_too_seldom(self) -> None:
        slope = fit_slope({4096: [1.0, 1.1, 0.9], 16384: [4.0, 4.1, 3.9], 65536: [16.0, 16.1]}, seed=0)
        assert slope is not None
        assert slope.interval is None
        assert str(slope).endswith(", measured too seldom")

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
        assert said["training without head and loss 1K, over Llama"] is None
        assert said["decode at 16K, time over the fastest linear peer's"] is False

    def test_simplemind_is_held_to_its_own_and_in_training_without_the_head(self) -> None:
        data = results()
        data["models"]["simplemind"] = data["models"]["hfa"]
        head = [10.0, 10.0, 10.0]
        data["rows"] += [
            row(name, "train", 16384, [s], head_seconds=head) for name, s in (("simplemind", 20.0), ("xlstm", 24.0))
        ]
        said = {one.text: one for one in requirements(Results(data), "simplemind")}
        assert said["training without head and loss 16K, over the fastest linear peer"].value == pytest.approx(1.4)
        assert said["training without head and loss 16K, over the fastest linear peer"].holds is False
        assert said["state of 100,000 tokens, MiB"].limit == 4

    def test_a_slope_without_an_interval_holds_to_nothing(self) -> None:
        data = results()
        for one in data["rows"]:
            if one["model"] == "hfa" and one["length"] == 65536:
                one["seconds"] = one["seconds"][:1]
        said = {one.text: one for one in requirements(Results(data))}["prefill: slope of hfa, upper end"]
        assert said.holds is None
        assert said.detail.endswith("measured too seldom")

    def test_all_features_are_held_to_the_same(self) -> None:
        data = results()
        data["models"]["hfa-all-features"] = data["models"]["hfa"]
        data["rows"] += [row("hfa-all-features", "prefill", n, [n / 400]) for n in (4096, 16384, 65536)]
        said = {one.text: one.holds for one in requirements(Results(data))}
        assert said["prefill 16K, over the fastest linear peer"] is True
        assert said["prefill 16K, all features, over the fastest linear peer"] is False

    def test_time_and_memory_grow_as_they_do_in_every_regime(self) -> None:
        run = Results(results())
        for regime, of_time in (("prefill", 1.0), ("decode", 0.0)):
            for slope, power in ((run.slope("hfa", regime), of_time), (run.peak_slope("hfa", regime), 1.0)):  # type: ignore[arg-type]
                assert slope is not None
                assert slope.interval is not None
                assert slope.value == pytest.approx(power, abs=1e-6)

    def test_a_record_with_its_largest_peak_alone(self) -> None:
        data = results()
        for one in data["rows"]:
            one["peak_bytes"] = 7
        assert Results(data).peaks("hfa", "prefill", 4096) == [7]

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
        assert image.shape[:2] == (3 * 650, 1560)

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
            return {"seconds": self.length / 1000, "cpu_seconds": 0.0, "head_seconds": 0.0, "peak_bytes": 1}
        return {"body_parameters": 1} if what == "describe" else {"counted_length": 1, "allocated_bytes_per_token": 1.0}

    def stop(self) -> None:
        self.log.append((self.name, "stop"))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeWorker]:
    FakeWorker.log, FakeWorker.broken = [], {}
    monkeypatch.setattr(study, "Worker", FakeWorker)
    return FakeWorker


def run_plan(
    *models: str, lengths: tuple[int, ...] = (1024,), limit_s: float = 1e6, cell_s: float = 1e6, repeats: int = 3
) -> Study:
    plan = Plan(
        models=models, lengths={"prefill": lengths}, repeats=repeats, limit_s=limit_s, cell_s=cell_s, threads=1, seed=0
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

    @pytest.mark.parametrize(("cell_s", "rounds"), [(4.0, 1), (5.0, 3), (15.0, 4), (1e6, 5)])
    def test_a_cell_repeats_within_its_budget_and_three_times_unless_once_is_all_of_it(
        self, fake: type[FakeWorker], cell_s: float, rounds: int
    ) -> None:
        (row,) = run_plan("hfa", lengths=(4096,), cell_s=cell_s, repeats=5).rows
        assert len(row["seconds"]) == len(row["peak_bytes"]) == rounds

    def test_workers_are_measured(self) -> None:
        plan = Plan(
            models=("hfa-tiny",), lengths={"train": (48,)}, repeats=2, limit_s=120, cell_s=1e6, threads=1, seed=0
        )
        one = Study(plan, say=lambda line: None, keep=lambda rows: None)
        (measured,) = one.run()
        assert one.facts["hfa-tiny"]["body_parameters"] > 100_000
        assert measured["allocated_bytes_per_token"] > 0
        assert all(0 < head < whole for head, whole in zip(measured["head_seconds"], measured["seconds"], strict=True))
        assert len(measured["seconds"]) == len([peak for peak in measured["peak_bytes"] if peak > 0]) == 2

    def test_kernels_are_compiled_before_the_clock_runs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A context by which longer ones are judged takes what the second one takes."""
        subject = subjects.our_entries()["hfa-tiny"].load()
        cell = Cell(subject, "decode", 48, rounds=1, seed=0)
        now, compiled = 0.0, False

        def context(tokens: torch.Tensor, room: int) -> subjects.State:
            nonlocal now, compiled
            now, compiled = now + (1.0 if compiled else 100.0), True
            return subject.prefill(tokens)[1]

        monkeypatch.setattr(subject, "context", context)
        monkeypatch.setattr(time, "perf_counter", lambda: now)
        assert cell.prepare()["context_s"] == 1.0

    @pytest.mark.parametrize("regime", ["prefill", "decode"])
    def test_packed_weights_are_counted_like_others(self, monkeypatch: pytest.MonkeyPatch, regime: Regime) -> None:
        monkeypatch.setattr("hfa.ops.fused.packing._LEAST", 1)
        model, tokens = subjects.our_entries()["hfa-tiny"].load(), torch.zeros(1, 40, dtype=torch.long)
        flops = []
        for prepare in (model.body.eval, model.deploy):
            prepare()
            with torch.inference_mode(), Tally() as tally:
                model.prefill(tokens)
            flops.append(tally.flops)
        assert flops[0] == pytest.approx(flops[1], rel=1e-3)
        assert Cell(model, regime, 48, rounds=1, seed=0).prepare()["allocated_bytes_per_token"] > 0

    def test_a_worker_says_what_went_wrong(self) -> None:
        worker = Worker("no-such-model", "prefill", 16, rounds=1, threads=1, seed=0)
        try:
            with pytest.raises(WorkerError, match="no-such-model"):
                worker.ask("prepare", 120)
        finally:
            worker.stop()


class TestCommand:
    @pytest.fixture
    def folders(self, fake: type[FakeWorker], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, Path]:
        """Outputs and records, with a record of every regime from another day."""
        outputs, kept = tmp_path / "outputs", tmp_path / "results"
        monkeypatch.setattr(command, "OUTPUTS", outputs)
        monkeypatch.setattr(command, "RESULTS", kept)
        shutil.copytree(RECORDED, kept)
        return outputs, kept

    def test_one_regime_is_recorded_without_the_others(self, folders: tuple[Path, Path]) -> None:
        _, kept = folders
        before = {name: (kept / f"{name}.json").read_text() for name in ("train", "decode")}
        models = "hfa,hfa-all-features"
        command.main(["--record", "--regimes", "prefill", "--models", models, "--lengths", "4K,16K", "--repeats", "3"])
        rows = json.loads((kept / "prefill.json").read_text())["rows"]
        assert [(one["model"], one["length"]) for one in rows] == [
            (name, n) for n in (4096, 16384) for name in models.split(",")
        ]
        assert {name: (kept / f"{name}.json").read_text() for name in before} == before

    def test_what_differs_in_prefill_alone_is_measured_there_alone(self, folders: tuple[Path, Path]) -> None:
        command.main(["--regimes", "prefill,train", "--models", "hfa,hfa-all-features", "--lengths", "1K"])
        measured = {
            regime: [one["model"] for one in json.loads((folders[0] / f"{regime}.json").read_text())["rows"]]
            for regime in ("prefill", "train")
        }
        assert measured == {"prefill": ["hfa", "hfa-all-features"], "train": ["hfa"]}

    def test_an_interrupted_run_replaces_no_record(
        self, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(self: FakeWorker, what: str, timeout_s: float) -> dict[str, Any]:
            if self.length > 4096:
                raise KeyboardInterrupt
            return {"seconds": 1.0, "cpu_seconds": 1.0, "peak_bytes": 1} if what == "measure" else {}

        monkeypatch.setattr(FakeWorker, "ask", interrupt)
        outputs, kept = folders
        before = (kept / "prefill.json").read_text()
        with pytest.raises(KeyboardInterrupt):
            command.main(["--record", "--regimes", "prefill", "--models", "hfa", "--lengths", "4K,16K"])
        assert (kept / "prefill.json").read_text() == before
        assert [one["length"] for one in json.loads((outputs / "prefill.json").read_text())["rows"]] == [4096]

    def test_records_of_all_regimes_are_shown_together(
        self, folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        _, kept = folders
        command.main(["--plot", *(str(kept / f"{regime}.json") for regime in command.REGIMES)])
        assert all((kept / f"{regime}.png").exists() for regime in command.REGIMES)

    def test_quick_is_short(self) -> None:
        options = command.parse(["--quick", "--regimes", "prefill"])
        assert options.lengths["prefill"] == (1024, 4096, 8192)
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


def test_all_features_are_all_computed() -> None:
    """Ours asks for the last token alone, as the engine does; the other entry differs in that, and in nothing said."""
    model = subjects.our_config("hfa", **subjects.TINY).build().eval()
    tokens = subjects.random_tokens(96, seed=0)
    last, every = subjects.Ours(model), subjects.AllFeatures(model)
    with torch.inference_mode():
        torch.testing.assert_close(last.prefill(tokens)[0], every.prefill(tokens)[0])
        assert [one.last_hidden(tokens, None)[0].shape[1] for one in (last, every)] == [1, 96]
    names = {name for name, entry in subjects.our_entries().items() if entry.prefill_only}
    assert names == {"hfa-all-features", "simplemind-all-features"}


def test_bytes_by_length_have_a_slope_of_their_own() -> None:
    data = results()
    for each in data["rows"]:
        growing = each["length"] if each["model"] == "llama" else 1000
        each |= {"counted_length": each["length"], "allocated_bytes_per_token": 10.0 * growing}
    found = Results(data)
    assert found.allocated_slope("hfa", "prefill") == pytest.approx(1.0)
    assert found.allocated_slope("llama", "prefill") == pytest.approx(2.0)
    assert list(found.allocated("hfa", "prefill")) == found.lengths("prefill")


def test_ours_are_stepped_as_they_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    model = subjects.our_config("hfa", **subjects.TINY).build().eval()
    subject, tokens, seen = subjects.Ours(model), subjects.random_tokens(33, seed=0), []
    head = model.head
    monkeypatch.setattr(model, "head", lambda hidden: seen.append(hidden.shape) or head(hidden))
    with torch.inference_mode():
        _, state = subject.prefill(tokens[:, :-1])
        subject.step(tokens[:, -1:], state)
    assert seen == [(1, 128), (1, 128)]


def test_all_libraries_make_the_products_that_are_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    x, weight, grad = torch.randn(70, 32), torch.randn(90, 32), torch.randn(70, 90)
    known = products.libraries()
    for factors in ((x, weight), (grad, weight.t()), (grad.t(), x.t())):
        for product in known.values():
            torch.testing.assert_close(product(*factors), factors[0] @ factors[1].t(), atol=1e-4, rtol=1e-4)
    monkeypatch.setattr(products, "LAYERS", {"small": (32, 96)})
    threads = torch.get_num_threads()
    products.main()
    torch.set_num_threads(threads)
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith(tuple(f"training on one thread uses {name}." for name in known))
    assert said[1] == "GFLOP/s: " + " / ".join(known)
    assert [len(line) for line in said[2:]] == [70, 70]
    assert [rate.count("/") for rate in said[3].replace(" / ", "/").split()[1:]] == [len(known) - 1] * 3
