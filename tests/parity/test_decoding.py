"""The kernels of decoding against torch in float64, without gradients and with one thread."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from omegaconf import OmegaConf

from hfa.config import from_node
from hfa.models import LanguageModel, ModelConfig
from hfa.models.anchor import Anchor
from hfa.models.base import Block
from hfa.models.flow import Flow
from hfa.models.hfa import HFAConfig
from hfa.nn.linear import Linear
from hfa.nn.mlp import SwiGLU
from hfa.ops.fused import decodes, packs, pays

SMALL = {"vocab_size": 300, "d_model": 128, "num_heads": 2, "d_ff": 256}
CONF = Path(__file__).parents[2] / "conf" / "model" / "hfa.yaml"


@pytest.fixture(autouse=True)
def _decoding() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("rows", [1, 3, 10, 11, 97])
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 1), (64, 16), (48, 259), (40, 7)])
@pytest.mark.parametrize("bias", [False, True])
def test_linear(rows: int, inputs: int, outputs: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = Linear(inputs, outputs, bias), draw(rows, 1, inputs)
    found = layer(x)
    wanted = torch.nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=0)


def test_a_view_is_read_as_it_is() -> None:
    torch.manual_seed(0)
    layer, x = Linear(32, 24, bias=False), draw(32, 3).T
    torch.testing.assert_close(layer(x), x @ layer.weight.T, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rows", [1, 10, 11, 33])
def test_swiglu(rows: int) -> None:
    torch.manual_seed(0)
    layer, x = SwiGLU(32, 48), draw(rows, 1, 32)
    found = layer(x)
    torch.testing.assert_close(found.double(), layer.double()(x.double()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("rows", [1, 10, 11, 33])
@pytest.mark.parametrize(("heads", "conv_width"), [(2, 4), (4, 1), (8, 2)])
def test_flow_block(rows: int, heads: int, conv_width: int) -> None:
    """A few tokens, one at a time; the state that was handed in stays as it was."""
    torch.manual_seed(0)
    sizes = {"d_model": 16 * heads, "num_heads": heads, "num_kv_heads": 1, "conv_width": conv_width, "d_ff": 48}
    node = OmegaConf.to_container(OmegaConf.merge(OmegaConf.load(CONF), sizes))
    assert isinstance(node, dict)
    settings = from_node(node, "model", HFAConfig)
    block = Block(settings, Flow(settings)).eval()
    x, state = draw(rows, 5, 16 * heads), block.mixer.init_state(rows)
    found = []
    for t in range(5):
        before = [part.clone() for part in state]
        y, after = block(x[:, t : t + 1], state)
        assert all(map(torch.equal, before, state))
        found.append(y)
        state = after
    wanted, final = block.double()(x.double(), block.double().mixer.init_state(rows))
    torch.testing.assert_close(torch.cat(found, 1).double(), wanted, atol=3e-5, rtol=0)
    for ours, theirs in zip(state, final, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=3e-5, rtol=0)


@torch.no_grad()
def test_a_vector_of_another_width_is_refused() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Linear(64, 16, bias=False)(torch.zeros(2, 32))


@pytest.mark.parametrize("rows", [1, 4, 11])
@pytest.mark.parametrize(("heads", "kv_heads", "conv_width"), [(2, 1, 4), (4, 2, 1), (2, 1, 2), (4, 4, 3), (4, 2, 6)])
def test_anchor_layer(rows: int, heads: int, kv_heads: int, conv_width: int) -> None:
    """A token at a time, by the kernel and by the operators of prefill; a state that is continued twice forks."""
    torch.manual_seed(0)
    sizes = {
        "d_model": 16 * heads,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "conv_width": conv_width,
        "window": 8,
        "block_size": 4,
        "num_retrieved": 4,
        "num_ranked": 6,
        "leaf_size": 3,
        "logn_length": 8,
    }
    node = OmegaConf.to_container(OmegaConf.merge(OmegaConf.load(CONF), sizes))
    assert isinstance(node, dict)
    layer = Anchor(from_node(node, "model", HFAConfig)).eval()
    x = draw(rows, 40, 16 * heads)
    wanted, final = layer(x, layer.init_state(rows))
    _, state = layer(x[:, :3], layer.init_state(rows))
    for t in range(3, 40):
        fork, before = layer(x[:, t : t + 1].neg(), state)[0], state
        y, state = layer(x[:, t : t + 1], state)
        torch.testing.assert_close(y, wanted[:, t : t + 1], atol=1e-5, rtol=0)
        torch.testing.assert_close(fork, layer(x[:, t : t + 1].neg(), before)[0], atol=0, rtol=0)
    for ours, theirs in zip(state.memory.read(), final.memory.read(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    for ours, theirs in zip(state[2:], final[2:], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


class Sizes(NamedTuple):
    rows: int
    tokens: int


@pytest.mark.parametrize("name", ["hfa", "simplemind", "transformer", "hybrid"])
@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("sizes", [Sizes(1, 300), Sizes(5, 20), Sizes(40, 6)], ids=str)
def test_packed_weights(
    name: str, dtype: torch.dtype, share: float, sizes: Sizes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt and a step of a model, in few rows and many; weights that change are used as they are from then on."""
    if not packs(torch.zeros(16, 16), dtype):
        pytest.skip(f"oneDNN has no products in {dtype} on this processor")
    monkeypatch.setattr("hfa.ops.fused.packing._LEAST", 1)
    torch.manual_seed(0)
    model = small(name)
    tokens = torch.randint(model.config.vocab_size, sizes)

    def run() -> tuple[torch.Tensor, ...]:
        logits, state = model(tokens)
        return logits, model.step(tokens[:, 0], state)[0]

    plain = run()
    assert model.pack(dtype)
    found = run()
    for ours, wanted in zip(found, plain, strict=True):
        assert (ours - wanted).norm() <= share * wanted.norm()  # a norm over what cancels out is rounded at random
    if dtype == torch.bfloat16:
        assert not torch.equal(found[1], plain[1])
    copy, same = deepcopy(model), pickle.loads(pickle.dumps(model))
    assert not copy.is_packed
    assert not same.is_packed
    for weight in model.parameters():
        weight.mul_(0.5)
    changed = run()
    assert not model.is_packed
    assert all(map(torch.equal, changed, run()))
    model.pack(dtype)
    model.embedding.weight.data.mul_(0.0)  # which torch does not see
    model.pack(dtype)
    assert not run()[0].any()
    model.unpack()
    assert not model.is_packed


def test_what_cannot_be_packed_says_so() -> None:
    """A model in another type, or one whose matrices are too small to pay."""
    assert not small("hfa").double().pack()
    assert not small("hfa").pack(torch.float16)
    model = small("hfa", d_model=32, d_ff=48)
    assert not model.pack(torch.bfloat16)
    assert not model.is_packed


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_what_is_not_finite_does_not_hide(name: str, poison: float) -> None:
    """An answer that attention made of nothing must be seen: as in prefill, so in the kernel that decodes."""
    model = small("hfa")
    tokens = torch.randint(model.config.vocab_size, (2, 40))
    state = model.hidden(tokens)[1]
    anchor = next(block.mixer for block in model.blocks if isinstance(block.mixer, Anchor))
    getattr(anchor, name).weight[0, 0] = poison
    assert not model.step(tokens[:, 0], state)[0].isfinite().any()


def small(name: str, **sizes: int) -> LanguageModel:
    merged = OmegaConf.create({"model": OmegaConf.merge(OmegaConf.load(CONF.with_name(f"{name}.yaml")), SMALL, sizes)})
    node = OmegaConf.to_container(merged, resolve=True)["model"]
    return from_node(node, "model", ModelConfig).build().eval()


@pytest.mark.parametrize(
    ("vectors", "threads", "expected"), [(1, 1, True), (10, 2, True), (11, 1, False), (1, 3, False)]
)
def test_the_kernel_is_for_few_vectors_and_few_threads(
    vectors: int, threads: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    x, weight = draw(vectors, 64), draw(32, 64)
    assert decodes(x, weight) is expected
    assert pays(x, weight) is (threads <= 2)
