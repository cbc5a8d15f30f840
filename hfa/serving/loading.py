"""From artifacts to models that answer: all of them when the miner starts, and each anew when a newer one appears."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from hfa import checkpoint
from hfa.allocator import give_back
from hfa.errors import CheckpointError, ConfigError, HFAError, RequestError
from hfa.inference import Engine, EngineConfig, FinishEvent, GenerationRequest, Sampling
from hfa.inference.session import Sessions
from hfa.serving.service import Served, Service

log = logging.getLogger(__name__)

NEWEST = ("latest", "best")
_MOVE_S = 0.1  # between two looks for sessions that are busy no longer
_JOIN_S = 5.0  # what a look that is under way gets to end, after the drain


class Source(NamedTuple):
    """Which weights a model has: a folder, and what was in it."""

    path: Path
    sha256: str
    written: tuple[tuple[str, int, int], ...]  # name, bytes and time of each file; of no account once it is loaded


class Loader:
    """Loads the models that can be had; those that cannot are a warning each.

    Args:
        spec: latest or best artifact of each architecture, or one artifact's folder.
        root: where latest and best are looked for.
        asked: the architectures, the default first.
        engine: how each is run.
    """

    def __init__(self, *, spec: str, root: Path, asked: Sequence[str], engine: EngineConfig) -> None:
        self._spec, self._root, self._asked, self._engine = spec, root, asked, engine
        self._seen: dict[str, Source] = {}  # what was tried last
        self._said: dict[str, str] = {}  # what was wrong last
        self._wrong: Exception | None = None  # likewise
        self._loaded: set[str] = set()  # what was handed over, and serves

    def names(self) -> list[str]:
        """The architectures there may be artifacts of."""
        return list(self._specs())

    def load(self, *, again: bool) -> dict[str, Served]:
        """Every model.

        Args:
            again: whether there will be later looks.

        Raises:
            Exception: the one folder that was named cannot be served, and will not be looked at again.
            ConfigError: an engine that cannot be.
        """
        models = {name: served for name in self.names() if (served := self.newer(name))}
        if self._wrong and not models and self._spec not in NEWEST and not again:
            raise self._wrong
        if not models:
            log.warning("No model could be loaded: every request will be answered with 503")
        elif self._asked[0] not in models:
            log.warning("%s, the default, is not served; the others answer what names no model", self._asked[0])
        return models

    def newer(self, name: str) -> Served | None:
        """The model of `name`, if its artifact is another than at the last look. Raises ConfigError as `load` does."""
        try:
            source = self._source(name)
            if self._seen.get(name) in (source, source._replace(written=())):
                return None
            self._seen[name] = source  # torn, it may be on its way here: looked at again when more of it has come
            artifact = checkpoint.load(source.path)
            if not artifact.model.config.served:
                raise CheckpointError(f"{artifact.path}: {artifact.model.config.title} is measured and not served.")
            _fit_vocabulary(artifact, name)
            engine = self._built(artifact, name)
            try:
                _warm_up(engine, name)
            except BaseException:
                engine.close()
                raise
            self._seen[name] = source._replace(written=())
        except ConfigError as error:
            raise error.under("engine") from None
        except HFAError as error:
            self._wrong = _alone(error)
            if self._said.get(name) != str(error):
                log.warning("%s %s: %s", name, self._fate(name), error)
            self._said[name] = str(error)
            return None
        except Exception as error:
            self._seen.pop(name, None)  # what failed may be the machine, which is asked again
            if self._said.get(name) != str(error):
                log.exception("%s %s: loading it failed", name, self._fate(name))
            self._said[name] = str(error)
            self._wrong = _alone(error)
            return None
        self._loaded.add(name)
        size, device = engine.num_parameters, engine.load().device
        role = ", the default" if name == self._asked[0] else ""
        log.info("%s: %s parameters on %s%s, from %s", name, f"{size:,}", device, role, artifact.path)
        return Served(engine, artifact.tokenizer, artifact.path)

    def _built(self, artifact: checkpoint.Artifact, name: str) -> Engine:
        serves = name in self._loaded
        try:
            return self._engine.build(artifact.model, name, artifact.tokenizer.fingerprint(), fall_back=not serves)
        except torch.OutOfMemoryError:
            if not serves:
                raise
            raise CheckpointError(
                f"{artifact.path} has no room beside what serves; lower engine.state_budget_mib, or start again."
            ) from None

    def _fate(self, name: str) -> str:
        """What becomes of a model that could not be loaded."""
        return "goes on as it is" if name in self._loaded else "is not served from here"

    def _source(self, name: str) -> Source:
        path = checkpoint.resolve(self._specs().get(name, self._spec), architecture=name, root=self._root)
        sha256 = str(checkpoint.read_config(path)["weights"].get("sha256"))
        files = sorted((file.name, file.stat()) for file in path.iterdir())
        return Source(path, sha256, tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in files))

    def _specs(self) -> dict[str, str]:
        """Which artifact to load for which architecture: the folder of one artifact is of one architecture."""
        if self._spec in NEWEST:
            return dict.fromkeys(self._asked, self._spec)
        try:
            folder = checkpoint.resolve(self._spec, architecture=None, root=self._root)
            name = str(checkpoint.read_config(folder).get("architecture"))
        except HFAError:
            name = self._asked[0]  # loading it says what is wrong
        return {name: self._spec}


class Watcher:
    """Looks for newer artifacts on a thread of its own and puts them in the place of the old, request by request.

    Args:
        loader: knows what is loaded.
        service: whose models are replaced.
        interval_s: between two looks.
        drain_s: what the old model gets to finish its requests.
    """

    def __init__(self, loader: Loader, service: Service, *, interval_s: float, drain_s: float) -> None:
        self._loader, self._service = loader, service
        self._interval_s, self._drain_s = interval_s, drain_s
        self._stopping = threading.Event()
        self._old: Served | None = None  # ending its requests
        self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Look no more; an old model may finish what it does."""
        self._stopping.set()

    def end(self) -> None:
        """Cut short what an old model still does."""
        if (old := self._old) is not None:
            old.engine.close()
        self._thread.join(_JOIN_S)
        if self._thread.is_alive():
            log.warning("A newer artifact is still being loaded after %g s; it is left behind", _JOIN_S)

    def _watch(self) -> None:
        while not self._stopping.wait(self._interval_s):
            try:
                for name in self._loader.names():
                    if (fresh := self._loader.newer(name)) is not None:
                        self._replace(name, fresh)
            except HFAError as error:  # what ends a miner that starts is no reason to end one that serves
                log.warning("A newer artifact is passed over, the old one goes on: %s", error)
            except Exception:
                log.exception("Looking for a newer artifact failed; what is loaded goes on")

    def _replace(self, name: str, fresh: Served) -> None:
        if self._stopping.is_set():
            fresh.engine.close()
            return
        old = self._service.models.get(name)
        same = old is not None and old.tokenizer.fingerprint() == fresh.tokenizer.fingerprint()
        if old is not None and same:
            _move_sessions(old.engine, fresh.engine)
        self._old = self._service.swap(name, fresh)
        log.info("%s: new requests go to the weights from %s", name, fresh.path)
        if self._old is not None:
            until = time.monotonic() + self._drain_s
            while same and _move_sessions(self._old.engine, fresh.engine) and time.monotonic() < until:
                if self._stopping.wait(_MOVE_S):
                    break
            self._old.engine.close(max(0.0, until - time.monotonic()))
            fresh.engine.call(lambda sessions: sessions.arrive((), frozenset()))  # who has not come will not come
        self._old = None
        give_back()


def _alone(error: Exception) -> Exception:
    """An error that does not keep alive what it was met with, a model that is half loaded say."""
    error.__context__ = error.__cause__ = None
    return error.with_traceback(None)


def _move_sessions(old: Engine, fresh: Engine) -> int:
    """Let the idle sessions of an engine go on in another, from their tokens; how many are busy and will follow."""
    try:
        moved, awaited = old.call(Sessions.leave).result()
        fresh.call(lambda sessions: sessions.arrive(moved, awaited)).result()
    except RequestError:  # one of them is closing
        return 0
    return len(awaited)


def _warm_up(engine: Engine, name: str) -> None:
    """Answer once, so that kernels are compiled before anybody waits. Raises CheckpointError if that fails."""

    async def end() -> FinishEvent:
        request = GenerationRequest(tokens=(0,) * 8, max_tokens=2, sampling=Sampling())
        return [event async for event in engine.submit(request) if isinstance(event, FinishEvent)][-1]

    ended = asyncio.run(end())
    if ended.reason == "error":
        raise CheckpointError(f"{name} fails at its first answer ({ended.error}); train it again.")


def _fit_vocabulary(artifact: checkpoint.Artifact, name: str) -> None:
    """Leave out the ids that the tokenizer lacks. Raises CheckpointError if it has more than the model."""
    ids, known = artifact.model.config.vocab_size, artifact.tokenizer.vocab_size
    if ids < known:
        raise CheckpointError(
            f"{artifact.path}: the model has {ids} token ids and its tokenizer {known}; train it again."
        )
    if ids > known:
        log.info("%s: of its %s token ids the %s of its tokenizer are served", name, f"{ids:,}", f"{known:,}")
        artifact.model.keep_ids(known)
