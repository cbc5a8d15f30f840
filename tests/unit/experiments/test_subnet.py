"""The validator in a box: challenges have one answer, and lying, guessing, being slow or dying does not pay."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.subnet.challenge import draw, is_right
from experiments.subnet.validator import Outcome, scores, weights

LENGTHS = (512, 2048, 8192)


@given(st.integers(0, 2**32), st.sampled_from(LENGTHS), st.integers(1, 8))
def test_a_challenge_has_one_answer_and_it_is_in_the_context(seed, length, num_secrets):
    challenge = draw(random.Random(seed), length, num_secrets)
    assert challenge == draw(random.Random(seed), length, num_secrets)
    assert challenge.context.count(f"{challenge.prompt}{challenge.answer}\n") == 1
    assert challenge.context.count(challenge.prompt) == 1
    assert challenge.context.count("# secret ") >= num_secrets
    assert 0 <= challenge.depth < 1
    assert len(challenge.context) < length + 40 * num_secrets


def test_only_the_digits_count():
    challenge = draw(random.Random(0), 512, 4)
    assert is_right(challenge, challenge.answer)
    assert is_right(challenge, challenge.answer + "\n# and more")
    for said in ("", f" {challenge.answer}", challenge.answer[:-1], "1.0", challenge.answer[::-1] + challenge.answer):
        assert not is_right(challenge, said)


def outcomes(miner: str, right: float, seconds: float, lengths=LENGTHS) -> list[Outcome]:
    return [Outcome(miner, length, 0.5, index < 100 * right, seconds, "") for length in lengths for index in range(100)]


def test_who_lies_guesses_waits_or_dies_gets_less_than_who_is_right():
    seen = [
        *outcomes("right", 1.0, 0.5),
        *outcomes("guesses", 0.25, 0.001),
        *outcomes("slow", 1.0, 5.0),
        *outcomes("dies", 0.1, 0.4),
        *outcomes("short", 1.0, 0.5, LENGTHS[:1]),
        *outcomes("short", 0.0, 0.5, LENGTHS[1:]),
    ]
    scored = scores(seen, ("right", "guesses", "slow", "dies", "short", "absent"))
    final = weights(scored, sharpness=2.0)
    assert sum(final.values()) == pytest.approx(1.0)
    assert max(final, key=final.__getitem__) == "right"
    assert final["guesses"] < 0.1 * final["right"]
    assert final["slow"] < 0.1 * final["right"]
    assert final["short"] < 0.2 * final["right"], "long contexts count more than short ones"
    assert final["absent"] == 0


def test_nobody_right_is_nobody_paid():
    assert weights(scores(outcomes("a", 0.0, 1.0), ("a", "b")), 2.0) == {"a": 0.0, "b": 0.0}
