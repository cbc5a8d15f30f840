"""The wire of validators on Bittensor v9 and v10: what their Dendrite signs, and what it does not.

    POST /InfiniteContextSynapse
    name: InfiniteContextSynapse · timeout: 12.0 · computed_body_hash: a7ff..
    bt_header_axon_hotkey: <miner> · bt_header_dendrite_{hotkey,uuid,nonce,signature,version,ip}: ..

    signed text   <nonce>.<dendrite hotkey>.<axon hotkey>.<uuid>.<body hash>
    body hash     h(h(str(field 1)) h(str(field 2)) ..), h being SHA3-256 in hex

The nonce is the time of signing in nanoseconds. The old server wants it newer than any before of the same uuid; here
each is accepted once, in any order, so that a validator that asks several things at a time is not refused.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from hfa.errors import RequestError
from hfa.network.base import Caller, DendriteConfig
from hfa.network.nonces import NonceStore

log = logging.getLogger(__name__)

_NAMES = ("name", "timeout", "computed_body_hash")
_PREFIX = "bt_header_"
_MAX_FIELD = 128  # characters; every field is an address, a number, a hash or a uuid
_MAX_SIGNATURE = 130  # 64 bytes in hex, and 0x

CheckSignature = Callable[[str, bytes, bytes], bool]  # hotkey, signed text, signature


class DendriteHeaders(NamedTuple):
    """The fields that are signed, and the ones needed to judge them."""

    hotkey: str
    axon_hotkey: str
    uuid: str
    nonce_ns: int
    body_hash: str
    signature: bytes
    timeout_s: float

    @classmethod
    def read(cls, headers: Mapping[str, str]) -> DendriteHeaders:
        """The fields of a request. Raises RequestError 401 for one that is missing, repeated or malformed."""
        own = _own(headers)
        signature = _field(own, "bt_header_dendrite_signature", _MAX_SIGNATURE)
        nonce, timeout = _field(own, "bt_header_dendrite_nonce"), _field(own, "timeout")
        try:
            nonce_ns, timeout_s = int(nonce), float(timeout)
            raw = bytes.fromhex(signature.removeprefix("0x"))
            if not (0 < nonce_ns < 2**63 and 0 <= timeout_s < math.inf and raw):
                raise ValueError(nonce, timeout)
        except ValueError:
            raise RequestError(401, "The nonce, the timeout or the signature is malformed; use a Dendrite.") from None
        return cls(
            hotkey=_field(own, "bt_header_dendrite_hotkey"),
            axon_hotkey=_field(own, "bt_header_axon_hotkey"),
            uuid=_field(own, "bt_header_dendrite_uuid"),
            nonce_ns=nonce_ns,
            body_hash=_field(own, "computed_body_hash"),
            signature=raw,
            timeout_s=timeout_s,
        )

    def signed_text(self, receiver: str) -> bytes:
        """What the Dendrite signed if it meant `receiver`."""
        return f"{self.nonce_ns}.{self.hotkey}.{receiver}.{self.uuid}.{self.body_hash}".encode()


def body_hash(values: Iterable[object]) -> str:
    """The hash of a body, by the values of its hash fields; of no fields, that of nothing."""
    return _hash("".join(_hash(str(value)) for value in values))


class DendriteWire:
    """Judges requests of a v9 or v10 Dendrite meant for `hotkey`, each accepted once.

    Args:
        hotkey: the receiver, ss58.
        config: windows and hash fields.
        path: the replay store.
        max_nonces: signatures it remembers.
        check: whether a signature over a text is of a hotkey, by sr25519.
    """

    def __init__(self, hotkey: str, config: DendriteConfig, path: Path, max_nonces: int, check: CheckSignature) -> None:
        self._hotkey, self._config, self._check = hotkey, config, check
        self.nonces = NonceStore(path, config.max_age_s + config.max_timeout_s + config.allowed_skew_s, max_nonces)

    def screen(self, headers: Mapping[str, str]) -> str:
        return self._read(headers).hotkey

    def verify(self, headers: Mapping[str, str], body: bytes, *, method: str, path: str) -> Caller:
        own = self._read(headers)
        if self._config.hash_fields and own.body_hash != body_hash(_values(body, self._config.hash_fields)):
            raise RequestError(401, "The body is not the one that was signed; sign what is sent.")
        try:
            genuine = self._check(own.hotkey, own.signed_text(self._hotkey), own.signature)
        except ValueError:
            genuine = False  # an address that is none, a signature of another length
        if not genuine:
            raise RequestError(401, "The signature does not verify against the claimed hotkey; use a Dendrite.")
        try:
            fresh = self.nonces.check_and_store(f"{own.hotkey}:{own.uuid}", own.nonce_ns)
        except (sqlite3.Error, OSError) as error:
            log.error("The replay store %s failed: %s", self.nonces.path, error)
            raise RequestError(503, "Whether this request is a replay cannot be told just now; try later.") from error
        if not fresh:
            raise RequestError(401, "This nonce was already accepted from this hotkey; sign every sending anew.")
        return Caller(own.hotkey, own.nonce_ns)

    def _read(self, headers: Mapping[str, str]) -> DendriteHeaders:
        own, config = DendriteHeaders.read(headers), self._config
        if own.axon_hotkey != self._hotkey:
            raise RequestError(401, "The request was signed for another miner; sign it for the hotkey of this one.")
        age_s = (time.time_ns() - own.nonce_ns) / 1e9
        if age_s > config.max_age_s + min(own.timeout_s, config.max_timeout_s):
            raise RequestError(401, f"The nonce is {age_s:.1f} s old; sign every sending anew, and check the clock.")
        if -age_s > config.allowed_skew_s:
            raise RequestError(401, f"The nonce is {-age_s:.1f} s in the future; check the clock.")
        return own


def _own(headers: Mapping[str, str]) -> dict[str, str]:
    """The wire's headers in lower case, each given once."""
    own: dict[str, str] = {}
    for name, value in headers.items():
        name = name.lower()
        if name in _NAMES or name.startswith(_PREFIX):
            if name in own:
                raise RequestError(401, f"{name[:40]} is given twice; send each header once.")
            own[name] = value
    return own


def _field(own: Mapping[str, str], name: str, longest: int = _MAX_FIELD) -> str:
    value = own.get(name, "")
    if not value or len(value) > longest:
        raise RequestError(401, f"{name}: {'missing' if not value else 'too long'}; ask with a Dendrite of v9 or v10.")
    return value


def _values(body: bytes, fields: tuple[str, ...]) -> list[object]:
    try:
        content = json.loads(body)
        return [content[field] for field in fields]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise RequestError(401, f"The signed fields ({', '.join(fields)}) are not in the body.") from None


def _hash(text: str) -> str:
    return hashlib.sha3_256(text.encode(errors="surrogatepass")).hexdigest()  # which JSON can escape, and nobody signs
