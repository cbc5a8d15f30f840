"""Routing for all tokens at once against routing token by token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from hfa.config import from_node
from hfa.models.simplemind import RoutedChannels, SimpleMindConfig
from hfa.ops.routing import ROUTERS, Routing, naive_route, naive_routed_scan, route, routed_scan

CONF = Path(__file__).parents[2] / "conf" / "model" / "simplemind.yaml"


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("budget", [1, 3, 7])
@pytest.mark.parametrize("signed", [True, False])
def test_vectorised_equals_naive(router: str, budget: int, signed: bool) -> None:
    generator = torch.Generator().manual_seed(budget)
    scores = torch.randn(2, 3, 5, 8, generator=generator, dtype=torch.float64).requires_grad_()
    theta = torch.randn(2, 3, 5, 1, generator=generator, dtype=torch.float64).requires_grad_()
    got, expected = (form(scores, router, theta, budget, signed) for form in (route, naive_route))
    assert signed or (got >= 0).all()
    assert not signed or torch.equal(got.sign(), scores.sign() * (got != 0))
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
    weight = torch.randn_like(got)
    for ours, theirs in zip(
        torch.autograd.grad((got * weight).sum(), (scores, theta), allow_unused=True),
        torch.autograd.grad((expected * weight).sum(), (scores, theta), allow_unused=True),
        strict=True,
    ):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)


@pytest.mark.parametrize("router", ["hard", "dynamic"])
@pytest.mark.parametrize("signed", [True, False])
def test_no_token_uses_more_than_its_budget(router: str, signed: bool) -> None:
    scores = torch.randn(500, 64, generator=torch.Generator().manual_seed(0))
    active = (route(scores, router, torch.full((500, 1), 0.5), 16, signed) != 0).sum(-1)
    assert active.max() <= 16
    assert active.min() >= 1


def test_dynamic_uses_fewer_channels_under_a_higher_threshold() -> None:
    scores = torch.randn(500, 64, generator=torch.Generator().manual_seed(0))
    counts = [
        (route(scores, "dynamic", torch.full((500, 1), theta), 32, signed=True) != 0).sum(-1).float().mean()
        for theta in (0.0, 1.0, 2.0)
    ]
    assert counts[0] > counts[1] > counts[2]


def drawn(length: int, channels: int, width: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = [(2, length, 2, channels), (2, length, 2, channels), (2, length, 2, width), (2, length, 8)]
    return [torch.randn(shape, generator=generator) for shape in (*shapes, (2, 2, channels, width))]


def with_gradients(
    call: Callable[..., tuple[torch.Tensor, ...]], inputs: list[torch.Tensor]
) -> list[torch.Tensor | None]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    outputs = call(*leaves)[:2]
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator).to(x) for x in outputs]
    loss = sum((x * w).sum() for x, w in zip(outputs, weights, strict=True))
    return [*outputs, *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("erase", [True, False])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(
    ("length", "channels", "width", "budget"), [(1, 16, 16, 4), (21, 48, 80, 15), (16, 64, 64, 16), (9, 64, 64, 63)]
)
def test_the_kernel_equals_naive(
    router: str, erase: bool, signed: bool, length: int, channels: int, width: int, budget: int
) -> None:
    """In float32, with its gradients, against the naive form in float64."""
    inputs = drawn(length, channels, width)
    inputs[3][:, :, :2] += 3  # slow decay, and some of the fastest
    routing = Routing(router, budget, erase, signed)
    found = with_gradients(lambda *x: routed_scan(*x, routing, chunk_size=8), inputs)
    options = {"router": router, "budget": budget, "erase": erase, "signed": signed}
    wanted = with_gradients(lambda *x: naive_routed_scan(*x, **options), [x.double() for x in inputs])
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=2e-5 * float(theirs.detach().abs().max()), rtol=0)
    with torch.no_grad():
        for ours, theirs in zip(routed_scan(*inputs, routing, chunk_size=8), found[:2], strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("erase", [True, False])
@pytest.mark.parametrize("signed", [True, False])
def test_chunks_equal_naive(router: str, erase: bool, signed: bool) -> None:
    """In float64, with gradients: what runs where there is no kernel."""
    inputs = [x.double() for x in drawn(29, 7, 5)]
    found = with_gradients(lambda *x: routed_scan(*x, Routing(router, 3, erase, signed), chunk_size=8), inputs)
    options = {"router": router, "budget": 3, "erase": erase, "signed": signed}
    wanted = with_gradients(lambda *x: naive_routed_scan(*x, **options), inputs)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=1e-8)


def test_views_and_widths_that_no_vector_divides_are_taken_as_they_are() -> None:
    mixed = torch.randn(2, 9, 2 * (16 + 16 + 5), generator=torch.Generator().manual_seed(0))
    q, k, v = (x.unflatten(-1, (2, -1)) for x in mixed.split([32, 32, 10], dim=-1))
    gates, state = drawn(9, 16, 5)[3:]
    found = routed_scan(q, k, v, gates, state, Routing("hard", 4, True, True), chunk_size=8)
    wanted = naive_routed_scan(q, k, v, gates, state, router="hard", budget=4, erase=True, signed=True)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_scores_that_are_all_equal_are_finite() -> None:
    q, k, v, gates, state = drawn(9, 16, 16)
    for router in ROUTERS:
        out, _ = routed_scan(q * 0 + 1, k * 0, v, gates, state, Routing(router, 4, True, True), chunk_size=8)
        assert torch.isfinite(out).all()


def test_the_operator_is_sound() -> None:
    inputs = [x.requires_grad_() for x in drawn(5, 16, 16)]
    torch.library.opcheck(torch.ops.hfa.routed_scan.default, (*inputs, "hard", 4, True, True, 4))


@pytest.mark.parametrize("rows", [1, 3, 12])
@pytest.mark.parametrize(("heads", "channels", "budget", "conv_width"), [(2, 16, 5, 4), (2, 16, 15, 4), (1, 48, 5, 1)])
@pytest.mark.parametrize(("router", "aggregation"), [("dynamic", "learnable"), ("soft", "sum")])
def test_a_layer_decodes_by_one_kernel(
    rows: int, heads: int, channels: int, budget: int, conv_width: int, router: str, aggregation: str
) -> None:
    """A few tokens, one at a time, against torch in float64; the state that was handed in stays as it was."""
    torch.manual_seed(0)
    sizes = {"d_model": 32, "num_heads": heads, "num_channels": channels, "active_channels": budget}
    options = {"conv_width": conv_width, "router": router, "aggregation": aggregation}
    node = OmegaConf.to_container(OmegaConf.merge(OmegaConf.load(CONF), sizes, options))
    assert isinstance(node, dict)
    layer = RoutedChannels(from_node(node, "model", SimpleMindConfig), match=False)
    with torch.no_grad():  # no two heads alike, nor queries and keys
        layer.thresholds.uniform_(0.2, 1.5)
        layer.gates.bias.uniform_(-2, 4)
    x, state = torch.randn(rows, 5, 32, generator=torch.Generator().manual_seed(0)), layer.init_state(rows)
    found, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        for t in range(5):
            before = [part.clone() for part in state]
            y, after = layer(x[:, t : t + 1], state)
            assert all(map(torch.equal, before, state))
            found.append(y)
            state = after
        wanted, final = layer.double()(x.double(), layer.double().init_state(rows))
    torch.set_num_threads(threads)
    torch.testing.assert_close(torch.cat(found, 1).double(), wanted, atol=3e-5, rtol=0)
    for ours, theirs in zip(state, final, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=3e-5, rtol=0)
