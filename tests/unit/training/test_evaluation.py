"""What a checkpoint is measured by."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import nn

from hfa import checkpoint
from hfa.config import from_node
from hfa.data.tasks.vt import VariableTrackingConfig
from hfa.data.tokenizers.byte import ByteTokenizer
from hfa.errors import CheckpointError, ConfigError
from hfa.models import LanguageModel, ModelConfig
from hfa.training import evaluate, evaluate_model, evaluation
from hfa.training.evaluation import predict
from hfa.training.fit import build_data, build_model
from hfa.training.report import show
from hfa.training.settings import TrainSettings, read_settings
from hfa.types import IGNORE, NOWHERE, Batch

CONF = Path(__file__).parents[3] / "conf"
Compose = Callable[..., dict[str, Any]]


@pytest.fixture
def settings(composed: Compose) -> TrainSettings:
    return read_settings(composed(), TrainSettings)


def test_pieces_predict_what_the_whole_does(settings: TrainSettings) -> None:
    model = build_model(settings, *build_data(settings)).eval()
    tokens = torch.randint(257, (2, 70), generator=torch.Generator().manual_seed(0))
    labels = tokens.roll(-1, 1)
    labels[0, :30], labels[1, 60:] = IGNORE, IGNORE
    nowhere = torch.full_like(tokens, NOWHERE)
    batch = Batch(tokens, labels, nowhere, torch.zeros(2, dtype=torch.long), nowhere)
    with torch.no_grad():
        logits, _ = model(tokens)
    expected = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORE, reduction="none")
    for chunk_size in (7, 64, 100):
        nats, correct, *_ = predict(model, batch, chunk_size)
        torch.testing.assert_close(nats, expected, atol=1e-4, rtol=1e-4)
        assert torch.equal(correct, (logits.argmax(-1) == labels) & (labels != IGNORE))


class Uniform(LanguageModel):
    """Finds every token equally likely, and says id 65 when asked for one."""

    def __init__(self, settings: TrainSettings) -> None:
        nn.Module.__init__(self)
        self.config = settings.model
        self.weight = nn.Parameter(torch.zeros(1))

    def hidden(self, tokens: torch.Tensor, state: None = None, last: int | None = None) -> tuple[torch.Tensor, None]:
        return torch.zeros(len(tokens), last or tokens.shape[1], 1), None

    def head(self, features: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(features), self.config.vocab_size)
        logits[:, 65] = 1e-6
        return logits


def test_a_model_that_knows_nothing(settings: TrainSettings) -> None:
    tokenizer, source = build_data(settings)
    model: Any = Uniform(settings).train()
    found = evaluate_model(
        model, tokenizer, source, lengths=(512, 256), num_examples=5, depth_bins=4, chunk_size=50, batch_size=2
    )
    for length in (256, 512):
        assert found.bits["text", length].value == pytest.approx(math.log2(257), rel=0.02)  # ends of text have no bytes
        assert found.recall.at("needle", length).answers == 5 * 2
        assert found.recall.at("needle", length).exact == 0
    assert found.loss["text"].edges[-1] == 512
    assert model.training, "the mode it came in"
    assert set(found.metrics()) == {
        *(f"test/bits_per_byte/text/{n}" for n in (256, 512)),
        *(f"test/recall/{task}/{n}" for task in ("mqar", "needle") for n in (256, 512)),
    }


def test_text_is_the_same_at_every_length(settings: TrainSettings) -> None:
    tokenizer, source = build_data(settings)
    model: Any = Uniform(settings)
    found = evaluate_model(
        model,
        tokenizer,
        source.parts()["text"],
        lengths=(64, 128, 512),
        num_examples=1,
        text_tokens=256,
        depth_bins=1,
        chunk_size=512,
        batch_size=4,
    )
    assert {length: bits.tokens for (_, length), bits in found.bits.items()} == {64: 256, 128: 256, 512: 512}
    assert found.bits["text", 64].bytes == found.bits["text", 128].bytes


def test_every_length_is_kept_as_soon_as_it_is_measured(settings: TrainSettings) -> None:
    tokenizer, source = build_data(settings)
    model: Any = Uniform(settings)
    kept: list[list[int]] = []
    evaluate_model(
        model,
        tokenizer,
        source.parts()["needle"],
        lengths=(512, 256),
        num_examples=1,
        depth_bins=1,
        chunk_size=512,
        batch_size=1,
        on_length=lambda found: kept.append(found.recall.lengths("needle")),
    )
    assert kept == [[256], [256, 512]]


def test_a_length_that_is_too_short_names_the_key_and_the_task(settings: TrainSettings) -> None:
    _, source = build_data(settings)
    with pytest.raises(ConfigError, match=r"^evaluate.lengths: got 8, expected .* \(data.sources.mqar.seq_len\)"):
        evaluation.parts_at(source, 8)


def test_long_examples_run_side_by_side_only_as_far_as_their_states_fit(
    settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, source = build_data(settings)
    monkeypatch.setattr(evaluation, "_SIDE_BY_SIDE", 1024)
    model: Any = Uniform(settings)
    rows: dict[int, set[int]] = {}

    def seen(model: Any, batch: Batch, *given: Any, **named: Any) -> evaluation.Predicted:
        rows.setdefault(batch.tokens.shape[1], set()).add(len(batch.tokens))
        return predict(model, batch, *given, **named)

    monkeypatch.setattr(evaluation, "predict", seen)
    needle = source.parts()["needle"]
    evaluate_model(
        model, tokenizer, needle, lengths=(200, 512, 2048), num_examples=4, depth_bins=1, chunk_size=512, batch_size=4
    )
    assert rows == {200: {4}, 512: {2}, 2048: {1}}


def test_forms_of_a_task_are_counted_and_shown(
    settings: TrainSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = VariableTrackingConfig(name="vt", seed=0, seq_len=1024, num_chains=1, num_hops=4, shot_lines=10)
    model: Any = Uniform(settings)
    found = evaluate_model(
        model,
        ByteTokenizer(),
        config.build(ByteTokenizer(), tmp_path),
        lengths=(1024, 8192),
        num_examples=2,
        depth_bins=1,
        chunk_size=2048,
        batch_size=1,
    )
    forms = {one["length"]: one["forms"] for one in found.to_json()["recall"]}
    assert forms == {1024: {"no example shown": 2}, 8192: {"an example shown first": 2}}
    show(found, title="forms")
    shown = capsys.readouterr().out
    assert "no example shown" in shown
    assert "an example shown first" in shown


def test_what_a_memory_overwrote_is_not_stored(settings: TrainSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory that spoils what it has is caught, though it says that it holds every token."""
    tokenizer, source = build_data(settings)
    model, part = build_model(settings, tokenizer, source), source.parts()["needle"]
    measure = functools.partial(
        evaluate_model,
        model,
        tokenizer,
        part,
        lengths=(256,),
        num_examples=2,
        depth_bins=1,
        batch_size=2,
        chunk_size=64,
    )
    count = measure().recall.at("needle", 256)
    assert count.stored == count.audited > 0
    hidden = model.hidden

    def spoiling(tokens: torch.Tensor, state: Any = None, last: int | None = None) -> Any:
        for memory in evaluation.memories(state):
            memory.pages[1].zero_()
        return hidden(tokens, state, last)

    monkeypatch.setattr(model, "hidden", spoiling)
    count = measure().recall.at("needle", 256)
    assert count.stored < count.audited


class Oracle(Uniform):
    """Predicts each token of a needle's answer by looking it up in the context."""

    def hidden(self, tokens: torch.Tensor, state: Any = None, last: int | None = None) -> tuple[torch.Tensor, Any]:
        seen = tokens if state is None else torch.cat([state, tokens], 1)
        out = torch.zeros(*tokens.shape, 1)
        for row, context in enumerate(seen.tolist()):
            text = bytes(min(token, 255) for token in context).decode("latin-1")
            for column in range(tokens.shape[1]):
                end = len(text) - tokens.shape[1] + column + 1
                line = text[:end].rpartition("\n")[2]
                place = text.find(line)
                out[row, column, 0] = ord(text[place + len(line)]) if place + len(line) < end else 0
        return out[:, -(last or 0) :], seen

    def head(self, features: torch.Tensor) -> torch.Tensor:
        return F.one_hot(features[:, 0].long(), self.config.vocab_size).float()


def test_a_model_that_looks_everything_up(settings: TrainSettings) -> None:
    tokenizer, source = build_data(settings)
    model: Any = Oracle(settings)
    needle = source.parts()["needle"]
    found = evaluate_model(
        model, tokenizer, needle, lengths=(200,), num_examples=4, depth_bins=2, chunk_size=64, batch_size=4
    )
    count = found.recall.at("needle", 200)
    assert (count.exact, count.answers) == (8, 8)
    assert not found.bits


def test_what_a_small_window_leaves_to_retrieval(composed: Compose) -> None:
    narrow = ("window=4", "block_size=2", "num_retrieved=1", "num_trees=1", "beam=1", "leaf_size=1")
    settings = read_settings(composed(*(f"model.{value}" for value in narrow)), TrainSettings)
    tokenizer, source = build_data(settings)
    found = evaluate_model(
        build_model(settings, tokenizer, source),
        tokenizer,
        source.parts()["mqar"],
        lengths=(256,),
        num_examples=4,
        depth_bins=2,
        chunk_size=100,
        batch_size=3,
    )
    count = found.recall.at("mqar", 256)
    assert count.stored == count.audited == count.tokens
    assert 0 < count.selected < count.audited
    assert {name: share.whole for name, share in count.retention().items()} == dict.fromkeys(
        ("storage", "selection", "answer"), count.tokens
    )


def test_what_layers_without_an_index_read_is_not_told(settings: TrainSettings) -> None:
    """A Transformer's reads are not recorded; none of them would look as if it had read nothing."""
    sizes: Any = OmegaConf.to_container(OmegaConf.load(CONF / "model" / "transformer.yaml"))
    sizes |= {"vocab_size": 300, "d_model": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "d_ff": 32}
    tokenizer, source = build_data(settings)
    found = evaluate_model(
        from_node(sizes, "model", ModelConfig).build(),  # type: ignore[type-abstract]
        tokenizer,
        source.parts()["mqar"],
        lengths=(128,),
        num_examples=1,
        depth_bins=1,
        batch_size=1,
        chunk_size=64,
    )
    assert set(found.recall.at("mqar", 128).retention()) == {"answer"}


def test_data_with_ids_that_the_model_lacks(settings: TrainSettings, composed: Compose) -> None:
    model = build_model(settings, *build_data(settings))
    other = read_settings(composed("data.sources.mqar.vocab_size=300", "model.vocab_size=300"), TrainSettings)
    _, source = build_data(other)
    with pytest.raises(ConfigError, match=r"data.vocab_size: got 300, expected at most 257, the checkpoint's ids"):
        evaluate_model(
            model, ByteTokenizer(), source, lengths=(256,), num_examples=1, depth_bins=1, chunk_size=9, batch_size=1
        )


def test_any_checkpoint_on_any_data(composed: Compose, settings: TrainSettings, tmp_path: Path) -> None:
    tokenizer, source = build_data(settings)
    folder = tmp_path / "outputs" / "smoke" / "earlier" / "checkpoints" / "best"
    facts = {"step": 7, "config": composed()}
    checkpoint.save(folder, model=build_model(settings, tokenizer, source), tokenizer=tokenizer, provenance=facts)
    cfg = composed("mode=evaluate", "checkpoint=best", "model.num_heads=5", "evaluate.lengths=[128,512]")
    cfg["data"] = {**cfg["data"]["sources"]["mqar"], "vocab_size": 200, "num_pairs": 4}
    metrics = evaluate(cfg, tmp_path / "run")
    measures = ("recall", "storage", "selection")
    assert set(metrics) == {f"test/{measure}/mqar/{length}" for measure in measures for length in (128, 512)}
    assert metrics["test/storage/mqar/512"] == 1
    assert metrics["test/selection/mqar/128"] == 1, "all of it lies in the window"
    report = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert (report["checkpoint"], report["training"]["step"]) == (str(folder), 7)
    assert {"commit", "seed", "command", "date", "config"} <= report.keys()
    assert report["config"]["model"] == facts["config"]["model"], "what was measured, not what was composed"
    assert report["exact_retrieval"] is False, "on a GPU every key is looked at"
    assert [(entry["length"], entry["answers"]) for entry in report["recall"]] == [(128, 16), (512, 16)]
    assert report["recall"][1]["retention"]["storage"] | {"interval": None} == {
        "value": 1.0,
        "interval": None,
        "part": 16,
        "whole": 16,
    }
    pictures = {path.name: path.stat().st_size for path in (tmp_path / "run" / "plots").iterdir()}
    assert pictures.keys() == {"recall.png", "storage.png", "selection.png", "answer.png"}, "of every measure, by depth"
    assert min(pictures.values()) > 10_000
    assert json.loads((tmp_path / "run" / "run.json").read_text())["metrics"] == metrics


def test_documents_that_changed_since_the_training_are_warned_of(
    composed: Compose, settings: TrainSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = composed("mode=evaluate", "evaluate.lengths=[512]", "evaluate.num_examples=1")
    tokenizer, source = build_data(settings)
    for name, documents in (("same", source.fingerprint), ("other", "12ab")):
        folder, facts = tmp_path / name, {"config": cfg, "material": {"documents": documents}}
        checkpoint.save(folder, model=build_model(settings, tokenizer, source), tokenizer=tokenizer, provenance=facts)
        caplog.clear()
        evaluate({**cfg, "checkpoint": str(folder)}, tmp_path / f"run-{name}")
        warned = [record for record in caplog.records if "may have been trained on some" in record.message]
        assert len(warned) == (name == "other")


def test_no_checkpoint_there(composed: Compose, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="checkpoint=latest: no artifact below"):
        evaluate(composed("mode=evaluate"), tmp_path / "run")
