"""The wire of v9 and v10, signed by hand: what is accepted once, and what never."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfa.errors import RequestError
from hfa.network.base import AuthConfig, Wire
from hfa.network.bittensor import HotkeySigner, HotkeyVerifier
from hfa.network.dendrite import DendriteHeaders, body_hash

BODY = b'{"context": "a long text", "prompt": "what?", "max_tokens": 4}'
HASH = body_hash(["a long text", "what?"])


class Asking:
    """A validator's key, and the miner's wire that judges what it signs."""

    def __init__(self, signer: HotkeySigner, miner: str, wire: Wire) -> None:
        self.signer, self.miner, self.wire = signer, miner, wire

    def headers(self, *, age_s: float = 0.0, receiver: str = "", uuid: str = "u", hashed: str = HASH) -> dict[str, str]:
        nonce, receiver = time.time_ns() - int(age_s * 1e9), receiver or self.miner
        text = f"{nonce}.{self.signer.hotkey}.{receiver}.{uuid}.{hashed}"
        return {
            "name": "InfiniteContextSynapse",
            "timeout": "12.0",
            "computed_body_hash": hashed,
            "bt_header_axon_hotkey": receiver,
            "bt_header_dendrite_hotkey": self.signer.hotkey,
            "bt_header_dendrite_nonce": str(nonce),
            "bt_header_dendrite_uuid": uuid,
            "bt_header_dendrite_signature": f"0x{self.signer.keypair.sign(text.encode()).hex()}",
        }

    def verify(self, headers: dict[str, str], body: bytes = BODY) -> str:
        assert self.wire.screen(headers) == self.signer.hotkey
        return self.wire.verify(headers, body, method="POST", path="/InfiniteContextSynapse").hotkey

    def refusal(self, headers: dict[str, str], body: bytes = BODY) -> str:
        with pytest.raises(RequestError) as raised:
            self.verify(headers, body)
        assert raised.value.status == 401
        assert len(str(raised.value)) < 150
        return str(raised.value)


@pytest.fixture
def asking(auth: AuthConfig, make_signer: Callable[[str], HotkeySigner]) -> Asking:
    miner = make_signer("miner").hotkey
    wire = HotkeyVerifier(miner, auth).dendrite
    assert wire is not None
    return Asking(make_signer("validator"), miner, wire)


def test_accepted_once_in_any_order_and_by_uuid(asking: Asking) -> None:
    first, second = asking.headers(), asking.headers()
    assert asking.verify(second) == asking.signer.hotkey
    assert asking.verify(first) == asking.signer.hotkey
    for sent in (first, second):
        assert "already accepted" in asking.refusal(sent)
    upper = {name.title(): value for name, value in asking.headers(uuid="v").items()}
    assert asking.verify(upper) == asking.signer.hotkey


def test_another_worker_and_a_restart_know_the_nonce(asking: Asking, auth: AuthConfig) -> None:
    headers = asking.headers()
    asking.verify(headers)
    again = Asking(asking.signer, asking.miner, HotkeyVerifier(asking.miner, auth).dendrite)  # type: ignore[arg-type]
    assert "already accepted" in again.refusal(headers)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bt_header_dendrite_signature": ""}, "bt_header_dendrite_signature: missing"),
        ({"bt_header_dendrite_signature": "0x"}, "malformed"),
        ({"bt_header_dendrite_signature": "0x" + "zz" * 64}, "malformed"),
        ({"bt_header_dendrite_signature": "0x" + "00" * 63}, "does not verify"),
        ({"bt_header_dendrite_signature": "0x" + "00" * 500}, "too long"),
        ({"bt_header_dendrite_nonce": "1e18"}, "malformed"),
        ({"bt_header_dendrite_nonce": str(2**63)}, "malformed"),
        ({"timeout": "nan"}, "malformed"),
        ({"timeout": "inf"}, "malformed"),
        ({"timeout": "-1"}, "malformed"),
        ({"bt_header_dendrite_uuid": "other"}, "does not verify"),
        ({"computed_body_hash": body_hash([])}, "not the one that was signed"),
        ({"bt_header_axon_hotkey": "5Other"}, "another miner"),
        ({"BT_HEADER_DENDRITE_NONCE": "1"}, "given twice"),
    ],
)
def test_what_is_wrong_is_said(asking: Asking, change: dict[str, str], words: str) -> None:
    assert words in asking.refusal(asking.headers() | change)


def test_an_address_that_is_none_is_refused(asking: Asking) -> None:
    headers = asking.headers() | {"bt_header_dendrite_hotkey": "5Nobody"}
    with pytest.raises(RequestError, match="does not verify"):
        asking.wire.verify(headers, BODY, method="POST", path="/")


def test_signed_fields_are_what_arrived(asking: Asking) -> None:
    for body in (BODY.replace(b"what?", b"else?"), b"[]", b"{", b'{"context": "a long text"}', b"[" * 100_000):
        assert "sign" in asking.refusal(asking.headers(), body)
    assert asking.verify(asking.headers(), BODY.replace(b"4", b"5")), "unsigned fields can be altered on the way"


def test_the_window_is_the_timeout_and_a_little_and_is_capped(asking: Asking) -> None:
    assert asking.verify(asking.headers(age_s=15.0))
    assert "16.5 s old" in asking.refusal(asking.headers(age_s=16.5))
    assert asking.verify(asking.headers(age_s=63.0) | {"timeout": "600"})
    assert "65.0 s old" in asking.refusal(asking.headers(age_s=65.0) | {"timeout": "600"})
    assert asking.verify(asking.headers(age_s=-1.5))
    assert "in the future" in asking.refusal(asking.headers(age_s=-2.5))


@settings(max_examples=200)
@given(
    st.dictionaries(
        st.sampled_from(["timeout", "bt_header_dendrite_nonce", "bt_header_dendrite_signature", "computed_body_hash"]),
        st.text(max_size=200),
    )
)
def test_junk_is_a_401_and_never_another_exception(junk: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as raised:
        DendriteHeaders.read({"bt_header_dendrite_hotkey": "5A", "bt_header_axon_hotkey": "5B"} | junk)
    assert raised.value.status == 401


def test_half_a_character_is_refused(asking: Asking) -> None:
    """JSON can escape one of a pair of surrogates, which no text has."""
    assert "not the one that was signed" in asking.refusal(asking.headers(), BODY.replace(b"what?", b"\\ud800"))
