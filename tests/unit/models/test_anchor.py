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
from hfa.models.index import GROUPS

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
@pytest.mark.parametrize("conv_width", [1, 4])
def test_the_index_describes_a_token_by_the_two_before_it_whatever_the_convolutions_of_attention(
    conv_width: int,
) -> None:
    [anchor] = [part for part in build(conv_width=conv_width).modules() if isinstance(part, Anchor)]
    x, q, k = (torch.randn(1, 9, 32 // shrunk, generator=torch.Generator().manual_seed(shrunk)) for shrunk in (1, 2, 2))
    asked, described, _ = anchor.index(x, q, k, anchor.index.init_state(1))
    contexts = slice(GROUPS // 2)  # the codes of the last token and of the one before it
    asking, described = (anchor.index.codes(part)[0, :, contexts] for part in (asked, described))
    assert torch.equal(asking[1:-1], described[2:])
    assert len(asking.unique(dim=0)) > 2
