"""Everything that needs the Bittensor SDK: hotkeys, signed requests (btauth/1), and a subnet on a real chain.

No other file imports bittensor. The coldkey is never opened: the only key handed to the SDK is the hotkey's.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import re
import shlex
import socket
import sqlite3
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import bittensor as bt
from bittensor import http_auth
from bittensor.keyfiles import KeyfileError, Keypair, WrongPasswordError
from bittensor.settings import resolve_endpoint

from hfa.config import Name, NonNegativeFloat, PositiveFloat, config
from hfa.errors import ConfigError, NetworkError, RequestError
from hfa.network.base import AuthConfig, Caller, Endpoint, NetworkConfig, Neuron, WalletConfig, Wire
from hfa.network.dendrite import DendriteWire
from hfa.network.member import ChainAwayError, Member
from hfa.network.nonces import NonceStore

log = logging.getLogger(__name__)

_PASSING = (bt.ErrorCode.RATE_LIMITED, bt.ErrorCode.TOO_EARLY, bt.ErrorCode.INTERNAL, bt.ErrorCode.UNKNOWN)
_UNPRICED = re.compile("fee could not be estimated|could not estimate fee")  # the SDK has no type for it
_MADE_UP = "sign the request with btauth/1 (bittensor.http_auth.sign)"
_REMEDY: dict[type[Exception], str] = {
    http_auth.MalformedAuth: _MADE_UP,
    http_auth.WrongReceiver: "sign it for the hotkey of this miner",
    http_auth.StaleRequest: "sign every sending anew, and check the clock",
    http_auth.BadSignature: "sign the method, the path with its query and the raw body exactly as sent",
    http_auth.ReplayedRequest: "sign every sending anew",
}


class HotkeySigner:
    """Signs requests with an sr25519 hotkey.

    Args:
        keypair: with its private half.
    """

    def __init__(self, keypair: Keypair) -> None:
        self.keypair = keypair
        self.hotkey = str(keypair.ss58_address)

    def sign(self, body: bytes, *, method: str, path: str, receiver: str | None) -> dict[str, str]:
        return http_auth.sign(self.keypair, method=method, path=path, body=body, receiver_ss58=receiver)


def hotkey_file(wallet: WalletConfig) -> Path:
    """Where the hotkey of `wallet` lies."""
    return Path(_wallet(wallet).hotkey_file.path)


def open_hotkey(wallet: WalletConfig, remedy: str) -> HotkeySigner:
    """Read a hotkey; the coldkey's file is not looked at.

    Args:
        wallet: which hotkey.
        remedy: what to do when there is none, for the sentence of the error.

    Raises:
        NetworkError: no such file, not a hotkey, only its public half, encrypted without a way to open it, or not
            sr25519.
    """
    path = hotkey_file(wallet)
    try:
        keypair = _wallet(wallet).get_hotkey()
    except FileNotFoundError:
        raise NetworkError(f"wallet.hotkey: there is no hotkey file {path}; {remedy}.") from None
    except EOFError:
        sentence = "is encrypted, and there is no terminal to ask for its password; decrypt it, or start in a terminal"
        raise NetworkError(f"wallet.hotkey: {path} {sentence}.") from None
    except (KeyfileError, WrongPasswordError, ValueError, OSError) as error:
        raise NetworkError(f"wallet.hotkey: {path} cannot be opened ({error}); {remedy}.") from error
    if keypair.crypto_type != bt.CRYPTO_SR25519:
        scheme = bt.format_crypto_type(keypair.crypto_type)
        raise NetworkError(f"wallet.hotkey: {path} holds an {scheme} key, expected sr25519; {remedy}.")
    try:
        keypair.sign(b"")
    except ValueError:
        raise NetworkError(f"wallet.hotkey: {path} holds the public half of a key alone; {remedy}.") from None
    return HotkeySigner(keypair)


def create_hotkey(wallet: WalletConfig) -> HotkeySigner:
    """Make a new hotkey, and no coldkey. Raises NetworkError when it cannot be written or is there already."""
    path = hotkey_file(wallet)
    if path.exists():
        raise NetworkError(f"wallet.hotkey: {path} is there already; choose another wallet.hotkey or use this one.")
    try:
        keypair = _wallet(wallet).create_new_hotkey(suppress=True).hotkey
    except (KeyfileError, ValueError, OSError) as error:
        raise NetworkError(f"wallet.path: {path} cannot be written ({error}); set wallet.path elsewhere.") from error
    return HotkeySigner(keypair)


def _wallet(wallet: WalletConfig) -> bt.Wallet:
    return bt.Wallet(name=wallet.name, hotkey=wallet.hotkey, path=wallet.path)


class HotkeyVerifier:
    """Judges btauth/1 requests meant for `hotkey`, by sr25519 only, each accepted once.

    Args:
        hotkey: the receiver, ss58.
        auth: windows, the receiver rule and the replay store.
    """

    def __init__(self, hotkey: str, auth: AuthConfig) -> None:
        self._hotkey, self._auth = hotkey, auth
        folder = Path(auth.nonce_dir).expanduser()
        self._nonces = NonceStore(folder / f"{hotkey}.sqlite3", auth.max_age_s + auth.allowed_skew_s, auth.max_nonces)
        self._dendrite: DendriteWire | None = None
        if auth.dendrite is not None:
            path = folder / f"{hotkey}.dendrite.sqlite3"
            self._dendrite = DendriteWire(hotkey, auth.dendrite, path, auth.max_nonces, _is_signed_by)

    @property
    def dendrite(self) -> Wire | None:
        return self._dendrite

    def open(self) -> None:
        for store in self._stores():
            store.open()

    def close(self) -> None:
        for store in self._stores():
            store.close()

    def screen(self, headers: Mapping[str, str]) -> str:
        try:
            return self._judge(headers, b"", method="", path="", nonces=_Anything()).hotkey_ss58
        except http_auth.BadSignature:  # the last check but one, and the only one that needs the body
            return _own_headers(headers)[http_auth.HEADER_HOTKEY.lower()]
        except (http_auth.AuthError, ValueError) as error:
            raise _refusal(error) from None

    def verify(self, headers: Mapping[str, str], body: bytes, *, method: str, path: str) -> Caller:
        try:
            caller = self._judge(headers, body, method=method, path=path, nonces=self._nonces)
        except (http_auth.AuthError, ValueError) as error:
            raise _refusal(error) from None
        except (sqlite3.Error, OSError) as error:
            log.error("The replay store %s failed: %s", self._nonces.path, error)
            raise RequestError(503, "Whether this request is a replay cannot be told just now; try later.") from error
        return Caller(caller.hotkey_ss58, caller.nonce_ns)

    def _stores(self) -> list[NonceStore]:
        return [self._nonces, *([self._dendrite.nonces] if self._dendrite else [])]

    def _judge(
        self, headers: Mapping[str, str], body: bytes, *, method: str, path: str, nonces: http_auth.NonceStore
    ) -> http_auth.Caller:
        return http_auth.verify(
            _own_headers(headers),
            body,
            method=method,
            path=path,
            self_hotkey_ss58=self._hotkey,
            max_age=self._auth.max_age_s,
            allowed_skew=self._auth.allowed_skew_s,
            require_receiver=self._auth.require_receiver,
            nonce_store=nonces,
        )


def _is_signed_by(hotkey: str, text: bytes, signature: bytes) -> bool:
    """Whether `signature` over `text` is `hotkey`'s, by sr25519. Raises ValueError for what cannot be either."""
    keypair = Keypair(ss58_address=hotkey, crypto_type=bt.CRYPTO_SR25519)
    return bool(keypair.verify(text, signature))


class _Anything:
    """A nonce store for looking at headers before their body: every nonce is new, none is kept."""

    def check_and_store(self, hotkey_ss58: str, nonce_ns: int) -> bool:
        return True


def _own_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The protocol's headers in lower case, each given once, and of an sr25519 key."""
    own: dict[str, str] = {}
    for name, value in headers.items():
        name = name.lower()
        if not name.startswith("x-bittensor-"):
            continue
        if name in own:
            raise http_auth.MalformedAuth(f"{name} is given twice")
        own[name] = value
    scheme = own.get(http_auth.HEADER_CRYPTO.lower(), "sr25519")
    if bt.parse_crypto_type(scheme) != bt.CRYPTO_SR25519:
        raise http_auth.MalformedAuth("only sr25519 keys are accepted")
    return own


def _refusal(error: Exception) -> RequestError:
    if not isinstance(error, http_auth.AuthError):  # a header that is no text, number or key at all
        return RequestError(401, f"A signature header is malformed; {_MADE_UP}.")
    what = str(error)
    return RequestError(401, f"{what[:1].upper()}{what[1:]}; {_REMEDY[type(error)]}.")


@config
class BittensorNetworkConfig(NetworkConfig):
    """A subnet on a real chain.

    Args:
        chain: ``test``, ``finney``, or any ``ws://`` or ``wss://`` endpoint.
        external_ip: the literal address validators reach us by; null takes the one the server listens on, and where
            that is all of them, the one this machine's route to the Internet begins at, if it is a public one.
        external_port: the port validators reach us by; null takes the server's own. A hotkey has one endpoint: several
            miners of one hotkey need one, that of what shares the requests out among them.
        certificate: published with the endpoint for peers that speak TLS: ``0x``, one byte for the algorithm, up to 64
            of a public key, in hex; null publishes none. What the server speaks is set by ``server.tls_certificate``.
        rpc_timeout_s: how long one look at the chain may take.
        publish_timeout_s: how long publishing an endpoint may take, up to its finalization.
        max_fee_tao: publishing at a dearer transaction fee is refused; nothing else can cost anything.
    """

    chain: Name
    external_ip: str | None
    external_port: int | None
    certificate: str | None
    rpc_timeout_s: PositiveFloat
    publish_timeout_s: PositiveFloat
    max_fee_tao: NonNegativeFloat

    def check(self) -> None:
        NetworkConfig.check(self)
        try:
            resolve_endpoint(self.chain)
        except ValueError:
            raise ConfigError("chain", self.chain, "test, finney, or a ws:// or wss:// endpoint") from None
        if self.external_ip is not None:
            _literal("external_ip", self.external_ip)
        if self.external_port is not None and not 0 < self.external_port < 2**16:
            raise ConfigError("external_port", self.external_port, "a port from 1 to 65535, or null")
        if self.certificate is not None and not re.fullmatch(r"0x([0-9a-fA-F]{2}){2,65}", self.certificate):
            expected = "0x and 2 to 65 bytes in hex (an algorithm and a public key), or null"
            raise ConfigError("certificate", self.certificate, expected)

    def build(self, wallet: WalletConfig) -> BittensorNetwork:
        flags = f"-w {wallet.name} -H {wallet.hotkey} --wallet-path {wallet.path}"
        signer = open_hotkey(wallet, f"make one with `btcli wallet new-hotkey {flags}` or copy yours there")
        return BittensorNetwork(self, wallet, signer, HotkeyVerifier(signer.hotkey, self.auth))


class BittensorNetwork(Member):
    """A subnet seen through one long-lived connection, by which the endpoint is published and nothing else is changed.

    Args:
        config: the chain and the thresholds.
        wallet: named in the command that registers.
        signer: our hotkey.
        verifier: judges requests to it.
        substrate: another way to the chain than a connection to ``config.chain``.
    """

    def __init__(
        self,
        config: BittensorNetworkConfig,
        wallet: WalletConfig,
        signer: HotkeySigner,
        verifier: HotkeyVerifier,
        substrate: bt.Substrate | None = None,
    ) -> None:
        super().__init__(config, signer.hotkey, verifier)
        self._chain, self._wallet, self._signer, self._substrate = config, wallet, signer, substrate
        self._is_certified = False  # whether the chain was seen to show our certificate
        self._client: bt.Client | None = None
        self._connecting: asyncio.Task[bt.Client] | None = None

    async def _look(self) -> list[Neuron]:
        client = await self._connected()
        async with self._answering("metagraph", self._chain.rpc_timeout_s):
            metagraph = await client.subnets.metagraph(self.netuid, commitments=False)
        if metagraph is None:
            listing = f"`btcli subnets list --network {self._chain.chain}` shows those there are"
            raise NetworkError(f"network.netuid: there is no subnet {self.netuid} on {self._chain.chain}; {listing}.")
        return [
            Neuron(neuron.uid, neuron.hotkey, neuron.tao_stake.tao, neuron.validator_permit, neuron.axon)
            for neuron in metagraph.neurons
        ]

    def _reachable(self, host: str, port: int) -> Endpoint:
        remedy = "set network.external_ip to the address validators reach this machine by"
        try:
            address = ipaddress.ip_address(self._chain.external_ip or host)
        except ValueError:
            raise NetworkError(f"network.external_ip: {host!r} is no literal address; {remedy}.") from None
        if address.is_unspecified and self._chain.external_ip is None:
            own = _outgoing(socket.AF_INET if address.version == 4 else socket.AF_INET6)
            if own is None or not ipaddress.ip_address(own).is_global:
                what = f"this machine calls itself {own}, which only its own network reaches" if own else "no value yet"
                raise NetworkError(f"network.external_ip: {what}; {remedy}.")
            address = ipaddress.ip_address(own)
        if address.is_unspecified or address.is_loopback:
            raise NetworkError(f"network.external_ip: {address} cannot be reached from outside; {remedy}.")
        if address.version == 6 and host == "0.0.0.0":
            log.warning("network.external_ip is IPv6 and server.host=0.0.0.0 is not; is it meant to be server.host=::?")
        return Endpoint(str(address), self._chain.external_port or port)

    async def _publish(self, endpoint: Endpoint) -> None:
        client = await self._connected()
        where = {"netuid": self.netuid, "ip": endpoint.host, "port": endpoint.port}
        certificate = self._chain.certificate
        intent = bt.ServeAxon(**where) if certificate is None else bt.ServeAxonTls(**where, certificate=certificate)
        if not ipaddress.ip_address(endpoint.host).is_global:
            log.warning("The published address %s is not a public one: only its own network reaches it", endpoint.host)
        async with self._answering("publishing our endpoint", self._chain.publish_timeout_s):
            try:
                result = await client.execute(intent, self._signer.keypair)
            except bt.PolicyError as error:
                if _UNPRICED.search(str(error)):  # which is the chain's trouble, and no dear fee
                    raise
                raise NetworkError(f"network.max_fee_tao: {endpoint} was not published ({error}).") from None
        if result.success:
            return
        failure = result.error or bt.ChainError(result.message)
        what = f"{endpoint} was not published on netuid {self.netuid}"
        sentence = f"{what}: {failure.message.rstrip('.')}; {failure.remediation}."
        raise NetworkError(sentence) if _is_final(failure) else ChainAwayError(sentence)

    async def _is_complete(self) -> bool:
        if self._chain.certificate is None or self._is_certified:
            return True
        wanted = bytes.fromhex(self._chain.certificate.removeprefix("0x"))
        client = await self._connected()
        async with self._answering("our certificate", self._chain.rpc_timeout_s):
            try:
                shown = await client.query(("SubtensorModule", "NeuronCertificates"), [self.netuid, self.hotkey])
                self._is_certified = _certificate(shown) == wanted
            except (ValueError, KeyError, TypeError) as error:  # a runtime with other types than ours
                log.warning("The certificate that the chain shows cannot be read (%s); it is taken for ours", error)
                self._is_certified = True
        return self._is_certified

    def _unregistered(self) -> str:
        words = ["btcli", "subnets", "register", "--netuid", str(self.netuid), "--network", self._chain.chain]
        words += ["-w", self._wallet.name, "-H", self._wallet.hotkey, "--wallet-path", self._wallet.path]
        who = f"Hotkey {self.hotkey} is not registered on netuid {self.netuid} of {self._chain.chain}"
        return f"{who}; register it (this spends TAO and needs the coldkey) with `{shlex.join(words)}`."

    async def _disconnect(self) -> None:
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            connecting.cancel()
            for connected in await asyncio.gather(connecting, return_exceptions=True):
                if isinstance(connected, bt.Client):
                    await connected.close()
        await self._drop()

    async def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _connected(self) -> bt.Client:
        if self._client is None:
            if self._connecting is None:
                self._connecting = asyncio.create_task(self._connect())
            try:
                async with self._answering("connection", self._chain.rpc_timeout_s):
                    # The SDK leaves a socket behind when its connecting is cancelled: wait for it next time instead.
                    self._client = await asyncio.shield(self._connecting)
            finally:
                if self._connecting is not None and self._connecting.done():
                    self._connecting = None
        return self._client

    async def _connect(self) -> bt.Client:
        policy = bt.Policy(max_spend_tao=0, max_fee_tao=self._chain.max_fee_tao, allowed_netuids=[self.netuid])
        client = bt.Client(self._chain.chain, policy=policy, substrate=self._substrate)
        await client.connect()
        return client

    @contextlib.asynccontextmanager
    async def _answering(self, what: str, timeout_s: float) -> AsyncIterator[None]:
        """Turn what a chain can do to us into ChainAwayError; a connection that failed is opened anew next time."""
        try:
            async with asyncio.timeout(timeout_s):
                yield
        except (bt.BittensorError, OSError, TimeoutError) as error:
            if not isinstance(error, bt.ChainError):
                await self._drop()
            cause = f"no answer within {timeout_s:g} s" if isinstance(error, TimeoutError) else str(error).rstrip(".")
            pause_s = _pause_s(getattr(error, "retry_after", None), self._chain.max_staleness_s)
            sentence = f"{self._chain.chain}: {what} failed ({cause}); is the chain reachable?"
            raise ChainAwayError(sentence, pause_s) from error


def _is_final(failure: bt.ChainError) -> bool:
    """Whether trying again is of no use: what the chain's own rules refuse, and not what became of the transaction."""
    if failure.code is bt.ErrorCode.INSUFFICIENT_BALANCE:
        return True
    return failure.name is not None and failure.code not in _PASSING


def _certificate(shown: object) -> bytes | None:
    """The bytes of a certificate as the chain keeps it; None for none."""
    if not isinstance(shown, Mapping):
        return None
    key = shown["public_key"]
    key = bytes.fromhex(key.removeprefix("0x")) if isinstance(key, str) else bytes(key)
    return bytes([int(shown["algorithm"])]) + key


def _outgoing(family: socket.AddressFamily) -> str | None:
    """The address that this machine's route to the Internet begins at; nothing is sent."""
    there = "1.1.1.1" if family is socket.AF_INET else "2606:4700:4700::1111"
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((there, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return None


def _literal(key: str, address: str) -> None:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        raise ConfigError(key, address, "a literal IPv4 or IPv6 address, or null") from None


def _pause_s(retry_after: str | None, at_most_s: float) -> float:
    """The pause an endpoint asked for, as far as it is a number of seconds that we can live with."""
    try:
        return min(max(float(retry_after or 0.0), 0.0), at_most_s)
    except ValueError:
        return 0.0
