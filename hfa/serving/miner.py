"""The miner: models, a place on a subnet, and a server, together for as long as a `with` lasts."""

from __future__ import annotations

import logging
import signal
import threading
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from hfa import checkpoint
from hfa.config import Config, PositiveFloat, config
from hfa.errors import CheckpointError, ConfigError, HFAError
from hfa.inference import EngineConfig
from hfa.models import architectures
from hfa.network.base import Network, NetworkConfig, WalletConfig
from hfa.serving.app import ServerConfig, create_app
from hfa.serving.selection import SelectionConfig
from hfa.serving.server import Server, bind
from hfa.serving.service import Served, Service
from hfa.serving.statistics import Statistics

log = logging.getLogger(__name__)

_NEWEST = ("latest", "best")


@config
class MinerConfig(Config):
    """Everything a miner is made of.

    Args:
        default: the architecture that answers unless something speaks against it.
        models: those to load, besides the default.
        checkpoint: latest or best artifact of each, or one artifact's folder.
        checkpoint_root: where latest and best are looked for.
        statistics_path: where the track record is kept.
        heartbeat_s: between two lines that say the miner is running; statistics are written as often.
    """

    default: str
    models: tuple[str, ...]
    checkpoint: str
    checkpoint_root: str
    statistics_path: str
    heartbeat_s: PositiveFloat
    engine: EngineConfig
    network: NetworkConfig
    wallet: WalletConfig
    server: ServerConfig
    selection: SelectionConfig

    def check(self) -> None:
        known = architectures()
        for key, names in (("default", (self.default,)), ("models", self.models)):
            for name in names:
                if name not in known:
                    raise ConfigError(key, name, f"one of {', '.join(known)}")

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
        self.models: dict[str, Served] = {}  # what is loaded, by architecture
        self._server: Server | None = None
        self._statistics: Statistics | None = None

    @property
    def url(self) -> str:
        """Where the server is reached from this machine, once it runs."""
        if self._server is None:
            raise RuntimeError("the miner has no address before `with` is entered")
        return self._server.url

    def __enter__(self) -> Self:
        settings = self._config
        with ExitStack() as resources:
            bound = resources.enter_context(bind(settings.server.host, settings.server.port))
            network = settings.network.build(settings.wallet)
            statistics = Statistics(Path(settings.statistics_path).expanduser())
            resources.callback(statistics.save)
            models = self._load(resources)
            service = Service(
                models,
                default=settings.default,
                statistics=statistics,
                policy=settings.selection,
                limits=settings.server.limits(),
            )
            server = Server(create_app(service, network, settings.server), network, bound, settings.server)
            resources.callback(server.stop, lambda: _end(models), self._hurry)
            server.start()
            self.models, self._server, self._statistics = models, server, statistics
            self._resources = resources.pop_all()
        log.info("Serving uid %s of netuid %d on %s at %s", _uid(network), network.netuid, network.name, server.url)
        log.info("Miner ready with %d models: %s", len(models), list(models))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        log.info("Miner stopping: running requests have %g s to finish", self._config.server.drain_s)
        with self._handlers, self._resources:
            pass
        log.info("Miner stopped")

    def run(self) -> None:
        """Serve until SIGINT, SIGTERM or `stop`; a second signal cuts the drain short.

        Raises:
            RuntimeError: the server died by itself.
        """
        if self._server is None or self._statistics is None:
            raise RuntimeError("run() is for inside the `with`")
        self._listen_to_signals()
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

    def _listen_to_signals(self) -> None:
        """Until the miner is released; other threads than the main one cannot and need not."""
        if threading.current_thread() is not threading.main_thread():
            return

        def on_signal(number: int, frame: FrameType | None) -> None:
            self.stop()

        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers.callback(signal.signal, number, signal.signal(number, on_signal))

    def _load(self, resources: ExitStack) -> dict[str, Served]:
        """The models that can be had; those that cannot are a warning each."""
        models: dict[str, Served] = {}
        for name, spec in self._specs().items():
            try:
                path = checkpoint.resolve(spec, architecture=name, root=Path(self._config.checkpoint_root).expanduser())
                artifact = checkpoint.load(path)
                _check_vocabulary(artifact)
                engine = self._config.engine.build(artifact.model, name, artifact.tokenizer.fingerprint())
            except ConfigError as error:
                raise error.under("engine") from None
            except HFAError as error:
                log.warning("%s is not served: %s", name, error)
                continue
            except Exception:
                log.exception("%s is not served: loading it failed", name)
                continue
            resources.callback(engine.close)
            models[name] = Served(engine, artifact.tokenizer)
            size, device = engine.num_parameters, engine.load().device
            role = ", the default" if name == self._config.default else ""
            log.info("%s: %s parameters on %s%s, from %s", name, f"{size:,}", device, role, artifact.path)
        if not models:
            log.warning("No model could be loaded: every request will be answered with 503")
        return models

    def _specs(self) -> dict[str, str]:
        """Which artifact to load for which architecture: the folder of one artifact is of one architecture."""
        spec = self._config.checkpoint
        if spec in _NEWEST:
            return dict.fromkeys(self._config.asked, spec)
        try:
            folder = checkpoint.resolve(spec, architecture=None, root=Path(self._config.checkpoint_root))
            name = str(checkpoint.read_config(folder).get("architecture"))
        except HFAError:
            name = self._config.default  # loading it says what is wrong
        return {name: spec}


def _end(models: dict[str, Served]) -> None:
    for model in models.values():
        model.engine.close()


def _check_vocabulary(artifact: checkpoint.Artifact) -> None:
    ids, known = artifact.model.config.vocab_size, artifact.tokenizer.vocab_size
    if ids != known:
        raise CheckpointError(
            f"{artifact.path}: the model has {ids} token ids and its tokenizer {known}; train it again."
        )


def _uid(network: Network) -> str:
    me = network.neuron(network.hotkey)
    return "?" if me is None else str(me.uid)
