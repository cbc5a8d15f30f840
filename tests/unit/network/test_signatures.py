"""Signed requests: what is refused, with which sentence, and that nothing else ever comes out."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import bittensor as bt
import pytest
from bittensor import http_auth
from hypothesis import given, settings
from hypothesis import strategies as st

from hfa.errors import NetworkError, RequestError
from hfa.network.base import AuthConfig, WalletConfig
from hfa.network.bittensor import HotkeySigner, HotkeyVerifier, create_hotkey, hotkey_file, open_hotkey

BODY, PATH = b'{"prompt": "hi"}', "/v1/generate?x=%20"


@pytest.fixture
def miner(make_signer: Callable[[str], HotkeySigner]) -> HotkeySigner:
    return make_signer("miner")


@pytest.fixture
def caller(make_signer: Callable[[str], HotkeySigner]) -> HotkeySigner:
    return make_signer("caller")


@pytest.fixture
def headers(miner: HotkeySigner, caller: HotkeySigner) -> dict[str, str]:
    return caller.sign(BODY, method="POST", path=PATH, receiver=miner.hotkey)


@pytest.fixture
def verifier(miner: HotkeySigner, auth: AuthConfig) -> HotkeyVerifier:
    return HotkeyVerifier(miner.hotkey, auth)


def refused(verifier: HotkeyVerifier, headers: dict[str, str], body: bytes = BODY, path: str = PATH) -> str:
    with pytest.raises(RequestError) as raised:
        verifier.verify(headers, body, method="POST", path=path)
    assert raised.value.status == 401
    sentence = str(raised.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert len(sentence) < 250
    return sentence


def screened_out(verifier: HotkeyVerifier, headers: dict[str, str]) -> str:
    with pytest.raises(RequestError) as raised:
        verifier.screen(headers)
    assert raised.value.status == 401
    return str(raised.value)


def test_signed_request_is_verified_once(
    verifier: HotkeyVerifier, caller: HotkeySigner, headers: dict[str, str]
) -> None:
    assert verifier.screen(headers) == caller.hotkey
    assert verifier.screen(headers) == caller.hotkey, "looking at the headers uses no nonce up"
    nothing = caller.sign(b"", method="", path="", receiver=verifier._hotkey)
    assert verifier.screen(nothing) == verifier.screen(nothing) == caller.hotkey
    verified = verifier.verify(headers, BODY, method="POST", path=PATH)
    assert verified.hotkey == caller.hotkey
    assert verified.nonce_ns == int(headers["X-Bittensor-Nonce"])
    assert "already accepted" in refused(verifier, headers)


def test_replay_is_refused_by_another_worker_and_after_a_restart(
    miner: HotkeySigner, auth: AuthConfig, verifier: HotkeyVerifier, headers: dict[str, str]
) -> None:
    other = HotkeyVerifier(miner.hotkey, auth)
    other.open()
    verifier.verify(headers, BODY, method="POST", path=PATH)
    assert "already accepted" in refused(other, headers)
    verifier.close()
    other.close()
    assert "already accepted" in refused(HotkeyVerifier(miner.hotkey, auth), headers)


def test_tampering_is_refused(verifier: HotkeyVerifier, headers: dict[str, str], miner: HotkeySigner) -> None:
    assert "does not verify" in refused(verifier, headers, body=BODY + b" ")
    assert "does not verify" in refused(verifier, headers, path="/v1/generate")
    assert "does not verify" in refused(verifier, headers, path="/v1/generate?x= ")
    assert "does not verify" in refused(verifier, {**headers, "X-Bittensor-Hotkey": miner.hotkey})
    nonce = str(int(headers["X-Bittensor-Nonce"]) + 1)
    assert "does not verify" in refused(verifier, {**headers, "X-Bittensor-Nonce": nonce})
    with pytest.raises(RequestError):
        verifier.verify(headers, BODY, method="PUT", path=PATH)
    verifier.verify(headers, BODY, method="POST", path=PATH)  # none of these used the nonce up


@pytest.mark.parametrize(("age_s", "what"), [(10.5, "older than the 10s"), (-2.5, "more than 2s in the future")])
def test_stale_and_early_requests_are_refused_on_their_headers(
    verifier: HotkeyVerifier, caller: HotkeySigner, miner: HotkeySigner, age_s: float, what: str
) -> None:
    headers = http_auth.sign(
        caller.keypair,
        method="POST",
        path=PATH,
        body=BODY,
        receiver_ss58=miner.hotkey,
        nonce_ns=time.time_ns() - int(age_s * 1e9),
    )
    assert what in refused(verifier, headers)
    assert what in screened_out(verifier, headers)


def test_window_is_configuration(caller: HotkeySigner, miner: HotkeySigner, auth: AuthConfig) -> None:
    wide = HotkeyVerifier(miner.hotkey, replace(auth, max_age_s=60.0))
    nonce = time.time_ns() - int(30e9)
    headers = http_auth.sign(caller.keypair, method="GET", path="/", receiver_ss58=miner.hotkey, nonce_ns=nonce)
    assert wide.verify(headers, b"", method="GET", path="/").nonce_ns == nonce


def test_receiver_must_be_this_miner(
    verifier: HotkeyVerifier, caller: HotkeySigner, miner: HotkeySigner, auth: AuthConfig
) -> None:
    wrong = caller.sign(BODY, method="POST", path=PATH, receiver=caller.hotkey)
    unbound = caller.sign(BODY, method="POST", path=PATH, receiver=None)
    assert "different receiving hotkey" in screened_out(verifier, wrong)
    assert "Missing X-Bittensor-Receiver" in screened_out(verifier, unbound)
    lenient = HotkeyVerifier(miner.hotkey, replace(auth, require_receiver=False))
    assert lenient.verify(unbound, BODY, method="POST", path=PATH).hotkey == caller.hotkey
    assert "different receiving hotkey" in screened_out(lenient, wrong)


@pytest.mark.parametrize("scheme", ["ed25519", "0", " ED25519 "])
def test_ed25519_is_refused_even_with_a_good_signature(
    verifier: HotkeyVerifier, miner: HotkeySigner, scheme: str
) -> None:
    keypair = bt.keyfiles.Keypair.create_from_mnemonic(bt.keyfiles.Keypair.generate_mnemonic(12), bt.CRYPTO_ED25519)
    headers = http_auth.sign(keypair, method="POST", path=PATH, body=BODY, receiver_ss58=miner.hotkey)
    http_auth.verify(headers, BODY, method="POST", path=PATH, self_hotkey_ss58=miner.hotkey)  # the SDK takes it
    headers["X-Bittensor-Crypto"] = scheme
    assert "Only sr25519" in screened_out(verifier, headers)
    assert "Only sr25519" in refused(verifier, headers)


def test_request_without_signature_is_refused(verifier: HotkeyVerifier) -> None:
    assert screened_out(verifier, {}) == (
        "Missing or unsupported X-Bittensor-Version (expected '1'); sign the request with btauth/1 "
        "(bittensor.http_auth.sign)."
    )


@pytest.mark.parametrize("name", ["Hotkey", "Nonce", "Signature", "Receiver"])
def test_each_header_is_needed(verifier: HotkeyVerifier, headers: dict[str, str], name: str) -> None:
    del headers[f"X-Bittensor-{name}"]
    assert f"missing X-Bittensor-{name}".lower() in screened_out(verifier, headers).lower()


@pytest.mark.parametrize(
    "changes",
    [
        {"X-Bittensor-Nonce": "12e3"},
        {"X-Bittensor-Nonce": "9" * 4000},
        {"X-Bittensor-Nonce": "9" * 5000},
        {"X-Bittensor-Signature": "0xzz"},
        {"X-Bittensor-Signature": "0x"},
        {"X-Bittensor-Signature": "0x00"},
        {"X-Bittensor-Hotkey": "5" * 48},
        {"X-Bittensor-Hotkey": "\udcff"},
        {"X-Bittensor-Crypto": "ecdsa"},
        {"X-Bittensor-Crypto": "\N{SUPERSCRIPT TWO}"},
        {"x-bittensor-nonce": "1"},
    ],
)
def test_malformed_headers_are_refused(
    verifier: HotkeyVerifier, headers: dict[str, str], changes: dict[str, str]
) -> None:
    screened_out(verifier, {**headers, **changes})
    refused(verifier, {**headers, **changes})


def test_header_given_twice_is_refused(verifier: HotkeyVerifier, headers: dict[str, str]) -> None:
    both = {**headers, "x-bittensor-hotkey": headers["X-Bittensor-Hotkey"]}
    assert "given twice" in screened_out(verifier, both)


def test_replay_store_that_fails_closes_the_door(
    verifier: HotkeyVerifier, headers: dict[str, str], auth: AuthConfig
) -> None:
    Path(auth.nonce_dir).write_text("a file where the folder should be")
    with pytest.raises(RequestError, match="try later") as raised:
        verifier.verify(headers, BODY, method="POST", path=PATH)
    assert raised.value.status == 503


NAMES = st.sampled_from(["Version", "Hotkey", "Receiver", "Nonce", "Crypto", "Signature"]).map(
    lambda name: f"X-Bittensor-{name}"
)
VALUES = st.one_of(
    st.text(max_size=80),
    st.text(alphabet="0123456789abcdefx", max_size=140),
    st.integers().map(str),
    st.binary(max_size=80).map(lambda raw: raw.decode("latin-1")),
    st.binary(max_size=80).map(lambda raw: raw.decode("utf-8", "surrogateescape")),
)


@pytest.fixture(scope="module")
def parties(tmp_path_factory: pytest.TempPathFactory) -> tuple[HotkeySigner, HotkeySigner, HotkeyVerifier]:
    folder = tmp_path_factory.mktemp("parties")
    miner, caller = (
        create_hotkey(WalletConfig(name=name, hotkey="default", path=str(folder))) for name in ("miner", "caller")
    )
    auth = AuthConfig(
        max_age_s=10.0,
        allowed_skew_s=2.0,
        require_receiver=True,
        nonce_dir=str(folder / "nonces"),
        max_nonces=1000,
        dendrite=None,
    )
    return miner, caller, HotkeyVerifier(miner.hotkey, auth)


@settings(max_examples=400)
@given(junk=st.dictionaries(NAMES, VALUES, max_size=6), body=st.binary(max_size=20), path=st.text(max_size=20))
def test_junk_is_a_401_and_never_another_exception(
    parties: tuple[HotkeySigner, HotkeySigner, HotkeyVerifier], junk: dict[str, str], body: bytes, path: str
) -> None:
    miner, caller, verifier = parties
    signed = caller.sign(body, method="POST", path="/", receiver=miner.hotkey)
    changed = {**signed, **junk}
    refused(verifier, junk, body)
    refused(verifier, changed, body, f"/other{path}")
    screened_out(verifier, junk)
    with contextlib.suppress(RequestError):  # the junk may be another hotkey's address, or a nonce of just now
        verifier.screen(changed)


def test_hotkey_files_are_private_and_no_coldkey_is_made(make_wallet: Callable[[str], WalletConfig]) -> None:
    wallet = make_wallet("w")
    signer = create_hotkey(wallet)
    assert open_hotkey(wallet, "").hotkey == signer.hotkey
    assert hotkey_file(wallet).stat().st_mode & 0o077 == 0
    assert sorted(path.name for path in (Path(wallet.path) / "w").iterdir()) == ["hotkeys"]
    with pytest.raises(NetworkError, match="is there already"):
        create_hotkey(wallet)
    assert open_hotkey(wallet, "").hotkey == signer.hotkey


def test_missing_torn_and_foreign_hotkeys_are_one_sentence(make_wallet: Callable[[str], WalletConfig]) -> None:
    wallet = make_wallet("w")
    with pytest.raises(NetworkError, match=r"there is no hotkey file .*/w/hotkeys/default; do this\.$"):
        open_hotkey(wallet, "do this")
    create_hotkey(wallet)
    whole = hotkey_file(wallet).read_bytes()
    for torn in (b"", whole[: len(whole) // 2], b"\x00\xff" * 40, b"{}", b"[]"):
        hotkey_file(wallet).write_bytes(torn)
        with pytest.raises(NetworkError, match=r"default cannot be opened \(.*\); do this\.$"):
            open_hotkey(wallet, "do this")


def test_the_public_half_alone_is_refused(make_wallet: Callable[[str], WalletConfig]) -> None:
    wallet = make_wallet("w")
    create_hotkey(wallet)
    kept = json.loads(hotkey_file(wallet).read_text())
    hotkey_file(wallet).write_text(json.dumps({key: kept[key] for key in ("accountId", "publicKey", "ss58Address")}))
    with pytest.raises(NetworkError, match="holds the public half of a key alone; do this"):
        open_hotkey(wallet, "do this")


def test_an_encrypted_hotkey_and_no_terminal_is_one_sentence(
    make_wallet: Callable[[str], WalletConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    wallet = make_wallet("w")
    bt.Wallet(name="w", hotkey="default", path=wallet.path).create_new_hotkey(
        suppress=True, use_password=True, hotkey_password="correct horse battery 1!"
    )
    monkeypatch.setattr("getpass.getpass", Mock(side_effect=EOFError))
    with pytest.raises(NetworkError, match="is encrypted, and there is no terminal to ask for its password"):
        open_hotkey(wallet, "do this")


def test_ed25519_hotkey_is_refused(make_wallet: Callable[[str], WalletConfig]) -> None:
    wallet = make_wallet("w")
    bt.Wallet(name="w", hotkey="default", path=wallet.path).create_new_hotkey(
        suppress=True, crypto_type=bt.CRYPTO_ED25519
    )
    with pytest.raises(NetworkError, match="holds an ed25519 key, expected sr25519"):
        open_hotkey(wallet, "do this")
