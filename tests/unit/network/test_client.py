"""The client's reading of a stream, its addresses, and what its command line asks of a subnet."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfa.errors import NetworkError, RequestError
from hfa.network.ask import main
from hfa.network.base import WalletConfig
from hfa.network.bittensor import HotkeySigner, create_hotkey
from hfa.network.client import Answer, HFAClient, Sampling, _Events
from hfa.network.local import LocalNetworkConfig
from hfa.serving import schemas

DONE = {
    "done": True,
    "model": "hfa",
    "reason": "default",
    "finish_reason": "stop",
    "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    "timings": {"queue_s": 0.0, "prefill_s": 0.1, "decode_s": 0.2, "total_s": 0.3, "tokens_per_s": None},
}


def stream(*events: dict[str, object]) -> bytes:
    return b"".join(b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n" for event in events)


def feed(data: bytes, cuts: list[int] | None = None) -> tuple[list[str], _Events]:
    events = _Events()
    edges = [0, *sorted(cut for cut in cuts or [] if cut < len(data)), len(data)]
    pieces = [piece for start, end in itertools.pairwise(edges) for piece in events.feed(data[start:end])]
    events.end()
    return pieces, events


def test_the_client_can_ask_for_all_that_the_miner_offers_and_reads_what_it_answers() -> None:
    assert set(Sampling.__annotations__) == set(schemas.GenerateBody.model_fields) - {"prompt", "stream"}
    assert set(Answer._fields) <= set(schemas.Answer.model_fields)


@given(
    pieces=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=5),
    cuts=st.lists(st.integers(0, 400)),
)
def test_pieces_come_whole_wherever_the_stream_is_cut(pieces: list[str], cuts: list[int]) -> None:
    data = b": a comment\r\n\n" + stream(*({"text": piece} for piece in pieces), DONE)
    read, events = feed(data, cuts)
    assert read == pieces
    assert events.answer is not None
    assert events.answer.text == "".join(pieces)
    assert events.answer.finish_reason == "stop"
    assert events.answer.timings["tokens_per_s"] is None


@pytest.mark.parametrize(
    ("data", "kind", "sentence"),
    [
        (stream({"text": "a"}), NetworkError, "ended before the answer was complete"),
        (b"", NetworkError, "ended before the answer was complete"),
        (stream({"error": {"code": "failed", "message": "The model broke."}}), RequestError, "The model broke."),
        (stream({"error": 7}), RequestError, "failed in the middle"),
        (b"data: {\n", NetworkError, "expected a JSON object"),
        (b"data: [1]\n", NetworkError, "expected a JSON object"),
        (stream({"txt": "a"}), NetworkError, "is this an HFA miner"),
        (stream({"done": True}), NetworkError, "answer's model is wrong"),
        (stream({**DONE, "usage": {"prompt_tokens": "many"}}), NetworkError, "usage.prompt_tokens is wrong"),
    ],
)
def test_broken_streams_are_one_sentence(data: bytes, kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        feed(data)


@pytest.mark.parametrize("url", ["127.0.0.1:8091", "ftp://127.0.0.1", "http://", "http://[::1", "http://h:port", ""])
def test_address_that_is_none_is_one_sentence(url: str, make_signer: Callable[[str], HotkeySigner]) -> None:
    with pytest.raises(NetworkError, match="expected http://host:port"):
        HFAClient(make_signer("caller"), url=url, receiver="5Miner")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"receiver": "ü"}, "receiver: got 'ü'"),
        ({"timeout_s": 0.0}, "timeout: got 0.0"),
        ({"timeout_s": float("nan")}, "timeout: got nan"),
        ({"url": "http://ex_ample..com:1"}, "cannot be sent"),
        ({"prompt": "a\udcff"}, "cannot be sent"),
        ({"temperature": float("nan")}, "cannot be sent"),
    ],
)
def test_what_cannot_be_sent_is_one_sentence(
    changes: dict[str, Any], sentence: str, make_signer: Callable[[str], HotkeySigner]
) -> None:
    asked = {"prompt": "hi"} | {name: changes.pop(name) for name in ("prompt", "temperature") if name in changes}
    given = {"url": "http://127.0.0.1:1", "receiver": "5Miner"} | changes
    with pytest.raises(NetworkError, match=sentence), HFAClient(make_signer("caller"), **given) as client:
        client.generate(**asked)


def test_nobody_there_is_one_sentence(make_signer: Callable[[str], HotkeySigner]) -> None:
    with (
        HFAClient(make_signer("caller"), url="http://127.0.0.1:1", receiver="5Miner") as client,
        pytest.raises(NetworkError, match=r"http://127\.0\.0\.1:1 cannot be reached .*is it running"),
    ):
        client.generate("hi")


def test_command_line_looks_the_miner_up(
    tmp_path: Path,
    make_config: Callable[..., LocalNetworkConfig],
    make_wallet: Callable[[str], WalletConfig],
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, wallet = make_config().file(), make_wallet("validator")
    flags = ["--folder", str(tmp_path / "subnets"), "--wallet.path", wallet.path, "--prompt", "hi"]

    def said(*more: str) -> str:
        assert main([*flags, *more]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        return err

    assert "there is no hotkey file" in said()
    create_hotkey(wallet)
    assert "0 miners are published on netuid 1" in said()
    for name, port in (("5A", 1), ("5B", 2)):
        file.register(name, stake_tao=0.0, validator_permit=False)
        if port == 1:
            assert "5A publishes no endpoint" in said("--receiver", "5A")
        file.publish(name, f"127.0.0.1:{port}")
        if port == 1:
            assert "http://127.0.0.1:1 cannot be reached" in said()
    assert "2 miners are published on netuid 1" in said()
    assert "(5A, 5B); name one with --receiver" in said()
    assert "http://127.0.0.1:2 cannot be reached" in said("--receiver", "5B")
    assert "http://127.0.0.1:2 cannot be reached" in said("--url", "http://127.0.0.1:2"), "the one that is there"
    assert "2 miners are published" in said("--url", "http://127.0.0.1:3")
    assert "http://127.0.0.1:3 cannot be reached" in said("--receiver", "5C", "--url", "http://127.0.0.1:3")
    assert "--context-file: " in said("--receiver", "5B", "--context-file", str(tmp_path / "none.txt"))


def test_command_line_wants_something_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main([])
    assert exited.value.code == 2
    assert "give --prompt, --statistics, or both" in capsys.readouterr().err
