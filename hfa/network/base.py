"""What a miner needs of a subnet: who it is, who may call it, and where it is found.

A request meets the network three times, each time before anything dearer is done::

    hotkey = network.screen(headers)     # 401: everything the headers alone can get wrong
    network.authorize(hotkey)            # 403: unregistered, no permit, too little stake; 503: no fresh view
    body = ...                           # 413: read with a cap
    caller = network.verify(headers, body, method=..., path=...)     # 401: the signature, and replays
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from hfa.config import Config, Name, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, config
from hfa.errors import ConfigError, NetworkError

_MAX_NETUID = 65535
_ADDRESS = re.compile("5[1-9A-HJ-NP-Za-km-z]{46,47}")  # ss58 with Bittensor's prefix, 42


class NotRegisteredError(NetworkError):
    """The miner's hotkey is not registered on the subnet; the sentence has the command that registers it."""


class Neuron(NamedTuple):
    """One hotkey, as the metagraph shows it."""

    uid: int | None  # None for a hotkey that is allowed without being registered
    hotkey: str  # ss58
    stake_tao: float
    validator_permit: bool
    endpoint: str | None  # "host:port" as published; None when nothing is served


class Caller(NamedTuple):
    """The sender of a verified request."""

    hotkey: str  # ss58
    nonce_ns: int  # unix time at which the request was signed


class Endpoint(NamedTuple):
    """Where a neuron is reached."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@config
class WalletConfig(Config):
    """Which hotkey signs: ``<path>/<name>/hotkeys/<hotkey>``. The coldkey is never opened."""

    name: Name
    hotkey: Name
    path: Name

    def check(self) -> None:
        for field, value in (("name", self.name), ("hotkey", self.hotkey)):
            if value in (".", "..") or "/" in value:
                raise ConfigError(field, value, "a name without a slash")


@config
class DendriteConfig(Config):
    """How a request of a v9 or v10 validator (the Dendrite of that SDK) is judged.

    Args:
        max_age_s: how old a signature may be besides the timeout that the request states.
        max_timeout_s: a longer stated timeout counts as this one.
        allowed_skew_s: how far ahead of our clock a signature may be.
        hash_fields: what the subnet's synapse lists as ``required_hash_fields``, in that order. The signature covers
            these fields and no others: with none, which is the old SDK's default, a body can be altered on its way.
    """

    max_age_s: PositiveFloat
    max_timeout_s: PositiveFloat
    allowed_skew_s: NonNegativeFloat
    hash_fields: tuple[Name, ...]


@config
class AuthConfig(Config):
    """How a signed request is judged.

    Args:
        max_age_s: how old a signature (btauth/1) may be.
        allowed_skew_s: how far ahead of our clock it may be.
        require_receiver: refuse requests that do not name this miner's hotkey as their receiver.
        nonce_dir: folder of the replay stores, shared by workers and kept across restarts.
        max_nonces: how many signatures a replay store remembers; what it had to forget is refused, not accepted.
        dendrite: how requests over the wire of SDK v9 and v10 are judged; null refuses them.
    """

    max_age_s: PositiveFloat
    allowed_skew_s: NonNegativeFloat
    require_receiver: bool
    nonce_dir: Name
    max_nonces: PositiveInt
    dendrite: DendriteConfig | None


@config
class NetworkConfig(Config):
    """What every network has; building the network opens no connection and reads no file but the hotkey's.

    Args:
        name: how the network is called in logs and in commands, e.g. ``local``.
        netuid: the subnet.
        wallet_path: folder of this network's wallets, for the entry points to interpolate.
        min_stake_tao: callers with less TAO stake are refused.
        require_validator_permit: callers without a validator permit are refused.
        allow: hotkeys that may ask without permit, stake or registration, whatever the chain does.
        deny: hotkeys that may not ask, whatever they have.
        sync_interval_s: seconds between two looks at the metagraph.
        retry_s: seconds before the first retry of a failed look; doubled each time, up to sync_interval_s.
        max_staleness_s: past this age of the last good look, callers are refused with 503.
        auth: how signatures are judged.
    """

    name: Name
    netuid: NonNegativeInt
    wallet_path: Name
    min_stake_tao: NonNegativeFloat
    require_validator_permit: bool
    allow: tuple[Name, ...]
    deny: tuple[Name, ...]
    sync_interval_s: PositiveFloat
    retry_s: PositiveFloat
    max_staleness_s: PositiveFloat
    auth: AuthConfig

    def check(self) -> None:
        if self.netuid > _MAX_NETUID:
            raise ConfigError("netuid", self.netuid, f"0 to {_MAX_NETUID}")
        for key, hotkeys in (("allow", self.allow), ("deny", self.deny)):
            for hotkey in hotkeys:
                if not _ADDRESS.fullmatch(hotkey):
                    raise ConfigError(key, hotkey, "the ss58 address of a hotkey", "a word that is none matches nobody")
        if self.max_staleness_s < self.sync_interval_s:
            expected = f"at least sync_interval_s={self.sync_interval_s:g}"
            raise ConfigError("max_staleness_s", self.max_staleness_s, expected)

    def build(self, wallet: WalletConfig) -> Network:
        """The network as seen by the hotkey in `wallet`. Raises NetworkError when there is no such key."""
        raise TypeError(f"{type(self).__name__} is a base; name a network's own config as _target_")


class Signer(Protocol):
    """A hotkey that signs requests."""

    hotkey: str  # ss58

    def sign(self, body: bytes, *, method: str, path: str, receiver: str | None) -> dict[str, str]:
        """The headers that authenticate one sending of `body`; a retry must be signed anew."""
        ...


class Wire(Protocol):
    """One way to sign requests, as the hotkey they are meant for sees it."""

    def screen(self, headers: Mapping[str, str]) -> str:
        """The hotkey the headers claim, once all is checked that needs no body.

        Args:
            headers: as received; a multi-dict whose ``items()`` repeats names is welcome, repeats are refused.

        Raises:
            RequestError: 401 for headers that are missing, malformed, stale, or meant for another receiver.
        """
        ...

    def verify(self, headers: Mapping[str, str], body: bytes, *, method: str, path: str) -> Caller:
        """The proven sender of a request.

        Args:
            headers: as received.
            body: the raw bytes, as received.
            method: the HTTP method.
            path: ``scope["raw_path"]`` decoded as latin-1, plus ``?query`` when there is one.

        Raises:
            RequestError: 401 for a bad signature or a replay, 503 when the replay store cannot be written.
        """
        ...


class Verifier(Wire, Protocol):
    """The judge of signed requests meant for one hotkey; itself the wire of btauth/1."""

    @property
    def dendrite(self) -> Wire | None:
        """The wire of validators on SDK v9 and v10; None where it is refused."""
        ...

    def open(self) -> None:
        """Make the replay stores ready. Raises NetworkError."""
        ...

    def close(self) -> None: ...


class Network(Wire, Protocol):
    """One subnet as a miner sees it. Coroutines belong to one event loop; the rest may be called from any thread.

    As a wire it is btauth/1.
    """

    name: str
    netuid: int

    @property
    def dendrite(self) -> Wire | None:
        """The wire of validators on SDK v9 and v10; None where it is refused."""
        ...

    @property
    def hotkey(self) -> str:
        """The miner's own hotkey, ss58."""
        ...

    @property
    def last_sync_age_s(self) -> float:
        """Seconds since the last good look at the metagraph; infinite before the first."""
        ...

    async def start(self) -> None:
        """Connect, check our registration, and keep the view fresh in the background until `close`.

        Raises:
            NotRegisteredError: our hotkey is not on the subnet; the sentence has the command that registers it.
            NetworkError: no such subnet, or a chain that cannot be reached.
        """
        ...

    async def sync(self) -> None:
        """Look at the metagraph now. Raises NetworkError; what was known before stays."""
        ...

    def endpoint(self, host: str, port: int) -> Endpoint:
        """Where validators would reach a server bound to `host` and `port`. Raises NetworkError when they could not."""
        ...

    async def serve(self, host: str, port: int) -> str:
        """Publish where we are reached, unless it is published already; tried again when the chain is away or says to
        wait, and given up when another process publishes another endpoint for our hotkey.

        Returns:
            ``host:port`` as validators will see it.

        Raises:
            NetworkError: an address that cannot be published, or a refusal that waiting does not change.
        """
        ...

    async def close(self) -> None:
        """Stop syncing and let go of connections and files. Idempotent."""
        ...

    def neuron(self, hotkey: str) -> Neuron | None:
        """The neuron of `hotkey`, or None; unknown hotkeys are ordinary."""
        ...

    def neurons(self) -> list[Neuron]:
        """All neurons by uid."""
        ...

    def authorize(self, hotkey: str) -> Neuron:
        """The neuron of a caller who may ask.

        Raises:
            RequestError: 403 for a hotkey denied, unregistered, without permit or with too little stake; 503 when the
                view of the metagraph is older than max_staleness_s.
        """
        ...
