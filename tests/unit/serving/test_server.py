"""Sockets that cannot be had: one sentence that names the key."""

from __future__ import annotations

import errno
import socket

import pytest

from hfa.errors import ConfigError
from hfa.serving.server import bind


def test_a_bound_port_is_ours_from_then_on():
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigError, match=f"server.port: got {port}, expected a free port"):
            bind("127.0.0.1", port)
    bind("127.0.0.1", port).close()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "server.port: got 80, expected a port this user may open"),
        (errno.EADDRNOTAVAIL, "server.host: got '127.0.0.1', expected an address of this machine"),
    ],
)
def test_what_the_system_refuses(monkeypatch, number, words):
    def refuse(self, address):
        raise OSError(number, "no")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(ConfigError) as refused:
        bind("127.0.0.1", 80)
    assert words in str(refused.value)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a" * 300, "x..y"])
def test_a_host_that_is_none(host):
    with pytest.raises(ConfigError, match=r"server\.host: got"):
        bind(host, 0)
