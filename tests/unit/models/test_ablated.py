"""What HFA's parts are compared with keeps the contract, and is HFA where nothing is changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from hfa.config import from_node
from hfa.models import LanguageModel, ModelConfig

CONF = Path(__file__).parents[3] / "conf"
SMALL = {
    "vocab_size": 61, "d_model": 32, "num_layers": 3, "num_heads": 2, "d_ff": 48, "dropout": 0.0,
    "num_kv_heads": 1, "window": 4, "block_size": 2, "num_retrieved": 4, "num_ranked": 6, "num_trees": 2, "beam": 2,
    "leaf_size": 3, "logn_length": 8, "read_all": 0, "chunk_size": 8,
}  # fmt: skip
CHANGES = [{"match_init": False}, {"selection": "summaries"}, {"softmax": "mixture"}]
EVERYTHING: dict[str, Any] = {"match_init": False, "selection": "summaries", "softmax": "mixture"}


def build(name: str, **changes: object) -> LanguageModel:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        node: Any = OmegaConf.to_container(compose("train", [f"model={name}"])["model"], resolve=True)
    torch.manual_seed(0)
    return from_node(node | SMALL | changes, "model", ModelConfig).build().eval()


def some_tokens(length: int) -> torch.Tensor:
    return torch.randint(0, 61, (2, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_nothing_changed_is_hfa() -> None:
    one, other, tokens = build("hfa"), build("ablated/hfa"), some_tokens(60)
    other.load_state_dict(one.state_dict())
    torch.testing.assert_close(other(tokens)[0], one(tokens)[0], atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_each_change_changes_what_is_said(change: dict[str, Any]) -> None:
    one, other, tokens = build("hfa"), build("ablated/hfa", **change), some_tokens(60)
    if "match_init" not in change:
        other.load_state_dict(one.state_dict())
    assert (other(tokens)[0] - one(tokens)[0]).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("change", [*CHANGES, EVERYTHING], ids=str)
def test_no_token_sees_the_future_and_any_split_is_the_same(change: dict[str, Any]) -> None:
    model, tokens = build("ablated/hfa", **change), some_tokens(41)
    whole, _ = model(tokens)
    for t in (3, 8, 22, 40):
        changed = tokens.clone()
        changed[:, t] = (changed[:, t] + 1) % 61
        torch.testing.assert_close(model(changed)[0][:, :t], whole[:, :t], atol=1e-5, rtol=0)
    for cut in (1, 9, 30):
        first, state = model(tokens[:, :cut])
        second, state = model(tokens[:, cut:-1], state)
        third, _ = model.step(tokens[:, -1], state)
        torch.testing.assert_close(torch.cat([first, second, third[:, None]], 1), whole, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_mixture_of_all_is_a_mixture_of_all_retrieved() -> None:
    """Training reads all of a short example; retrieving as many tokens as there are reads the same."""
    tokens = some_tokens(20)
    model = build("ablated/hfa", softmax="mixture", selection="summaries", num_retrieved=24, num_ranked=24)
    same = build("ablated/hfa", softmax="mixture", window=4, read_all=32)
    same.load_state_dict(model.state_dict())
    with torch.enable_grad():
        trained = same.train()(tokens)[0]
    torch.testing.assert_close(model(tokens)[0], trained.detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("read_all", [0, 64])
def test_gradients_are_finite(read_all: int) -> None:
    model = build("ablated/hfa", read_all=read_all, **EVERYTHING).train()
    model(some_tokens(50))[0].square().sum().backward()
    for parameter in model.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()
