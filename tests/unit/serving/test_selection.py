"""Selection: who answers, and why, from snapshots alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfa.errors import RequestError
from hfa.serving.selection import Candidate, SelectionConfig, Track, choose, doubt

POLICY = SelectionConfig(window=20, min_requests=4, min_success_rate=0.5, max_s_per_token=2.0, probe_after_s=60.0)
FAILING = Track(requests=10, success_rate=0.1, s_per_token=0.1, idle_s=1.0)
SLOW = Track(requests=10, success_rate=1.0, s_per_token=2.5, idle_s=1.0)
GOOD = Track(requests=10, success_rate=1.0, s_per_token=0.1, idle_s=1.0)


def candidate(name: str = "hfa", **values) -> Candidate:
    fields = {"seq_len": 100, "max_seq_len": 1000, "state_bytes": 10, "budget_bytes": 100, "room": 1, "track": GOOD}
    return Candidate(name=name, **(fields | values))


def pick(*candidates: Candidate, wish: str | None = None) -> tuple[str, str]:
    return choose(candidates, POLICY, default="hfa", wish=wish)


@pytest.mark.parametrize(
    ("hfa", "name", "reason"),
    [
        ({}, "hfa", "the default"),
        ({"track": Track()}, "hfa", "the default"),
        ({"seq_len": 2000}, "simplemind", "the request is 2000 tokens with its answer, and hfa takes 1000"),
        ({"state_bytes": 101}, "simplemind", "100 tokens need 101 bytes of memory, and hfa has 100"),
        ({"room": 0}, "simplemind", "hfa has no place in its queue"),
        ({"track": FAILING}, "simplemind", "hfa failed 90% of its last 10 requests"),
        ({"track": SLOW}, "simplemind", "hfa took 2.5 s a token at the 95th percentile lately"),
        ({"track": FAILING._replace(idle_s=60.0)}, "hfa", "the default"),
        ({"track": SLOW._replace(idle_s=61.0)}, "hfa", "the default"),
        ({"track": FAILING._replace(requests=3)}, "hfa", "the default"),
    ],
)
def test_the_default_unless_something_speaks_against_it(hfa, name, reason):
    assert pick(candidate(**hfa), candidate("simplemind")) == (name, reason)


def test_nothing_better_than_a_failing_default():
    reason = "the default, although it failed 90% of its last 10 requests: no other is better placed"
    assert pick(candidate(track=FAILING)) == ("hfa", reason)
    assert pick(candidate(track=FAILING), candidate("simplemind", track=SLOW)) == ("hfa", reason)


def test_a_default_that_is_not_loaded():
    assert pick(candidate("simplemind"), candidate("transformer", track=FAILING)) == ("simplemind", "hfa is not loaded")


def test_among_others_the_better_record_wins():
    slower = candidate("a", track=GOOD._replace(s_per_token=0.3))
    assert pick(slower, candidate("b")).name == "b"
    assert pick(slower, candidate("b", track=GOOD._replace(success_rate=0.9))).name == "a"


def test_a_wish_overrules_the_record_but_not_the_possible():
    both = candidate(), candidate("simplemind", track=FAILING)
    assert pick(*both, wish="simplemind") == ("simplemind", "asked for")
    for impossible, status in (({"seq_len": 2000}, 413), ({"state_bytes": 200}, 413)):
        with pytest.raises(RequestError, match="simplemind") as refused:
            pick(candidate(), candidate("simplemind", **impossible), wish="simplemind")
        assert refused.value.status == status
    with pytest.raises(RequestError, match="got 'gpt', and this miner serves hfa, simplemind") as unknown:
        pick(*both, wish="gpt")
    assert unknown.value.status == 404


def test_too_long_for_all_says_both_numbers_of_the_roomiest():
    with pytest.raises(RequestError, match="2000 tokens with its answer, and simplemind takes 1500") as refused:
        pick(candidate(seq_len=2000), candidate("simplemind", seq_len=2000, max_seq_len=1500))
    assert refused.value.status == 413


def test_no_model_is_503():
    with pytest.raises(RequestError, match="No model is loaded") as refused:
        pick()
    assert refused.value.status == 503


tracks = st.builds(Track, st.integers(0, 20), st.floats(0, 1), st.floats(0, 20), st.floats(0, 120))
some = st.lists(
    st.builds(
        candidate,
        st.sampled_from(["hfa", "simplemind", "transformer", "hybrid"]),
        seq_len=st.integers(1, 1500),
        state_bytes=st.integers(1, 150),
        room=st.integers(0, 2),
        track=tracks,
    ),
    unique_by=lambda one: one.name,
)
wishes = st.sampled_from([None, "hfa", "simplemind", "gpt"])


def can(one: Candidate) -> bool:
    return one.seq_len <= one.max_seq_len and one.state_bytes <= one.budget_bytes


@given(some, wishes)
def test_the_chosen_can_and_a_refusal_means_nobody_could(candidates, wish):
    able = [one for one in candidates if can(one) and wish in (None, one.name)]
    able = [one.name for one in able if one.room] or [one.name for one in able]  # a full queue is its engine's affair
    try:
        name, reason = choose(candidates, POLICY, default="hfa", wish=wish)
    except RequestError:
        assert able == []
        return
    assert name in able
    assert reason
    sound = [one.name for one in candidates if one.name in able and not doubt(one.track, POLICY)]
    if sound and wish is None:
        assert name in sound, "a model in doubt is passed over while a sound one can"
        assert name == "hfa" or "hfa" not in sound


@given(some, wishes, st.randoms())
def test_the_order_of_candidates_does_not_matter(candidates, wish, random):
    def outcome(some):
        try:
            return choose(some, POLICY, default="hfa", wish=wish)[0]
        except RequestError as error:
            return error.status

    shuffled = list(candidates)
    random.shuffle(shuffled)
    assert outcome(candidates) == outcome(shuffled)
