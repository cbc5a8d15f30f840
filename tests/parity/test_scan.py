"""The chunked recurrence against the one on paper: outputs, final state and every gradient."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from hfa.ops.scan import chunked_scan, naive_scan, recurrent_scan, scan, scan_operator


def inputs(
    length: int, *, per_channel: bool, dtype: torch.dtype = torch.float64, widths: tuple[int, int] = (6, 5)
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(length)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    key_width, width = widths
    q, k = draw(2, 2, length, key_width), torch.nn.functional.normalize(draw(2, 2, length, key_width), dim=-1)
    v, state = draw(2, 2, length, width), draw(2, 2, key_width, width)
    log_decay = -1.2 * torch.rand(
        2, 2, length, key_width if per_channel else 1, generator=generator, dtype=torch.float64
    )
    beta = torch.rand(2, 2, length, 1, generator=generator, dtype=torch.float64)
    return [x.to(dtype).requires_grad_() for x in (q, k, v, log_decay, beta, state)]


@pytest.mark.parametrize("erase", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(("length", "chunk_size"), [(1, 8), (7, 8), (8, 8), (29, 8), (29, 5), (70, 64)])
def test_chunked_equals_naive(length: int, chunk_size: int, per_channel: bool, erase: bool) -> None:
    arguments = inputs(length, per_channel=per_channel)
    expected = naive_scan(*arguments, erase=erase)
    got = chunked_scan(*arguments, erase=erase, chunk_size=chunk_size)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in expected]
    gradients = [
        torch.autograd.grad(sum((x * w).sum() for x, w in zip(pair, weights, strict=True)), arguments)
        for pair in (got, expected)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("erase", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("widths", [(4, 16), (20, 48), (64, 64)])
@pytest.mark.parametrize(("length", "chunk_size"), [(1, 8), (8, 8), (29, 8)])
def test_the_kernel_equals_naive(
    length: int, chunk_size: int, widths: tuple[int, int], per_channel: bool, erase: bool
) -> None:
    """In float32, against the naive form in float64; the gradients too."""
    arguments = inputs(length, per_channel=per_channel, dtype=torch.float32, widths=widths)
    exact = [x.detach().double().requires_grad_() for x in arguments]
    out, state, _ = scan_operator(*arguments, erase, chunk_size)
    pairs = [(out.transpose(1, 2), state), naive_scan(*exact, erase=erase)]
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in pairs[1]]
    gradients = [
        torch.autograd.grad(sum((x * w.to(x)).sum() for x, w in zip(pair, weights, strict=True)), leaves)
        for pair, leaves in zip(pairs, (arguments, exact), strict=True)
    ]
    for ours, theirs in zip((*pairs[0], *gradients[0]), (*pairs[1], *gradients[1]), strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-5 * float(theirs.detach().abs().max()), rtol=0)
    with torch.no_grad():
        for ours, theirs in zip(recurrent_scan(*arguments, erase=erase), pairs[0], strict=True):
            assert torch.equal(ours, theirs)


def test_the_operator_is_sound() -> None:
    arguments = inputs(5, per_channel=False, dtype=torch.float32, widths=(4, 16))
    torch.library.opcheck(torch.ops.hfa.scan.default, (*arguments, True, 4))


def test_the_kernel_leaves_its_state_as_it_was() -> None:
    arguments = [x.detach() for x in inputs(5, per_channel=False, dtype=torch.float32, widths=(4, 16))]
    before = arguments[-1].clone()
    scan(*arguments, erase=True, chunk_size=4)
    assert torch.equal(arguments[-1], before)


@pytest.mark.parametrize("chunk_size", [32, 64])
@pytest.mark.parametrize("beta", [0.5, 0.95, 1.0])
def test_a_token_that_repeats_stays_exact_in_float32(beta: float, chunk_size: int) -> None:
    """All keys equal and hardly any decay: the triangular system is then as far from the identity as it gets."""
    key = torch.nn.functional.normalize(torch.ones(1, 1, 128, 16), dim=-1)
    v = torch.randn(1, 1, 1, 5, generator=torch.Generator().manual_seed(0)).expand(1, 1, 128, 5)
    log_decay, strength = torch.full((1, 1, 128, 1), -0.001), torch.full((1, 1, 128, 1), beta)
    arguments = (key, key, v, log_decay, strength, torch.zeros(1, 1, 16, 5))
    got = chunked_scan(*arguments, erase=True, chunk_size=chunk_size)
    for ours, theirs in zip(got, naive_scan(*arguments, erase=True), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("erase", [True, False])
def test_one_token_equals_naive(erase: bool) -> None:
    arguments = inputs(1, per_channel=True)
    for ours, theirs in zip(
        scan(*arguments, erase=erase, chunk_size=64), naive_scan(*arguments, erase=erase), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_the_fastest_decay_stays_finite_in_float32() -> None:
    arguments = inputs(256, per_channel=True, dtype=torch.float32)
    with torch.no_grad():
        arguments[3].fill_(-1.2)
    out, state = scan(*arguments, erase=True, chunk_size=64)
    expected, _ = naive_scan(*arguments, erase=True)
    assert torch.isfinite(state).all()
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)


def test_low_precision_inputs_are_carried_in_float32() -> None:
    arguments = [x.detach().bfloat16() for x in inputs(9, per_channel=False)]
    out, state = scan(*arguments, erase=True, chunk_size=4)
    assert out.dtype == state.dtype == torch.float32


@pytest.fixture(params=[torch.bfloat16, torch.float64])
def default_dtype(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("default_dtype")
def test_the_default_dtype_is_none_of_the_kernels_business() -> None:
    """Lightning's bf16-true makes it bfloat16, half of what the kernels write."""
    arguments = inputs(9, per_channel=False, dtype=torch.float32, widths=(16, 16))
    exact = [x.detach().double().requires_grad_() for x in arguments]
    got, expected = scan(*arguments, erase=True, chunk_size=4), naive_scan(*exact, erase=True)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(
        torch.autograd.grad(got[0].sum() + got[1].sum(), arguments),
        torch.autograd.grad(expected[0].sum() + expected[1].sum(), exact),
        strict=True,
    ):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-4, rtol=1e-4)


def test_what_is_forgotten_at_once() -> None:
    """A log decay of minus infinity leaves nothing of what was, in chunks as anywhere else."""
    q, k, v, log_decay, beta, state = (x.detach() for x in inputs(20, per_channel=False))
    log_decay[:, :, [3, 11]] = -torch.inf
    got = chunked_scan(q, k, v, log_decay, beta, state, erase=True, chunk_size=8)
    for ours, theirs in zip(got, naive_scan(q, k, v, log_decay, beta, state, erase=True), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)
