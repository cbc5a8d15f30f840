"""What `hfa.serving.connection` says on the wire is what h11 would."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfa.serving.connection import _Connection, origin

HEADERS = {"chunked": [], "sized": [("content-length", "12")], "told": [("x-said", "transfer-encoding: chunked")]}


def said(kind: type[h11.Connection], method: str, version: bytes, headers: str, pieces: list[bytes]) -> list[bytes]:
    connection = kind(h11.SERVER)
    connection.receive_data(b"%b /v1/generate HTTP/%b\r\nhost: here\r\n\r\n" % (method.encode(), version))
    assert isinstance(connection.next_event(), h11.Request)
    assert isinstance(connection.next_event(), h11.EndOfMessage)
    events = [h11.Response(status_code=200, headers=HEADERS[headers]), *(h11.Data(data=piece) for piece in pieces)]
    sent = [connection.send(event) or b"" for event in events]
    try:
        sent.append(connection.send(h11.EndOfMessage()) or b"")
    except h11.LocalProtocolError as error:
        sent.append(str(error).encode())
    return [*sent, repr(connection.states).encode()]


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
@pytest.mark.parametrize("headers", HEADERS)
@given(pieces=st.lists(st.binary(max_size=6), max_size=3))
def test_an_answer_is_framed_as_h11_frames_it(method, version, headers, pieces):
    pieces = [b""] * len(pieces) if method == "HEAD" else pieces
    if headers == "sized":
        pieces = [b"".join(pieces).ljust(12, b".")[:12]] if method != "HEAD" else pieces
    assert said(_Connection, method, version, headers, pieces) == said(h11.Connection, method, version, headers, pieces)


def test_nothing_is_said_after_the_end():
    connection = _Connection(h11.SERVER)
    connection.receive_data(b"GET / HTTP/1.1\r\nhost: here\r\n\r\n")
    connection.next_event()
    connection.next_event()
    connection.send(h11.Response(status_code=200, headers=[]))
    connection.send(h11.EndOfMessage())
    with pytest.raises(h11.LocalProtocolError):
        connection.send(h11.Data(data=b"late"))


@pytest.mark.parametrize(
    ("client", "said"),
    [
        (("10.0.0.1", 1), "10.0.0.1"),
        (("::ffff:10.0.0.1", 1), "10.0.0.1"),
        (("2001:db8:1:2:3:4:5:6", 1), "2001:db8:1:2::/64"),
        (("unix", 0), "unix"),
        (None, ""),
    ],
)
def test_who_is_at_the_other_end(client, said):
    assert origin(client) == said
