"""The retention study's plan, what it keeps, and the table made from that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from experiments.language.variant import composed
from experiments.retention.__main__ import parse
from experiments.retention.ledger import Ledger
from experiments.retention.plan import MILLION, Cell, cells, settings_of, sources
from experiments.retention.report import draw, table
from experiments.retention.study import finished
from hfa import checkpoint
from hfa.config import from_node
from hfa.data.tokenizers.byte import ByteTokenizer
from hfa.errors import ConfigError, HFAError
from hfa.metrics.recall import Recall
from hfa.metrics.retention import Kept
from hfa.models import ModelConfig
from hfa.types import Source


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    overrides = [f"data.sources.{name}.haystack=null" for name in ("needle", "digits", "identifier")]
    cache_dir = tmp_path_factory.mktemp("cache")
    settings = settings_of(
        f"cache_dir={cache_dir}", "data@data.sources.text=text", *overrides, "data.sources.text.paths=[experiments]"
    )
    return sources(settings, ByteTokenizer())


def test_a_cell_has_as_many_examples_as_its_queries_take(tasks: dict[str, Source]) -> None:
    planned = {(cell.task, cell.length): cell for cell in cells(tasks, [1 << 10, 1 << 17], quick=False)}
    assert planned["mqar16_same", 1 << 10].examples == 125
    assert planned["mqar64_same", 1 << 17] == Cell("mqar64_same", 1 << 17, 7)
    assert planned["needle", 1 << 10].examples == 28, "9 answers of 8 tokens"
    assert len(planned) == 2 * len(tasks)


def test_a_million_tokens_are_for_passkeys(tasks: dict[str, Source]) -> None:
    assert {cell.task for cell in cells(tasks, [MILLION], quick=False)} == {
        "passkey_same",
        "passkey_apart",
        "passkey_repeated",
    }


def test_every_task_fits_into_its_training_length_and_its_ids_into_the_model(tasks: dict[str, Source]) -> None:
    assert "text" not in tasks
    for task in tasks.values():
        assert task.vocab_size <= settings_of().model.vocab_size
        task.example(0, "train")


def record(seed: int, right: bool, weights: str = "") -> dict[str, object]:
    gold = torch.tensor([[-1, -1, 0, 1]])
    yes = torch.ones(1, 4, dtype=torch.bool)
    recall = Recall(depth_bins=2)
    recall.update("task", yes & right, gold, Kept(gold, yes, yes))
    return {"seed": seed, "weights": weights, "task": "task", "length": 4, "recall": recall.to_json()}


def test_cells_of_weights_that_were_trained_anew_are_no_longer_counted(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "cells.jsonl")
    for weights, length in (("old", 4), ("old", 8), ("new", 4)):
        ledger.append(record(0, True, weights) | {"length": length})
    assert [(cell["weights"], cell["length"]) for cell in ledger] == [("new", 4)]


def test_only_a_finished_training_of_the_same_settings_is_measured(tmp_path: Path) -> None:
    cfg = composed("smoke", ["model=simplemind", "trainer.max_steps=7"])
    model = from_node(cfg["model"], "model", ModelConfig).build()
    assert not finished(tmp_path / "nothing", cfg)
    for step in (6, 7):
        checkpoint.save(
            tmp_path / "last", model=model, tokenizer=ByteTokenizer(), provenance={"step": step, "config": cfg}
        )
        assert finished(tmp_path / "last", cfg) == (step == 7)
    with pytest.raises(HFAError, match=r"trained with another model.d_ff; move it away, or delete it"):
        finished(tmp_path / "last", cfg | {"model": cfg["model"] | {"d_ff": 1}})
    config = tmp_path / "last" / "config.json"
    description = json.loads(config.read_text())
    config.write_text(json.dumps(description | {"parameters": description["parameters"] + 1}))
    with pytest.raises(HFAError, match=r"trained with another version of the architecture; move it away"):
        finished(tmp_path / "last", cfg)


def test_the_newest_line_of_a_cell_counts_and_the_table_pools_the_seeds(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "results" / "cells.jsonl")
    assert list(ledger) == []
    for seed, right in ((0, False), (1, False), (0, True)):
        ledger.append(record(seed, right))
    assert (ledger.seeds(), len(list(ledger))) == ([0, 1], 2)
    assert ledger.has(seed=1, task="task", length=4)
    assert not ledger.has(seed=2, task="task", length=4)
    assert ledger.recall().at("task", 4).share("answer").value == 0.5
    assert "| task | 50.00 (0; 100) 2 |" in table(ledger)
    assert all(path.stat().st_size > 5_000 for path in draw(ledger, tmp_path))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--threads", "0"], r"--threads: got 0, expected at least 1"),
        (["--seeds", "-1"], r"--seeds: got -1, expected a whole number from 0"),
        (["--checkpoint", "x", "--overrides", "model.window=64"], r"--overrides: got 'model.window=64', expected none"),
    ],
)
def test_what_cannot_be_asked_for(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse(words)
