"""The miner: models, a place on a subnet, and a server, together for as long as a `with` lasts."""

from __future__ import annotations

import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

import filelock

from hfa.config import Config, PositiveFloat, config
from hfa.errors import ConfigError
from hfa.inference import EngineConfig
from hfa.models import architectures
from hfa.network.base import Endpoint, Network, NetworkConfig, WalletConfig
from hfa.serving.app import ServerConfig, create_app, create_status_app
from hfa.serving.loading import NEWEST, Loader, Watcher
from hfa.serving.metrics import Metrics
from hfa.serving.selection import SelectionConfig
from hfa.serving.server import Server, bind
from hfa.serving.service import Served, Service
from hfa.serving.statistics import Statistics

log = logging.getLogger(__name__)

_YEAR_S = 365 * 24 * 3600.0


@config
class MinerConfig(Config):
    """Everything a miner is made of.

    Args:
        default: the architecture that answers unless something speaks against it.
        models: those to load, besides the default.
        checkpoint: latest or best artifact of each, or one artifact's folder.
        checkpoint_root: where latest and best are looked for.
        watch_s: between two looks for a newer artifact, which then takes the place of the old one; null never looks.
        statistics_path: where the track record is kept.
        heartbeat_s: between two lines that say the miner is running; statistics are written as often.
    """

    default: str
    models: tuple[str, ...]
    checkpoint: str
    checkpoint_root: str
    watch_s: PositiveFloat | None
    statistics_path: str
    heartbeat_s: PositiveFloat
    engine: EngineConfig
    network: NetworkConfig
    wallet: WalletConfig
    server: ServerConfig
    selection: SelectionConfig

    def check(self) -> None:
        for key, seconds in (("watch_s", self.watch_s), ("heartbeat_s", self.heartbeat_s)):
            if seconds is not None and seconds > _YEAR_S:
                raise ConfigError(key, seconds, f"at most {_YEAR_S:g}, which is a year")
        known = [name for name, architecture in architectures().items() if architecture.served]
        for key, names in (("default", (self.default,)), ("models", self.models)):
            for name in names:
                if name not in known:
                    raise ConfigError(key, name, f"one of {', '.join(known)}")
        if self.watch_s is None and self.checkpoint not in NEWEST and not Path(self.checkpoint).exists():
            remedy = "with watch_s=60 it is waited for"
            raise ConfigError(
                "checkpoint", self.checkpoint, "latest, best, or an artifact's folder that is there", remedy
            )

    @property
    def asked(self) -> list[str]:
        """The architectures to load, the default first."""
        return list(dict.fromkeys([self.default, *self.models]))

    def build(self) -> HFAMiner:
        return HFAMiner(self)


class HFAMiner:
    """A miner that serves inside a ``with``::

        with HFAMiner(config) as miner:
            miner.run()                     # until SIGINT, SIGTERM or miner.stop()

    Entering loads the models and starts the server; `url` is then where it is. Leaving drains what is running, writes
    the statistics, and releases engines, sockets and the network's connections.

    Args:
        config: all of it.
    """

    def __init__(self, config: MinerConfig) -> None:
        self._config = config
        self._stopping = threading.Event()
        self._hurry = threading.Event()
        self._resources = ExitStack()
        self._handlers = ExitStack()  # restores the signal handlers, last of all
        self._service: Service | None = None
        self._server: Server | None = None
        self._statistics: Statistics | None = None

    @property
    def url(self) -> str:
        """Where the server is reached from this machine, once it runs."""
        if self._server is None:
            raise RuntimeError("the miner has no address before `with` is entered")
        return self._server.url

    @property
    def models(self) -> Mapping[str, Served]:
        """What is loaded, by architecture."""
        return {} if self._service is None else self._service.models

    def __enter__(self) -> Self:
        settings = self._config
        with ExitStack() as resources:
            resources.enter_context(self._handlers)
            self._on_signals(_leave, signal.SIGTERM)  # SIGINT raises by itself
            bound = resources.enter_context(bind(settings.server.host, settings.server.port))
            network = settings.network.build(settings.wallet)
            status = _status_socket(settings.server)
            if status is not None:
                resources.enter_context(status)
            server = Server(network, bound, settings.server, status)
            record = Path(settings.statistics_path).expanduser()
            resources.enter_context(_own(record))
            statistics = Statistics(record)
            resources.callback(statistics.save)
            ending = resources.enter_context(ExitStack())  # the engines, once there are any
            resources.callback(server.stop, ending.close, self._hurry)
            server.join()  # what the network refuses is known before models take their time to load
            loader = Loader(
                spec=settings.checkpoint,
                root=Path(settings.checkpoint_root).expanduser(),
                asked=settings.asked,
                engine=settings.engine,
            )
            service = Service(
                loader.load(again=settings.watch_s is not None),
                default=settings.default,
                statistics=statistics,
                policy=settings.selection,
                limits=settings.server.limits(),
            )
            ending.callback(_end, service)
            metrics = Metrics(service, network)
            app = create_app(service, network, settings.network, settings.server, metrics)
            page = create_status_app(service, network, settings.network, metrics)
            at = None if status is None else Endpoint(*status.getsockname()[:2])
            server.start(app, page)
            if settings.watch_s is not None:
                drain_s = settings.server.deadline_s
                watcher = Watcher(loader, service, interval_s=settings.watch_s, drain_s=drain_s)
                watcher.start()
                ending.callback(watcher.end)
                resources.callback(watcher.stop)
            self._service, self._server, self._statistics = service, server, statistics
            self._resources = resources.pop_all()
        log.info("Serving uid %s of netuid %d on %s at %s", _uid(network), network.netuid, network.name, server.url)
        if at is not None:
            log.info("Status page at http://%s", at)
        log.info("Miner ready with %d models: %s", len(service.models), list(service.models))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        log.info("Miner stopping: running requests have %g s to finish", self._config.server.drain_s)
        self._resources.close()
        if self._service is not None:
            self._service.release()
        log.info("Miner stopped")

    def run(self) -> None:
        """Serve until SIGINT, SIGTERM or `stop`; a second signal cuts the drain short.

        Raises:
            RuntimeError: the server died by itself.
        """
        if self._server is None or self._statistics is None:
            raise RuntimeError("run() is for inside the `with`")
        self._on_signals(lambda number, frame: self.stop(), signal.SIGINT, signal.SIGTERM)
        while not self._stopping.wait(self._config.heartbeat_s):
            if not self._server.alive:
                raise RuntimeError("the server has died; the log says why")
            log.info("Miner running... %s", datetime.now().isoformat(sep=" ", timespec="seconds"))
            self._statistics.save()

    def stop(self) -> None:
        """Make `run` return, from any thread; a second time, cut the drain short."""
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    def _on_signals(self, handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals) -> None:
        """Until the miner is released; other threads than the main one cannot and need not."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in numbers:
            self._handlers.callback(signal.signal, number, signal.signal(number, handler))


def _leave(number: int, frame: FrameType | None) -> None:
    """End what is being started, as Ctrl-C does."""
    sys.exit(0)


@contextmanager
def _own(path: Path) -> Iterator[None]:
    """Have a file to ourselves; on a disk that cannot be written there is nothing to share."""
    lock = filelock.FileLock(f"{path}.lock", blocking=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        remedy = "another miner that runs writes that one"
        raise ConfigError("statistics_path", str(path), "a file of this miner's own", remedy) from None
    except OSError:
        log.warning("Whether another miner writes %s cannot be told", path)
    try:
        yield
    finally:
        lock.release()


def _status_socket(settings: ServerConfig) -> socket.socket | None:
    """Where the status page is shown; a port that is taken is no reason not to mine."""
    if settings.status_port is None:
        return None
    try:
        return bind(settings.status_host, settings.status_port)
    except ConfigError as error:
        if error.key != "server.port":
            raise ConfigError("server.status_host", error.got, error.expected, error.remedy) from None
        log.warning("Port %d is taken; the status page is on another", settings.status_port)
        return bind(settings.status_host, 0)


def _end(service: Service) -> None:
    for model in service.models.values():
        model.engine.close()


def _uid(network: Network) -> str:
    me = network.neuron(network.hotkey)
    return "?" if me is None else str(me.uid)
