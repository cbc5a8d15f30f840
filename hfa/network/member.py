"""One hotkey's view of one subnet, kept fresh: what every network shares, whatever its chain is."""

from __future__ import annotations

import abc
import asyncio
import logging
import math
import time
from collections.abc import Mapping

from hfa.errors import NetworkError, PassingError, RequestError
from hfa.network.base import Caller, Endpoint, NetworkConfig, Neuron, NotRegisteredError, Verifier, Wire

log = logging.getLogger(__name__)


class ChainAwayError(NetworkError, PassingError):
    """A chain that did not answer, or asked to be left alone for `retry_after_s` seconds."""

    def __init__(self, sentence: str, retry_after_s: float = 0.0) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(sentence)


class Member(abc.ABC):
    """A :class:`hfa.network.base.Network` but for what differs between chains.

    The last good look at the metagraph is kept whatever happens to the chain; callers are judged by it until it is
    older than ``max_staleness_s``.

    Args:
        config: thresholds and intervals.
        hotkey: our own, ss58.
        verifier: judges the signatures of requests to `hotkey`.
    """

    def __init__(self, config: NetworkConfig, hotkey: str, verifier: Verifier) -> None:
        self.name, self.netuid = config.name, config.netuid
        self._config, self._hotkey, self._verifier = config, hotkey, verifier
        self._neurons: dict[str, Neuron] = {}
        self._looked_at = -math.inf
        self._published: Endpoint | None = None  # what we want the metagraph to show; None until `serve`
        self._stale: str | None = None  # what it showed before, which a look may still show
        self._syncing: asyncio.Task[None] | None = None

    @property
    def hotkey(self) -> str:
        return self._hotkey

    @property
    def dendrite(self) -> Wire | None:
        return self._verifier.dendrite

    @property
    def last_sync_age_s(self) -> float:
        return time.monotonic() - self._looked_at

    async def start(self) -> None:
        self._verifier.open()
        try:
            await self.sync()
            if self.neuron(self.hotkey) is None:
                raise NotRegisteredError(self._unregistered())
        except BaseException:
            await self.close()
            raise
        self._syncing = self._in_sync()

    async def sync(self) -> None:
        self._keep(await self._look())

    def endpoint(self, host: str, port: int) -> Endpoint:
        return self._reachable(host, port)

    async def serve(self, host: str, port: int) -> str:
        await self._stop_syncing()  # a look that is under way would publish as well
        self._published = self._reachable(host, port)
        me = self.neuron(self.hotkey)
        self._stale = None if me is None else me.endpoint
        published = await self._publish_once()
        self._syncing = self._in_sync(failures=0 if published else 1)  # to try again soon, and not with the next look
        return str(self._published)

    async def close(self) -> None:
        await self._stop_syncing()
        await self._disconnect()
        self._verifier.close()

    def neuron(self, hotkey: str) -> Neuron | None:
        return self._neurons.get(hotkey)

    def neurons(self) -> list[Neuron]:
        return list(self._neurons.values())  # which chains list by uid

    def screen(self, headers: Mapping[str, str]) -> str:
        return self._verifier.screen(headers)

    def verify(self, headers: Mapping[str, str], body: bytes, *, method: str, path: str) -> Caller:
        return self._verifier.verify(headers, body, method=method, path=path)

    def authorize(self, hotkey: str) -> Neuron:
        neuron, config = self.neuron(hotkey), self._config
        if hotkey in config.deny:
            raise RequestError(403, f"Hotkey {hotkey} is denied by this miner.")
        if hotkey in config.allow:
            return neuron or Neuron(None, hotkey, 0.0, False, None)
        if self.last_sync_age_s > config.max_staleness_s:
            age = f"{self.last_sync_age_s:.0f} s ago, more than the {config.max_staleness_s:g} s allowed"
            raise RequestError(503, f"The metagraph was last seen {age}; try later.")
        if neuron is None:
            raise RequestError(403, f"Hotkey {hotkey} is not registered on netuid {self.netuid} of {self.name}.")
        if config.require_validator_permit and not neuron.validator_permit:
            raise RequestError(403, f"Uid {neuron.uid} has no validator permit on netuid {self.netuid}.")
        if neuron.stake_tao < config.min_stake_tao:
            needed = f"this miner answers from {config.min_stake_tao:g}"
            raise RequestError(403, f"Uid {neuron.uid} has {neuron.stake_tao:g} TAO at stake; {needed}.")
        return neuron

    @abc.abstractmethod
    async def _look(self) -> list[Neuron]:
        """All neurons now. Raises NetworkError, and nothing else for what a chain can do."""

    @abc.abstractmethod
    def _reachable(self, host: str, port: int) -> Endpoint:
        """What to publish for a server bound to `host` and `port`. Raises NetworkError."""

    @abc.abstractmethod
    async def _publish(self, endpoint: Endpoint) -> None:
        """Have the metagraph show `endpoint` for our hotkey. Raises NetworkError; ChainAwayError when worth a retry."""

    @abc.abstractmethod
    def _unregistered(self) -> str:
        """One sentence that says how to register our hotkey."""

    @abc.abstractmethod
    async def _disconnect(self) -> None:
        """Let go of the connection, if there is one. Idempotent."""

    def _keep(self, neurons: list[Neuron]) -> None:
        was, self._neurons = self._neurons, {neuron.hotkey: neuron for neuron in neurons}
        self._looked_at = time.monotonic()
        if (me := self.neuron(self.hotkey)) is not None and me.endpoint == str(self._published):
            self._stale = None  # what is shown from now on is newer than ours
        if self.hotkey in was and self.hotkey not in self._neurons:
            log.error("Deregistered: %s", self._unregistered())

    async def _publish_once(self) -> bool:
        """Publish our endpoint unless the metagraph shows it; False when that is to be tried again."""
        me = self.neuron(self.hotkey)
        if self._published is None or me is None or self._gives_way(me):
            return True
        try:
            if me.endpoint == str(self._published) and await self._is_complete():
                return True
            await self._publish(self._published)
        except ChainAwayError as error:
            log.warning("Endpoint %s is not published yet: %s", self._published, error)
            return False
        log.info("Published %s as the endpoint of uid %s on netuid %d", self._published, me.uid, self.netuid)
        self._neurons = {**self._neurons, self.hotkey: me._replace(endpoint=str(self._published))}
        return True

    def _gives_way(self, me: Neuron) -> bool:
        """Whether another process published an endpoint for our hotkey after us: the newest stays, and none fights."""
        if me.endpoint in (None, str(self._published), self._stale):
            return False
        log.error(
            "Another miner of this hotkey published %s over %s: stop one, or set network.external_port of both to the "
            "port of what shares requests out between them",
            me.endpoint,
            self._published,
        )
        self._published = None
        return True

    async def _is_complete(self) -> bool:
        """Whether what goes with our endpoint is published too. Raises ChainAwayError."""
        return True

    def _in_sync(self, failures: int = 0) -> asyncio.Task[None]:
        return asyncio.create_task(self._keep_in_sync(failures), name=f"sync-{self.name}-{self.netuid}")

    async def _stop_syncing(self) -> None:
        task, self._syncing = self._syncing, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _keep_in_sync(self, failures: int) -> None:
        asked_pause_s = 0.0
        while True:
            await asyncio.sleep(max(self._pause_s(failures), asked_pause_s))
            asked_pause_s = 0.0
            try:
                await self.sync()
                failures = 0 if await self._publish_once() else failures + 1
            except NetworkError as error:
                failures += 1
                asked_pause_s = error.retry_after_s if isinstance(error, ChainAwayError) else 0.0
                log.warning("%s Going on with the metagraph of %.0f s ago.", error, self.last_sync_age_s)
            except Exception:
                failures += 1
                log.exception("Sync with netuid %d of %s failed; going on with what is known", self.netuid, self.name)

    def _pause_s(self, failures: int) -> float:
        """Until the next look: the interval, or after failures a doubling pause up to it."""
        config = self._config
        if failures == 0:
            return config.sync_interval_s
        return min(config.sync_interval_s, config.retry_s * 2.0 ** min(failures - 1, 30))
