"""The logit scale of an anchor layer, and what its index describes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from hfa.config import from_node
from hfa.errors import ConfigError
from hfa.models import LanguageModel, ModelConfig
from hfa.models.anchor import Anchor

CONF = Path(__file__).parents[3] / "conf" / "model" / "hfa.yaml"
SMALL = {
    "vocab_size": 61, "d_model": 32, "num_layers": 1, "num_heads": 2, "d_ff": 48, "dropout": 0.0, "num_kv_heads": 1,
    "pattern": ["anchor"], "window": 4, "block_size": 2, "num_retrieved": 4, "leaf_size": 3, "logit_scale": 2.0,
}  # fmt: skip


def build(**changes: object) -> LanguageModel:
    node: Any = OmegaConf.to_container(OmegaConf.load(CONF), resolve=True)
    torch.manual_seed(0)
    return from_node(node | SMALL | changes, "model", ModelConfig).build().eval()


@torch.no_grad()
@pytest.mark.parametrize("length", [8, 9, 60])
def test_beyond_its_length_the_logit_scale_grows_as_the_logarithm_of_the_context(length: int) -> None:
    growing, constant = build(logn_length=8), build(logn_length=1 << 40)
    tokens = torch.randint(0, 61, (1, length), generator=torch.Generator().manual_seed(1))
    last = growing(tokens)[0][:, -1]
    assert torch.allclose(last, constant(tokens)[0][:, -1], atol=1e-5) == (length <= 8)
    for anchor in constant.modules():
        if isinstance(anchor, Anchor):
            anchor.log_scale += math.log(math.log(length) / math.log(8))
    torch.testing.assert_close(last, constant(tokens)[0][:, -1], atol=1e-5, rtol=1e-5)


def test_a_length_without_a_logarithm_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"logn_length.*at least 2"):
        build(logn_length=1)


@torch.no_grad()
@pytest.mark.parametrize(("conv_width", "looks_back"), [(1, 0), (2, 1), (3, 1), (4, 1), (6, 1)])
@pytest.mark.parametrize("asks", [9, 5, 3])
def test_codes_describe_the_token_before_a_key_and_the_one_before_that(
    conv_width: int, looks_back: int, asks: int
) -> None:
    """So far as attention looks back, and a query by the present token: equal contexts have equal codes."""
    [anchor] = [part for part in build(conv_width=conv_width).modules() if isinstance(part, Anchor)]
    x = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(0))
    anchor.query.weight.copy_(anchor.key.weight.repeat(len(anchor.query.weight) // len(anchor.key.weight), 1))
    _, state = anchor(x[:, :4], anchor.init_state(1))
    query_x = anchor.query(x[:, 4:][:, -asks - conv_width + 1 :])
    asked, described = anchor._described(query_x, anchor.key(x[:, 4:]), state, min(asks, 5))
    for query, key in zip(asked, described, strict=True):
        key, query = key[:, -min(asks, 5) :], query / (anchor.num_heads // anchor.num_kv_heads)
        there = key[:, looks_back:]
        torch.testing.assert_close(query[:, : there.shape[1]], there)
    two = conv_width > 2
    assert torch.equal(described[0], described[1]) != two


def test_an_old_checkpoint_has_scalars_in_its_index() -> None:
    model, other = build(), build()
    old = {name: weight.squeeze() if ".index.log_" in name else weight for name, weight in model.state_dict().items()}
    other.load_state_dict({name: torch.zeros_like(weight) for name, weight in model.state_dict().items()})
    other.load_state_dict(old)
    for name, weight in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], weight)
    assert any(weight.ndim == 0 for weight in old.values())
