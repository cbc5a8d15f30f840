"""The loss, and what surrounds it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F

from hfa.training.fit import build_data, build_model, build_module
from hfa.training.module import LMModule
from hfa.training.settings import TrainSettings, read_settings
from hfa.types import IGNORE, NOWHERE, Batch


@pytest.fixture
def module(composed: Callable[..., dict[str, Any]]) -> LMModule:
    return make(composed())


def make(cfg: dict[str, Any]) -> LMModule:
    settings = read_settings(cfg, TrainSettings)
    tokenizer, source = build_data(settings)
    made = build_module(settings, build_model(settings, tokenizer, source), tokenizer, source)
    made.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    return made.eval()


def make_batch() -> Batch:
    tokens = torch.randint(257, (3, 20), generator=torch.Generator().manual_seed(1))
    labels = tokens.roll(-1, 1)
    labels[0, 5:], labels[1, :15] = IGNORE, IGNORE
    gold = torch.full_like(tokens, NOWHERE)
    gold[1, 15:] = 2
    return Batch(tokens, labels, gold, torch.tensor([0, 1, 0]), torch.full_like(tokens, NOWHERE))


def test_loss_is_the_cross_entropy_of_what_is_labelled(module: LMModule) -> None:
    batch = make_batch()
    logits, _ = module.model(batch.tokens)
    expected = F.cross_entropy(logits.transpose(1, 2), batch.labels, ignore_index=IGNORE)
    torch.testing.assert_close(module.training_step(batch, 0), expected)
    assert module.totals("train")["loss"] == pytest.approx(expected.item(), rel=1e-6)


def test_loss_by_examples(composed: Callable[..., dict[str, Any]]) -> None:
    module, batch = make(composed("trainer.loss_average=examples")), make_batch()
    logits, _ = module.model(batch.tokens)
    rows = [F.cross_entropy(logits[i], batch.labels[i], ignore_index=IGNORE) for i in range(3)]
    torch.testing.assert_close(module.training_step(batch, 0), torch.stack(rows).mean())


def test_a_batch_without_labels_is_no_disaster(module: LMModule) -> None:
    batch = make_batch()
    loss = module.training_step(batch._replace(labels=torch.full_like(batch.labels, IGNORE)), 0)
    assert loss == 0


def test_what_the_model_adds_to_the_loss(module: LMModule) -> None:
    batch = make_batch()
    plain = module.training_step(batch, 0)
    module.model.auxiliary_loss = lambda: torch.tensor(0.25)
    torch.testing.assert_close(module.training_step(batch, 0), plain + 0.25)
    assert module.totals("train")["auxiliary_loss"] == pytest.approx(0.125)  # the mean over both batches


def test_progress_is_counted_in_examples_and_tokens(module: LMModule) -> None:
    for _ in range(2):
        module.training_step(make_batch(), 0)
    assert (module.examples_seen, module.tokens_seen) == (6, 120)


def test_weights_depend_on_the_seed_alone(composed: Callable[..., dict[str, Any]]) -> None:
    torch.manual_seed(123)
    first = make(composed())
    torch.manual_seed(456)
    again, other = make(composed()), make(composed("seed=1"))
    assert torch.equal(first.model.embedding.weight, again.model.embedding.weight)
    assert not torch.equal(first.model.embedding.weight, other.model.embedding.weight)
