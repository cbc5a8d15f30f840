"""uvicorn on a thread and an event loop of its own, which the network's coroutines share."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import resource
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.loops.auto import auto_loop_factory

from hfa.errors import ConfigError
from hfa.network.base import Network
from hfa.serving.app import ServerConfig
from hfa.serving.connection import bounded

log = logging.getLogger(__name__)

_WAITING = 32  # threads for what has to wait, an engine's step or a disk, whatever the number of cores
_OTHER_FILES = 256  # than those of connections: checkpoints, the chain, libraries
_LAST_WORDS_S = 5.0  # for answers to go out after the engines have ended them


def bind(host: str, port: int) -> socket.socket:
    """A socket on `host` and `port`; who connects waits until a server accepts.

    Raises:
        ConfigError: a host that is not this machine's, a port that is taken or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError):
        raise ConfigError("server.host", host, "an address of this machine", "0.0.0.0 listens on all") from None
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen()
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            remedy = "another program listens there; 0 takes any that is free"
            raise ConfigError("server.port", port, "a free port", remedy) from None
        if error.errno in (errno.EACCES, errno.EPERM):
            raise ConfigError("server.port", port, "a port this user may open", "choose one from 1024") from None
        reason = f"an address of this machine ({error.strerror})"
        raise ConfigError("server.host", host, reason, "0.0.0.0 listens on all") from None
    return bound


def allow_files(connections: int) -> None:
    """Let this process have as many files open as so many connections need, as far as the system allows that."""
    wanted, (soft, hard) = connections + _OTHER_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        log.warning(
            "%d open files are allowed here, and server.max_connections=%d needs %d; raise `ulimit -Hn` or lower it",
            *(allowed, connections, wanted),
        )


class Server:
    """Joins a network, then serves an application until it is stopped.

    Args:
        network: started, published and closed along with the server, on its loop.
        bound: a socket from :func:`bind`.
        settings: times and limits.
        status: a socket from :func:`bind` for what the operator looks at, always in plain HTTP.
    """

    def __init__(
        self,
        network: Network,
        bound: socket.socket,
        settings: ServerConfig,
        status: socket.socket | None = None,
    ) -> None:
        self.host, self.port = bound.getsockname()[:2]
        self._network = network
        self._bound, self._status = bound, status
        self._settings = settings
        self._failure: BaseException | None = None
        self._joined = threading.Event()  # the network, or failed
        self._settled = threading.Event()  # accepting requests, or failed
        self._uvicorn: _Uvicorn | None = None
        self._page: FastAPI | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._serving: asyncio.Task[None] | None = None
        self._app_is_there = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="server", daemon=True)

    @property
    def url(self) -> str:
        """Where it is reached from this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        scheme = "http" if self._settings.tls_certificate is None else "https"
        return f"{scheme}://[{host}]:{self.port}" if ":" in host else f"{scheme}://{host}:{self.port}"

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> None:
        """Return when the network is joined and has a place for us. Raises what prevents it."""
        self._thread.start()
        self._wait_for(self._joined)

    def start(self, app: FastAPI, page: FastAPI | None = None) -> None:
        """Return when `app` gets requests and the endpoint is published. Raises what prevents it.

        Args:
            app: what callers ask.
            page: what the operator looks at, on the status socket.
        """
        if self._thread.ident is None:
            self.join()
        settings = self._settings
        public = _config(
            app,
            settings,
            ssl_certfile=_expanded(settings.tls_certificate),
            ssl_keyfile=_expanded(settings.tls_key),
            timeout_graceful_shutdown=int(settings.drain_s + _LAST_WORDS_S) + 1,
        )
        self._uvicorn, self._page = _Uvicorn(public, settings.head_timeout_s, self._accepting), page
        with contextlib.suppress(RuntimeError):  # the loop has ended, and why is raised below
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._app_is_there.set)
        self._wait_for(self._settled)

    def _wait_for(self, event: threading.Event) -> None:
        event.wait()
        if self._failure is not None:
            raise self._failure

    def stop(self, end_requests: Callable[[], None], hurry: threading.Event) -> None:
        """Accept no more, let running requests finish within the drain or until `hurry`, end the rest, close.

        Args:
            end_requests: ends whatever the engines are doing.
            hurry: cuts the drain short.
        """
        if self._thread.ident is None:
            self._bound.close()
            return
        if self._uvicorn is None:  # nothing was served yet
            self._cancel()
            self._thread.join(_LAST_WORDS_S)
            return
        self._uvicorn.should_exit = True
        limit = time.monotonic() + self._settings.drain_s
        while self.alive and time.monotonic() < limit and not hurry.is_set():
            self._thread.join(0.05)
        end_requests()
        self._thread.join(_LAST_WORDS_S)
        if self.alive:
            log.warning("Connections are still open %g s after the last answer; they are dropped", _LAST_WORDS_S)
            self._uvicorn.force_exit = True
            self._thread.join(_LAST_WORDS_S)

    def _cancel(self) -> None:
        if self._loop is not None and self._serving is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                self._loop.call_soon_threadsafe(self._serving.cancel)

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:  # uvloop: far fewer turns of Python's lock
                runner.run(self._serve())
        except BaseException as error:
            self._failure = error
            if self._settled.is_set():
                log.exception("The server failed")
        finally:
            self._joined.set()
            self._settled.set()

    async def _serve(self) -> None:
        self._loop, self._serving = asyncio.get_running_loop(), asyncio.current_task()
        self._loop.set_default_executor(ThreadPoolExecutor(_WAITING, thread_name_prefix="server"))
        with self._bound:
            await self._network.start()
            try:
                self._network.endpoint(self.host, self.port)
                self._joined.set()
                await self._app_is_there.wait()
                assert self._uvicorn is not None
                async with self._status_page():
                    await self._uvicorn.serve(sockets=[self._bound])
            finally:
                await self._network.close()

    @contextlib.asynccontextmanager
    async def _status_page(self) -> AsyncIterator[None]:
        """Show what there is to see, from before the first request until the last is answered."""
        if self._status is None or self._page is None:
            yield
            return
        page = uvicorn.Server(_config(self._page, self._settings, timeout_graceful_shutdown=1))
        serving = asyncio.create_task(page.serve(sockets=[self._status]))
        try:
            yield
        finally:
            page.should_exit = True
            for failure in await asyncio.gather(serving, return_exceptions=True):
                if failure is not None:
                    log.error("The status page has failed", exc_info=failure)

    async def _accepting(self) -> None:
        await self._network.serve(self.host, self.port)
        self._settled.set()


def _config(app: FastAPI, settings: ServerConfig, **more: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=bounded(
            head_timeout_s=settings.head_timeout_s,
            write_timeout_s=settings.write_timeout_s,
            max_connections=settings.max_connections,
            max_per_address=settings.max_connections_per_address,
        ),
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        date_header=False,
        proxy_headers=False,
        ws="none",
        timeout_keep_alive=settings.keep_alive_s,
        **more,
    )


def _expanded(path: str | None) -> Path | None:
    return None if path is None else Path(path).expanduser()


class _Uvicorn(uvicorn.Server):
    """Ends a handshake of TLS that takes long, and says when it accepts requests."""

    def __init__(self, config: uvicorn.Config, handshake_s: float, on_accepting: Callable[[], Awaitable[None]]) -> None:
        super().__init__(config)
        self._handshake_s, self._on_accepting = handshake_s, on_accepting

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])  # uvicorn itself would let a handshake of TLS take a minute
        config, loop = self.config, asyncio.get_running_loop()
        make: Callable[..., asyncio.Protocol] = config.http_protocol_class
        protocol = functools.partial(make, config=config, server_state=self.server_state, app_state=self.lifespan.state)
        tls: dict[str, Any] = {"ssl": config.ssl, "ssl_handshake_timeout": self._handshake_s} if config.ssl else {}
        for bound in sockets or ():
            self.servers.append(await loop.create_server(protocol, sock=bound, backlog=config.backlog, **tls))
        await self._on_accepting()
