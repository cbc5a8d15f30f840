"""A miner among strangers, over real sockets: nobody gets in, nothing is lost, and a refusal is small."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import pickle
import re
import shutil
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from hfa.errors import RequestError
from hfa.network.client import BittensorAuth
from hfa.serving import admission
from hfa.serving.miner import HFAMiner

HTTP = httpx.Client(verify=False, timeout=60, trust_env=False)
BODY = b'{"prompt": "hello", "max_tokens": 2}'


def address(running) -> tuple[str, int]:
    host, _, port = running.url.removeprefix("http://").partition(":")
    return host, int(port)


def exchange(running, data: bytes) -> bytes:
    """What comes back on a connection of its own: one answer, and whatever follows it closely."""
    with socket.create_connection(address(running), timeout=30) as connection, suppress(ConnectionError):
        with suppress(ConnectionError):
            connection.sendall(data)
        answer = b""
        with suppress(TimeoutError):
            while piece := connection.recv(65536):
                answer += piece
                if is_whole(answer):
                    connection.settimeout(0.1)
    return answer


def is_whole(answer: bytes) -> bool:
    lines, end, body = answer.lower().partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", lines)
    return bool(end) and length is not None and len(body) >= int(length[1])


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def signed(running, body: bytes = BODY, signer=None, *, path: str = "/v1/generate") -> dict[str, str]:
    return (signer or running.validator).sign(body, method="POST", path=path, receiver=running.hotkey)


def post(running, body: bytes = BODY, signer=None, **headers: str) -> httpx.Response:
    return HTTP.post(
        f"{running.url}/v1/generate", content=body, headers={**signed(running, body, signer), **headers}, timeout=60
    )


def send(url: str, headers: dict[str, str]) -> int:
    return HTTP.post(f"{url}/v1/generate", content=BODY, headers=headers, timeout=60).status_code


def head(
    running, body: bytes = BODY, *, path: str = "/v1/generate", extra: str = "", length: str | None = None
) -> bytes:
    """The head of a good request, with more headers, and another length if one is given."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in signed(running, body, path=path).items())
    length = f"content-length: {len(body)}\r\n" if length is None else length
    return f"POST {path} HTTP/1.1\r\nhost: x\r\n{lines}{length}{extra}\r\n".encode("latin-1")


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_the_whole_api_by_its_own_description(start, mode):
    """What OpenAPI says may be sent, and what it says may not, unsigned and signed: never a 5xx."""
    running = start(
        "server.max_tokens=4", "server.default_max_tokens=2", "server.rate_per_s=1e6", "server.rate_burst=9"
    )
    seen: Counter[int] = Counter()
    session = requests.Session()
    session.trust_env = False
    for operation in (
        found.ok() for found in schemathesis.openapi.from_url(f"{running.url}/openapi.json").get_all_operations()
    ):

        @examples(max_examples=12, suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case):
            request = requests.Request(**case.as_transport_kwargs(base_url=running.url)).prepare()
            body = request.body.encode() if isinstance(request.body, str) else request.body or b""
            own = running.validator.sign(body, method=request.method, path=request.path_url, receiver=running.hotkey)
            for signature in ({}, own):
                request.headers.update(signature)
                answer = session.send(request, timeout=60)
                seen[answer.status_code] += 1
                late = answer.status_code == 504 and b"deadline_s" in body  # it asked for an answer in no time
                assert answer.status_code < 500 or late, answer.text
                assert signature or len(answer.content) < 300 or answer.status_code == 200

        with suppress(Unsatisfiable):  # there is no wrong way to GET a path without parameters
            check()
    assert seen[401] > 10
    assert seen[200 if mode is GenerationMode.POSITIVE else 422] + seen[400] > 5, seen


@examples(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=400)
    | st.builds(bytes.__add__, st.just(b"POST /v1/generate HTTP/1.1\r\n"), st.binary(max_size=200))
)
def test_random_bytes_are_refused_and_the_miner_lives(shared, data):
    answer = exchange(shared, data + b"\r\n\r\n\0")
    assert answer == b"" or status(answer) in (400, 404, 405)
    assert len(answer) < 300
    assert status(exchange(shared, b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")) == 200


def test_who_is_slow_or_silent_is_cut_off_and_nobody_waits_for_him(start):
    """Slow-loris and half-open connections by the hundred: others are served meanwhile, and all places come back."""
    running = start("server.head_timeout_s=0.5", "server.max_connections=150", "server.max_connections_per_address=130")
    pieces = (b"", b"P", b"POST /v1/generate HTTP/1.1\r\nhost: x\r\nx-drip: ", b"GET /health HTTP/1.1\r\n")
    idle = [socket.create_connection(address(running), timeout=30) for _ in range(120)]
    for number, connection in enumerate(idle):
        connection.sendall(pieces[number % 4])
    assert post(running).status_code == 200
    began = time.monotonic()
    for number, connection in enumerate(idle):
        with suppress(ConnectionError), connection:
            connection.sendall(b"x")  # a drip does not buy time
            assert connection.recv(65536) == b"", number
    assert time.monotonic() - began < 20
    with socket.create_connection(address(running), timeout=30) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n" * 2 + b"GET /hea")  # the third head never ends
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.count(b"HTTP/1.1 200") == 2


def test_one_address_cannot_take_every_connection(start):
    running = start("server.max_connections=40", "server.max_connections_per_address=20")
    held = [socket.create_connection(address(running), timeout=30) for _ in range(60)]
    time.sleep(0.2)
    assert ended(held) == 40
    until_ok(running)


def test_silent_connections_from_everywhere_make_room_for_who_speaks(start, caplog):
    """More of them than there is room for, and no address with many."""
    running = start("server.max_connections=20", "server.max_connections_per_address=10")
    held = []
    for number in range(200):
        held.append(
            socket.create_connection(address(running), timeout=30, source_address=(f"127.0.1.{number % 20}", 0))
        )
    assert post(running).status_code == 200
    assert ended(held) >= 180, "those that are too many were closed"
    assert len([said for said in caplog.messages if said.startswith("More than 20 connections")]) == 1


def test_connections_that_were_answered_make_room_too(start):
    running = start("server.max_connections=20", "server.max_connections_per_address=10")
    held = []
    for number in range(20):
        connection = socket.create_connection(address(running), timeout=30, source_address=(f"127.0.1.{number}", 0))
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        held.append(connection)
    assert post(running).status_code == 200
    assert ended(held) >= 1


def test_an_idle_connection_stays_open_for_as_long_as_it_may(start):
    running = start("server.head_timeout_s=0.3", "server.keep_alive_s=10")
    with socket.create_connection(address(running), timeout=30) as connection:
        for _ in range(2):
            connection.sendall(b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 204")
            time.sleep(1)


def test_bodies_that_never_come_make_room_too(start):
    """A head is quickly made up; until its signature is proven, it is worth no more than silence."""
    running = start("server.max_connections=20", "server.max_connections_per_address=10")
    held = []
    for number in range(20):
        connection = socket.create_connection(address(running), timeout=30, source_address=(f"127.0.1.{number % 4}", 0))
        connection.sendall(head(running, length="content-length: 60000\r\n") + b"x")
        held.append(connection)
    time.sleep(0.3)
    for _ in range(5):
        assert post(running).status_code == 200
    assert ended(held) >= 1


def ended(connections) -> int:
    """How many of them the other end has closed; the rest is closed here."""
    count = 0
    for connection in connections:
        with connection:
            connection.settimeout(0.05)
            try:
                count += connection.recv(1) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                count += 1
    return count


def until_ok(running) -> None:
    limit = time.monotonic() + 30
    while True:
        with suppress(httpx.HTTPError):
            if post(running).status_code == 200:
                return
        assert time.monotonic() < limit


def test_who_takes_nothing_of_an_answer_is_cut_off(start):
    running = start("server.write_timeout_s=0.3")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(address(running))
        with suppress(ConnectionError, TimeoutError):
            connection.settimeout(10)
            for _ in range(100_000):  # answers that nobody reads, until the miner has enough
                connection.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n")
            pytest.fail("the miner went on answering")
    assert post(running).status_code == 200


def test_who_takes_an_answer_slowly_gets_all_of_it_and_nobody_two_at_once(start):
    """As long as it goes on; meanwhile another one of the same caller has to wait, and memory with it."""
    running = start("models=[hfa]", "server.write_timeout_s=1.5", "server.max_exports=1")
    http = httpx.Client(
        base_url=running.url, auth=BittensorAuth(running.validator, running.hotkey), trust_env=False, timeout=60
    )
    one = http.post("/v1/sessions", json={"model": "hfa"}).json()["id"]
    assert http.post(f"/v1/sessions/{one}/generate", json={"prompt": "x" * 19_000, "max_tokens": 2}).is_success
    path, taken = f"/v1/sessions/{one}/export", 0
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(address(running))
        headers = running.validator.sign(b"", method="GET", path=path, receiver=running.hotkey)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n{lines}\r\n".encode())
        answer = connection.recv(4096)
        size = int(re.search(rb"content-length: (\d+)", answer)[1])
        assert size > 5 << 20, "more than sockets hold"
        taken = len(answer.partition(b"\r\n\r\n")[2])
        refused = http.get(path)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        began = time.monotonic()
        while taken < size:
            piece = connection.recv(1 << 19)
            assert piece, f"cut off after {taken} of {size} bytes"
            taken += len(piece)
            time.sleep(4 * len(piece) / size)
        assert time.monotonic() - began > 3
    assert len(http.get(path).content) == size


def test_a_flood_from_one_key_and_from_many(start):
    """One key gets its burst and no more; many registered ones get theirs; strangers get a small 403, all at once."""
    running = start("server.rate_burst=5", "server.rate_per_s=0.001", "engine.max_queue=64")
    keys = [running.subnet.signer(f"v{number}") for number in range(6)]
    strangers = [running.subnet.signer(f"s{number}", register=False) for number in range(6)]
    with ThreadPoolExecutor(16) as pool:
        one = Counter(pool.map(lambda _: post(running).status_code, range(60)))
        many = Counter(pool.map(lambda number: post(running, signer=keys[number % 6]).status_code, range(60)))
        none = list(pool.map(lambda number: post(running, signer=strangers[number % 6]), range(60)))
    assert one == {200: 5, 429: 55}
    assert many == {200: 30, 429: 30}
    assert {(answer.status_code, len(answer.content) < 300) for answer in none} == {(403, True)}


def test_a_replay_in_the_same_moment_is_accepted_once(start, settings, tmp_path):
    """The same signed request from many sockets at once, to two miners that share a hotkey and a nonce folder."""
    first = start()
    with HFAMiner(settings(f"statistics_path={tmp_path / 'second.json'}")) as second:
        urls = [first.url, second.url]
        headers = signed(first)
        with ThreadPoolExecutor(12) as pool:
            codes = Counter(pool.map(lambda url: send(url, headers), urls * 10))
    assert codes == {200: 1, 401: 19}


def test_bodies_that_are_not_what_they_seem(shared):
    deep = b'{"prompt": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    huge = b'{"prompt": "a", "max_tokens": ' + b"9" * 100_000 + b"}"
    many = b'{"prompt": "a"' + b"".join(b', "k%d": 1' % number for number in range(50_000)) + b"}"
    for body in (
        deep,
        b"[" * 500_000,
        huge,
        many,
        b'{"prompt": "\\ud800"}',
        b"\xff\xfe{}",
        b"null",
        b'{"prompt": NaN}',
    ):
        answer = post(shared, body)
        assert answer.status_code in (400, 422)
        assert len(answer.content) < 300


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": "application/json; charset=utf-16"},
        {"content-type": "a" * 5000},
        {},
    ],
)
def test_the_content_type_changes_nothing(shared, headers):
    """The raw body is what was signed, and JSON is what it is read as."""
    assert post(shared, **headers).status_code == 200


def test_a_compressed_body_is_not_unpacked(shared):
    answer = post(shared, gzip.compress(BODY), **{"content-encoding": "gzip"})
    assert answer.status_code == 400


@pytest.mark.parametrize(
    "path",
    [
        "//v1/generate", "/v1//generate", "/v1/../v1/generate", "/v1/%2e%2e/v1/generate", "/v1/generate/",
        "/v1/generate%00", "/V1/GENERATE", "/v1/generate;x=1", "/..%2f..%2fetc/passwd", "/static/../../etc/passwd",
        "/%ff%fe", "/" + "a" * 4000,
    ],
)  # fmt: skip
def test_path_tricks_lead_nowhere(shared, path):
    answer = exchange(shared, head(shared, path=path) + BODY)
    assert status(answer) == 404
    assert len(answer) < 300


def test_a_signature_holds_for_one_path(shared):
    """A target in absolute form or written otherwise is another text than the signed one."""
    good = head(shared)
    assert status(exchange(shared, good.replace(b"/v1/generate", b"/v1/%67enerate", 1) + BODY)) == 401
    absolute = head(shared).replace(b" /v1/generate", b" http://evil/v1/generate", 1)
    assert status(exchange(shared, absolute + BODY)) in (
        401,
        404,
    )
    assert status(exchange(shared, b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n")) in (400, 404, 405)
    assert status(exchange(shared, b"CONNECT evil:443 HTTP/1.1\r\nhost: x\r\n\r\n")) in (400, 404, 405)


CHUNKED = "transfer-encoding: chunked\r\n"
SMUGGLED = b"0\r\n\r\nGET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.mark.parametrize(
    ("length", "extra"),
    [
        ("content-length: 4\r\n", CHUNKED),
        ("content-length: 5\r\ncontent-length: 6\r\n", ""),
        ("content-length: 5, 6\r\n", ""),
        ("content-length: +5\r\n", ""),
        ("content-length: 0x5\r\n", ""),
        ("content-length : 5\r\n", ""),
        ("", "transfer-encoding: xchunked\r\n"),
        ("", "transfer-encoding: chunked, identity\r\n"),
        ("", "transfer-encoding: chunked\r\n" * 2),
        ("", "x: a\r\n  transfer-encoding: chunked\r\n"),  # folded
        ("content-length: 5\r\n", "x: a\rb\r\n"),
        ("content-length: 5\r\n", "x: a\0b\r\n"),
    ],
)
def test_a_request_within_a_request_is_never_answered(shared, length, extra):
    answer = exchange(shared, head(shared, length=length, extra=extra) + SMUGGLED)
    assert status(answer) in (400, 401, 501)
    assert b"HTTP/1.1 200" not in answer
    assert b"hfa_requests" not in answer
    assert len(answer) < 600  # what is left over may be refused as a request of its own


@pytest.mark.parametrize("path", ["/v1/generate", "/nowhere"])
def test_a_body_in_broken_chunks_is_400_and_fills_no_log(shared, path, caplog):
    """Head and chunk in one piece: the request is on its way to the application when the chunk turns out to be none."""
    for chunk in (b"ZZ\r\n", b"-1\r\nx\r\n", b"5\r\nhelloXX"):
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode()
        assert status(exchange(shared, head + chunk)) == 400
    until_ok(shared)
    assert not [record for record in caplog.records if record.exc_info or record.levelname == "ERROR"]


def test_a_head_without_end_is_refused(shared):
    answer = exchange(shared, b"GET /health HTTP/1.1\r\nhost: x\r\nx-long: " + b"a" * 200_000)
    assert answer == b"" or status(answer) in (400, 431)
    answer = exchange(shared, b"GET /health HTTP/1.1\r\n" + b"x: y\r\n" * 50_000)
    assert answer == b"" or status(answer) in (400, 431)


ROOMS = ("/v1/generate", "/v1/completions", "/v1/sessions/import", "/InfiniteContextSynapse")


def dendrite(running, signer=None, **changes: str) -> dict[str, str]:
    """The headers of a Dendrite, signed."""
    signer = signer or running.validator
    nonce, body_hash = time.time_ns(), hashlib.sha3_256(b"").hexdigest()
    text = f"{nonce}.{signer.hotkey}.{running.hotkey}.u.{body_hash}"
    return {
        "name": "InfiniteContextSynapse",
        "timeout": "12.0",
        "computed_body_hash": body_hash,
        "bt_header_axon_hotkey": running.hotkey,
        "bt_header_dendrite_hotkey": signer.hotkey,
        "bt_header_dendrite_nonce": str(nonce),
        "bt_header_dendrite_uuid": "u",
        "bt_header_dendrite_signature": f"0x{signer.keypair.sign(text.encode()).hex()}",
        **changes,
    }


@pytest.mark.parametrize("path", ROOMS)
def test_a_refusal_is_smaller_than_300_bytes_all_told(start, path, monkeypatch):
    """To whoever has proven nothing, whatever it is about; the status line and the headers count."""
    monkeypatch.setattr(admission, "_GRACE_S", 60.0)
    running = start(
        "server.rate_burst=1", "server.rate_per_s=0.00001", "server.max_uploads_per_address=1", "server.max_imports=1",
        "server.body_timeout_s=2", "server.import_timeout_s=2"
    )  # fmt: skip
    stranger = running.subnet.signer("stranger", register=False)
    other = running.subnet.signer("other")

    def asking(signer=None, length: str = f"content-length: {len(BODY)}\r\n", **changes: str) -> bytes:
        headers = dendrite(running, signer) if "Synapse" in path else signed(running, BODY, signer, path=path)
        lines = "".join(f"{name}: {value}\r\n" for name, value in (headers | changes).items())
        return f"POST {path} HTTP/1.1\r\nhost: x\r\n{lines}{length}\r\n".encode("latin-1")

    hotkey = "bt_header_dendrite_hotkey" if "Synapse" in path else "X-Bittensor-Hotkey"
    kinds = {
        401: [
            f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{{}}".encode(),
            asking(**{"X-Bittensor-Signature": "0x00", "bt_header_dendrite_signature": "0x00"}) + BODY,
        ],
        403: [asking(stranger) + BODY],
        404: [
            b"POST /" + b"a" * 5000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
            b"POST /" + b"%E2%98%83" * 500 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
            b"GET /" + b"%22%5C%00%01" * 90 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        ],
        405: [
            f"PATCH {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode(),
            b"X" * 900 + f" {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode(),
        ],
        408: [asking()],
        413: [asking(length="content-length: 99999999999\r\n")],
        400: [b"\r\n\r\nnonsense\r\n\r\n", asking(length="content-length: 3\r\ntransfer-encoding: chunked\r\n")],
    }
    for expected, heads in kinds.items():
        for sent in heads:
            answer = exchange(running, sent)
            assert (status(answer), len(answer) < 300) == (expected, True), answer
    for made_up in ("5" * 48, "\xff" * 128, "\\" * 128):
        answer = exchange(running, asking(**{hotkey: made_up}) + BODY)
        assert status(answer) in (401, 403)
        assert len(answer) < 300, answer
    with socket.create_connection(address(running), timeout=30) as upload:
        large = "content-length: 70000\r\n"
        upload.sendall(asking(other, large) + b"{")
        time.sleep(0.1)
        full = exchange(running, asking(length=large) + BODY)
    assert (status(full), len(full) < 300) == (503, True), full
    answers = (exchange(running, asking() + BODY) for _ in range(20))  # the first that is proven is counted
    often = next(answer for answer in answers if status(answer) == 429)
    assert len(often) < 300, often


def test_bodies_that_never_come_keep_nobody_out(start):
    """Anybody can claim a hotkey and send a byte; who means it is answered all the same."""
    running = start("server.max_uploads=4", "server.max_uploads_per_address=4", "server.body_timeout_s=60")
    with contextlib.ExitStack() as stalled:
        for length in (9, 70_000) * 4:
            upload = stalled.enter_context(socket.create_connection(address(running), timeout=30))
            lines = "".join(f"{name}: {value}\r\n" for name, value in signed(running, BODY).items())
            lines += f"content-length: {length}\r\n"
            upload.sendall(f"POST /v1/generate HTTP/1.1\r\nhost: x\r\n{lines}\r\n{{".encode())
        time.sleep(1.5)
        assert running.client().generate("Once", max_tokens=2).text
        with pytest.raises(RequestError, match="takes 40000"):  # read, and too long for these models
            running.client().generate("x" * 70_000, max_tokens=2)


def test_numbers_that_json_has_not_come_back_as_null(shared):
    """A field that nobody asks for, in a signed synapse of a v10 Dendrite, whose JSON is Python's."""
    body = b'{"context": "a", "prompt": "b", "max_tokens": 2, "temperature_hint": NaN, "per": {"x": [Infinity, 1]}}'
    answer = HTTP.post(f"{shared.url}/InfiniteContextSynapse", content=body, headers=dendrite(shared))
    assert answer.status_code == 200, answer.text
    content = json.loads(answer.content, parse_constant=pytest.fail)
    assert (content["temperature_hint"], content["per"]) == (None, {"x": [None, 1]})
    assert content["context_length"] == 4
    wrong = HTTP.post(
        f"{shared.url}/InfiniteContextSynapse", content=body.replace(b"2,", b"NaN,"), headers=dendrite(shared)
    )
    assert wrong.status_code == 400


def test_clocks_that_jump_let_nothing_in_twice(start, monkeypatch):
    """Ours is set back an hour, and forward a day: what was accepted stays refused, and what is fresh is answered."""
    running = start("server.rate_per_s=1000", "server.rate_burst=1000")
    real = time.time_ns
    sent = [signed(running)]

    assert send(running.url, sent[0]) == 200
    for jump_s in (-3600, 0, 86400, 0, -5, 0):
        monkeypatch.setattr(time, "time_ns", lambda jump_s=jump_s: real() + jump_s * 10**9)
        sent.append(signed(running))
        assert send(running.url, sent[-1]) == 200
        assert [send(running.url, headers) for headers in sent] == [401] * len(sent)


@pytest.mark.parametrize(
    "extreme", [{"temperature": 5e-324}, {"temperature": 100.0}, {"top_p": 1e-300, "temperature": 1}]
)
def test_the_ends_of_a_range_are_answered(shared, extreme):
    assert post(shared, json.dumps({"prompt": "hello", "max_tokens": 2, **extreme}).encode()).status_code == 200


class Trap:
    """What runs when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


def pickled(folder: Path, mark: Path) -> None:
    trap = pickle.dumps(Trap(mark))
    (folder / "model.safetensors").write_bytes(trap)
    (folder / "tokenizer.json").write_bytes(trap)
    (folder / "pytorch_model.bin").write_bytes(trap)
    describe(folder, weights={"bytes": len(trap), "sha256": hashlib.sha256(trap).hexdigest()})


def oversized_header(folder: Path, mark: Path) -> None:
    weights = (2**40).to_bytes(8, "little") + b"{" * 1000
    (folder / "model.safetensors").write_bytes(weights)
    describe(folder, weights={"bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()})


def foreign_target(folder: Path, mark: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    describe(folder, model=content["model"] | {"_target_": "os.system", "d_ff": {"_target_": "pathlib.Path.touch"}})


def foreign_architecture(folder: Path, mark: Path) -> None:
    describe(folder, architecture="os")


def torn(folder: Path, mark: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def describe(folder: Path, **changes: object) -> None:
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))


@pytest.mark.parametrize("damage", [pickled, oversized_header, foreign_target, foreign_architecture, torn])
def test_a_malicious_artifact_is_a_sentence_and_the_other_model_serves(start, runs, tmp_path, caplog, damage):
    shutil.copytree(runs, tmp_path / "outputs")
    mark = tmp_path / "it ran"
    damage(tmp_path / "outputs" / "hfa" / "checkpoints" / "last", mark)
    running = start(f"checkpoint_root={tmp_path / 'outputs'}")
    assert post(running).json()["reason"] == "hfa is not loaded"
    assert [record for record in caplog.messages if record.startswith("hfa is not served from here: ")]
    assert "Traceback" not in caplog.text
    assert not mark.exists()
