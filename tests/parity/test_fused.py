"""The fused CPU kernels against the layers' own float64 path: outputs and every gradient."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from hfa.nn.conv import ShortConv
from hfa.nn.linear import Linear
from hfa.nn.mlp import SwiGLU
from hfa.nn.norm import RMSNorm
from hfa.ops.fused import matmul
from hfa.ops.fused.conv import causal_conv
from hfa.ops.fused.norm import rms_norm


def agree(layer: torch.nn.Module, call: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> None:
    """Outputs and gradients in float32 (the kernel, with autograd and without) and in float64 (torch) are the same."""
    found = []
    for dtype in (torch.float32, torch.float64):
        layer.to(dtype)
        leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
        outputs = call(*leaves)
        generator = torch.Generator().manual_seed(1)
        weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(dtype) for x in outputs]
        loss = sum((x * w).sum() for x, w in zip(outputs, weights, strict=True))
        found.append([*outputs, *torch.autograd.grad(loss, [*leaves, *layer.parameters()])])
        with torch.no_grad():
            for ours, theirs in zip(call(*leaves), outputs, strict=True):
                assert torch.equal(ours, theirs)
    for ours, theirs in zip(*found, strict=True):
        scale = float(theirs.detach().abs().sum()) / max(1, theirs.numel())  # their mean size
        torch.testing.assert_close(ours.double(), theirs, atol=3e-5 * scale, rtol=0)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("rows", [1, 7, 600])
def test_swiglu(rows: int) -> None:
    layer = SwiGLU(16, 48)
    agree(layer, lambda x: (layer(x),), draw(2, rows, 16))


@pytest.fixture(params=["oneDNN", "OpenBLAS"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Products as on the processors where a library is the fastest; the shapes of those that it made."""
    if request.param == "OpenBLAS" and not matmul.openblas():
        pytest.skip("NumPy multiplies by another library")
    calls: list[tuple[int, ...]] = []
    where, name = (torch.ops.mkldnn, "_linear_pointwise") if request.param == "oneDNN" else (torch.ops.hfa, "times")
    make = getattr(where, name)

    def noted(x: Tensor, weight: Tensor, *more: object) -> object:
        calls.append((*x.shape, len(weight)))
        return make(x, weight, *more)

    monkeypatch.setattr(matmul, "library", lambda: request.param)
    monkeypatch.setattr(where, name, noted)
    return calls


@pytest.mark.parametrize("bias", [False, True])
def test_products_of_training_by_another_library(products: list[tuple[int, ...]], bias: bool) -> None:
    layer = Linear(64, 320, bias=bias)
    agree(layer, lambda x: (layer(x),), draw(2, 150, 64))
    assert set(products) == {(300, 64, 320), (300, 320, 64), (320, 300, 64)}


def test_swiglu_by_another_library(products: list[tuple[int, ...]]) -> None:
    layer = SwiGLU(64, 144)
    agree(layer, lambda x: (layer(x),), draw(2, 1000, 64))  # the last piece is small
    assert {shape[0] for shape in products} == {1024, 976, 64, 288}


def test_few_vectors_are_not_by_another_library(products: list[tuple[int, ...]]) -> None:
    Linear(64, 320)(draw(2, 64).requires_grad_()).sum().backward()
    assert not products


def test_gradients_by_another_library_have_gradients(products: list[tuple[int, ...]]) -> None:
    layer, x = Linear(64, 320), draw(300, 64).requires_grad_()

    def penalty(call: Callable[[Tensor], Tensor]) -> Tensor:
        (grad,) = torch.autograd.grad(call(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]

    ours, theirs = penalty(layer), penalty(lambda x: torch.nn.functional.linear(x, layer.weight, layer.bias))
    torch.testing.assert_close(ours, theirs, atol=1e-5 * float(theirs.abs().max()), rtol=0)
    assert products


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Torch's threads, and what is known of the processor, may be changed."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    matmul._of_processor.cache_clear()


@pytest.mark.usefixtures("forgotten")
def test_the_library_is_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    def choice(name: str, capability: str, threads: int) -> str:
        matmul._of_processor.cache_clear()
        monkeypatch.setattr(matmul, "get_host_cpu_name", lambda: name)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        torch.set_num_threads(threads)
        return matmul.library()

    assert choice("sapphirerapids", "AVX512", 1) == choice("sapphirerapids", "AVX512", 2) == "torch"
    assert choice("znver4", "AVX512", 1) == choice("znver4", "AVX512", 2) == "oneDNN"
    assert choice("znver3", "AVX2", 1) == ("OpenBLAS" if matmul.openblas() else "torch")
    assert choice("znver3", "AVX2", 2) == "torch"
    monkeypatch.setattr(matmul, "openblas", list)
    assert choice("znver3", "AVX2", 1) == "torch"


def test_openblas_makes_a_product_on_one_thread() -> None:
    if not matmul.openblas():
        pytest.skip("NumPy multiplies by another library")
    for blas in matmul.openblas():
        blas.set_num_threads(2)
    x, weight = draw(30, 20), draw(40, 20)
    out = x.new_empty(30, 40)
    matmul.times_by_openblas(x, weight, out)
    assert {blas.num_threads for blas in matmul.openblas()} == {1}
    torch.testing.assert_close(out, x @ weight.t())
    assert all(y.untyped_storage().resizable() for y in (x, weight, out))  # FSDP frees its parameters so
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a loss that is not finite is told by training, not by NumPy
        matmul.times_by_openblas(x * torch.inf, weight, out)
    assert not out.isfinite().all()


@pytest.mark.usefixtures("forgotten")
def test_the_compiler_does_not_see_how_a_library_is_chosen() -> None:
    matmul._of_processor.cache_clear()
    layer, x = Linear(64, 320), draw(300, 64)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("rows", [1, 300])
def test_norm(rows: int, gated: bool) -> None:
    layer = RMSNorm(32)
    torch.nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
    agree(layer, lambda *x: (layer(*x),), *(draw(2, rows, 3, 32), draw(2, rows, 96))[: 1 + gated])


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 9, 300])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("unit_heads", [0, 2])
def test_conv(length: int, width: int, silu: bool, unit_heads: int) -> None:
    layer, options = ShortConv(96, width), {"silu": silu, "unit_heads": unit_heads, "head_dim": 32}
    agree(layer, lambda *x: layer(*x, **options), draw(2, length, 96), draw(2, width - 1, 96))


def test_the_operators_are_sound() -> None:
    x, tail, weight = (draw(*shape).requires_grad_() for shape in ((2, 5, 32), (2, 3, 32), (4, 32)))
    torch.library.opcheck(torch.ops.hfa.causal_conv.default, (x, tail, weight, True, 1, 16))
    torch.library.opcheck(torch.ops.hfa.rms_norm.default, (x, weight[0].detach(), 1e-6, x.detach().clone()))
    torch.library.opcheck(torch.ops.hfa.swiglu_mlp.default, (x[0], draw(64, 32), draw(32, 32)))


def test_weights_that_are_not_contiguous() -> None:
    """As `load_state_dict(assign=True)` can leave them."""
    x, tail = torch.randn(2, 9, 32), torch.randn(2, 3, 32)
    taps, gain = torch.randn(32, 4).T, torch.randn(64)[::2]
    torch.testing.assert_close(
        causal_conv(x, tail, taps, silu=False, unit_heads=0, head_dim=16),
        causal_conv(x, tail, taps.contiguous(), silu=False, unit_heads=0, head_dim=16),
    )
    torch.testing.assert_close(rms_norm(x, gain, 1e-6), rms_norm(x, gain.contiguous(), 1e-6))


def test_inputs_that_are_not_contiguous() -> None:
    layer = SwiGLU(32, 64)
    x = draw(1, 32, 9).transpose(1, 2)
    agree(layer, lambda x: (layer(x),), x)


@torch.no_grad()
def test_a_tail_is_no_larger_than_it_looks() -> None:
    """A view of what was convolved would keep all of it."""
    for channels in (32, 30):
        _, tail = ShortConv(channels, 4)(torch.randn(2, 100, channels), torch.zeros(2, 3, channels))
        assert tail.untyped_storage().nbytes() <= 2 * tail.numel() * tail.element_size()
