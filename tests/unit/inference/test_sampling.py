"""Sampling: what each filter keeps, and that a seed decides everything."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hfa.errors import RequestError
from hfa.inference import GenerationRequest, Sampling
from hfa.inference.sampling import probabilities, sample

LOGITS = torch.log(torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15]))


def kept(**options: float) -> dict[int, float]:
    """Which tokens are left, with their probabilities."""
    probs = probabilities(LOGITS, Sampling(**({"temperature": 1.0} | options)))
    return {i: round(p, 4) for i, p in enumerate(probs.tolist()) if p > 0}


def test_each_filter_keeps_the_likeliest_and_renormalizes():
    assert kept() == {0: 0.1, 1: 0.4, 2: 0.05, 3: 0.3, 4: 0.15}
    assert kept(top_k=2) == {1: 0.5714, 3: 0.4286}
    assert kept(top_k=99) == kept()
    assert kept(top_p=0.69) == {1: 0.5714, 3: 0.4286}
    assert kept(top_p=0.71) == {1: 0.4706, 3: 0.3529, 4: 0.1765}
    assert kept(top_p=1e-6) == {1: 1.0}
    assert kept(min_p=0.3) == {1: 0.4706, 3: 0.3529, 4: 0.1765}
    assert kept(min_p=1.0) == {1: 1.0}
    assert kept(top_k=3, top_p=0.8) == {1: 0.5714, 3: 0.4286}, "p is of the mass that top-k left"


def test_of_equals_the_lowest_ids_are_kept():
    level = torch.zeros(6)
    for options in ({"top_k": 2}, {"top_p": 0.3}):
        assert probabilities(level, Sampling(temperature=1.0, **options)).tolist() == [0.5, 0.5, 0, 0, 0, 0]


def test_temperature_sharpens_and_flattens():
    assert kept(temperature=0.5)[1] > 0.4 > kept(temperature=2.0)[1]
    assert kept(temperature=1e-30) == {1: 1.0}


@pytest.mark.parametrize("coldest", [{"temperature": 5e-324}, {"temperature": 1.0, "top_p": 1e-300}])
def test_what_is_too_small_for_float32_takes_the_likeliest(coldest):
    logits = torch.tensor([0.5, 2.0, 1.9, -1.0])
    assert probabilities(logits, Sampling(**coldest)).tolist() == [0, 1, 0, 0]


def test_a_penalty_that_would_make_logits_infinite_is_refused():
    with pytest.raises(RequestError, match=r"repetition_penalty: got 1e-45, expected 0\.01 or more"):
        Sampling(repetition_penalty=1e-45)


def test_zero_temperature_takes_the_likeliest_whatever_the_seed():
    assert {sample(LOGITS, Sampling(seed=s), torch.Generator().manual_seed(s)) for s in range(9)} == {1}


@settings(max_examples=100)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40),
    st.floats(0.01, 5),
    st.integers(0, 45),
    st.floats(0.01, 1),
    st.floats(0, 1),
    st.integers(0, 2**63 - 1),
)
def test_any_combination_is_a_distribution_and_repeatable(logits, temperature, top_k, top_p, min_p, seed):
    sampling = Sampling(seed=seed, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    row = torch.tensor(logits)
    probs = probabilities(row, sampling)
    assert torch.isfinite(probs).all()
    assert math.isclose(probs.sum().item(), 1, abs_tol=1e-4)
    everything = torch.softmax((row - row.max()) / temperature, -1)
    assert (probs[everything == everything.max()] > 0).any(), "the likeliest is never dropped"
    assert (probs > 0).sum() <= (top_k or len(logits))
    generators = sampling.generator(), sampling.generator()
    runs = [[sample(row, sampling, generator) for _ in range(5)] for generator in generators]
    assert runs[0] == runs[1]
    assert all(probs[token] > 0 for token in runs[0])


def test_samples_follow_the_distribution():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([sample(LOGITS, Sampling(temperature=1.0), generator) for _ in range(4000)])
    counts = torch.bincount(drawn, minlength=5) / 4000
    assert torch.allclose(counts, LOGITS.exp(), atol=0.03)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_distribution_are_an_error(bad, temperature):
    logits = torch.tensor([0.0, bad, 1.0])
    with pytest.raises(ValueError, match="not finite"):
        sample(logits, Sampling(temperature=temperature), torch.Generator())
    with pytest.raises(ValueError, match="not finite"):
        sample(torch.full((3,), -math.inf), Sampling(temperature=temperature), torch.Generator())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", 1.1),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_values_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(RequestError, match=f"{name}: got .*, expected") as refused:
        Sampling(**{name: value})
    assert refused.value.status == 422


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokens": ()}, "no tokens"),
        ({"max_tokens": 0}, "max_tokens: got 0, expected at least 1"),
        ({"deadline_s": 0.0}, "deadline_s: got 0.0"),
        ({"deadline_s": math.nan}, "deadline_s: got nan"),
    ],
)
def test_requests_are_checked_at_the_door(values, message):
    with pytest.raises(RequestError, match=message) as refused:
        GenerationRequest(**({"tokens": (1,), "max_tokens": 1, "sampling": Sampling()} | values))
    assert refused.value.status == 422
