"""Which parameters decay."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from hfa.training.optimizer import AdamWConfig, parameter_groups

ADAMW = AdamWConfig(lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.5, embedding_lr_factor=1.0)


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.linear = nn.Linear(4, 4)
        self.norm = nn.RMSNorm(4)
        self.scale = nn.Parameter(torch.ones(()))
        self.frozen = nn.Parameter(torch.ones(4, 4), requires_grad=False)


def test_only_matrices_decay() -> None:
    model = Tiny()
    groups = {group["weight_decay"]: {id(p) for p in group["params"]} for group in parameter_groups(model, 0.5)}
    assert groups[0.5] == {id(model.linear.weight)}
    kept = (model.embedding.weight, model.linear.bias, model.norm.weight, model.scale)
    assert groups[0.0] == {id(parameter) for parameter in kept}


def test_a_step_without_gradient_shrinks_matrices_alone() -> None:
    model = Tiny()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    ADAMW.build(model).step()
    shrunk = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert shrunk == {"linear.weight"}
    torch.testing.assert_close(model.linear.weight, before["linear.weight"] * (1 - 0.1 * 0.5))


def test_embeddings_may_learn_faster() -> None:
    model = Tiny()
    groups = dataclasses.replace(ADAMW, embedding_lr_factor=3.0).build(model).param_groups
    rates = {id(parameter): (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]}
    assert rates.pop(id(model.embedding.weight)) == (pytest.approx(0.3), 0.0)
    assert {lr for lr, _ in rates.values()} == {0.1}
    assert rates[id(model.linear.weight)] == (0.1, 0.5)


def test_tied_weights_come_once() -> None:
    model = Tiny()
    model.head = nn.Linear(4, 5, bias=False)
    model.head.weight = model.embedding.weight
    parameters = [p for group in parameter_groups(model, 0.5) for p in group["params"]]
    assert len(parameters) == len({id(p) for p in parameters}) == 5
