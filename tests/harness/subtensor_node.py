"""A loopback node of a Bittensor chain, as far as a miner's SDK client asks for it, with the runtime's real metadata.

    with SubtensorNode(fixtures) as node:
        node.register(hotkey, tao=1000.0, permit=True)
        ... bt.Subtensor(node.url) ...

JSON-RPC over a real WebSocket: metagraph, fees, nonces, signed extrinsics with their events, block hashes. SCALE is
encoded and decoded by the SDK's own codec. Signatures of extrinsics are not verified, and calls other than those that
serve an axon fail.

The metadata is that of runtime 461, from the SDK's source distribution (Apache-2.0), which `fixtures` downloads.
"""

from __future__ import annotations

import asyncio
import hashlib
import http
import ipaddress
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import filelock
from bittensor._transport.codec import RuntimeCodec, strip_option_opaque_metadata
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

VERSION = "11.3.0"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "hfa" / f"bittensor-{VERSION}-fixtures"
SERVING_RATE_LIMIT = 50  # blocks
_NAMES = ("golden.json", "shape_corpus/corpus.json")
_RAO = 10**9
_LISTS = (  # of the metagraph, one number a uid
    "pruning_score",
    "last_update",
    "emission",
    "dividends",
    "incentives",
    "consensus",
    "trust",
    "rank",
    "block_at_registration",
    "alpha_stake",
    "collateral_earned",
    "collateral_locked",
    "collateral_min",
)
_PAIRS = ("tao_dividends_per_hotkey", "alpha_dividends_per_hotkey")


def fixtures() -> Path:
    """The folder with the SDK's recorded metadata; downloaded once. Raises CalledProcessError without a network."""
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{CACHE}.lock"):
        if not CACHE.exists():
            with tempfile.TemporaryDirectory(dir=CACHE.parent) as folder:
                words = ["download", "--quiet", "--no-deps", "--no-binary", "bittensor", f"bittensor=={VERSION}"]
                subprocess.run([sys.executable, "-m", "pip", *words, "-d", folder], check=True, timeout=300)
                fresh = Path(folder) / "fixtures"
                fresh.mkdir()
                with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as archive:
                    for name in _NAMES:
                        member = archive.extractfile(f"bittensor-{VERSION}/tests/fixtures/{name}")
                        assert member is not None
                        (fresh / Path(name).name).write_bytes(member.read())
                shutil.move(fresh, CACHE)
    return CACHE


class SubtensorNode:
    """One chain with one subnet; its state outlives the server, which can be killed and started again.

    What a chain can do to a client is set by attributes:

    - ``delay_s``: before every answer.
    - ``http_refusal``: (status, headers) for every handshake; None accepts.
    - ``rpc_refusal``: the JSON-RPC error object for every request; None answers.
    - ``spec_version``: of the runtime, at once; its metadata stays that of 461, under the new number.
    - ``fee_rao``: of any extrinsic.
    """

    def __init__(self, folder: Path, netuid: int = 439) -> None:
        golden = json.loads((folder / "golden.json").read_text())
        self._metadata = golden["metadata"]["v15_hex"]
        raw = strip_option_opaque_metadata(bytes.fromhex(self._metadata[2:]))
        assert raw is not None
        self.codec = RuntimeCodec(raw, spec_version=461, transaction_version=1)
        self._output = self.codec.runtime_api_map["SubnetInfoRuntimeApi"]["get_metagraph"]["output"]
        self._shape = _sample(folder, int(self._output.rpartition("::")[2]))
        self._errors = {
            error.name: error.index
            for pallet in self.codec.metadata_ir().pallets
            if pallet.name == "SubtensorModule"
            for error in pallet.errors
        }
        self.netuid = netuid
        self.neurons: list[dict[str, Any]] = []
        self.block = 1000
        self.spec_version = 461
        self.delay_s, self.fee_rao = 0.0, 0
        self.http_refusal: tuple[int, dict[str, str]] | None = None
        self.rpc_refusal: dict[str, Any] | None = None
        self.requests: list[str] = []  # methods, in order of arrival
        self.metadata_reads = 0
        self.extrinsics: list[dict[str, Any]] = []  # calls, as decoded
        self.connections = 0  # opened so far
        self.open = 0  # now
        self._blocks: dict[int, tuple[list[str], bytes]] = {}  # extrinsics and encoded events
        self._served_at: dict[str, int] = {}
        self._nonces: dict[str, int] = {}
        self._port = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._server: Server | None = None
        self._cut = asyncio.Event()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self._port}"

    def register(self, hotkey: str, *, tao: float = 0.0, permit: bool = False) -> int:
        """Give `hotkey` the next uid."""
        self.neurons.append({"hotkey": hotkey, "tao": tao, "permit": permit, "axon": None})
        return len(self.neurons) - 1

    def deregister(self, hotkey: str) -> None:
        """Replace `hotkey` by another, as a chain does with the lowest ranked."""
        other = "5C4hrfjw9DjXZTzV3MwzrrAr9P1MJhSrvWGWqi1eSuyUpnhM"
        for neuron in self.neurons:
            if neuron["hotkey"] == hotkey:
                neuron.update(hotkey=other, axon=None)

    def start(self) -> None:
        """Listen; on the same port as before, if there was one."""
        ready = threading.Event()

        async def listen() -> None:
            self._loop = asyncio.get_running_loop()
            self._server = await serve(self._talk, "127.0.0.1", self._port, process_request=self._handshake)
            self._port = next(iter(self._server.sockets)).getsockname()[1]
            self._cut = asyncio.Event()
            ready.set()
            await self._cut.wait()
            for connection in self._server.connections:
                connection.transport.abort()
            self._server.close()  # and asyncio.run cancels whoever is still answering

        self._thread = threading.Thread(target=asyncio.run, args=(listen(),), name="node", daemon=True)
        self._thread.start()
        assert ready.wait(10)

    def kill(self) -> None:
        """Cut every connection without a goodbye and stop listening."""
        if self._thread is None or self._loop is None:
            return
        self._loop.call_soon_threadsafe(self._cut.set)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _handshake(self, connection: ServerConnection, request: Request) -> Response | None:
        if self.http_refusal is None:
            return None
        status, headers = self.http_refusal
        response = connection.respond(http.HTTPStatus(status), "go away")
        for name, value in headers.items():
            response.headers[name] = value
        return response

    async def _talk(self, connection: ServerConnection) -> None:
        self.connections += 1
        self.open += 1
        try:
            while True:
                frame = await connection.recv()
                asked = json.loads(frame)
                self.requests.append(asked["method"])
                await asyncio.sleep(self.delay_s)
                for reply in self._replies(asked):
                    await connection.send(json.dumps({"jsonrpc": "2.0", **reply}))
        except ConnectionClosed:
            return
        finally:
            self.open -= 1

    def _replies(self, asked: dict[str, Any]) -> list[dict[str, Any]]:
        if self.rpc_refusal is not None:
            return [{"id": asked["id"], "error": self.rpc_refusal}]
        method, params = asked["method"], asked.get("params") or []
        if method == "author_submitAndWatchExtrinsic":
            block = self._include(params[0])
            update = {"subscription": "w", "result": {"finalized": _hash(block)}}
            return [{"id": asked["id"], "result": "w"}, {"method": "author_extrinsicUpdate", "params": update}]
        handler: Callable[..., Any] | None = getattr(self, f"_{method}", None)
        if handler is None:
            return [{"id": asked["id"], "error": {"code": -32601, "message": f"Method not found: {method}"}}]
        return [{"id": asked["id"], "result": handler(*params)}]

    def _chain_getBlockHash(self, number: int | None = None) -> str:
        return _hash(self.block if number is None else number)

    def _chain_getHead(self) -> str:
        return _hash(self.block)

    def _chain_getFinalizedHead(self) -> str:
        return _hash(self.block)

    def _chain_getHeader(self, block_hash: str | None = None) -> dict[str, Any]:
        number = self.block if block_hash is None else int(block_hash[-8:], 16)
        root = "0x" + "00" * 32
        return {"parentHash": _hash(number - 1), "number": hex(number), "stateRoot": root, "extrinsicsRoot": root,
                "digest": {"logs": []}}  # fmt: skip

    def _chain_getBlock(self, block_hash: str | None = None) -> dict[str, Any]:
        header = self._chain_getHeader(block_hash)
        extrinsics = self._blocks.get(int(header["number"], 16), ([], b""))[0]
        return {"block": {"header": header, "extrinsics": extrinsics}}

    def _state_getRuntimeVersion(self, block_hash: str | None = None) -> dict[str, Any]:
        return {"specVersion": self.spec_version, "transactionVersion": 1, "specName": "node-subtensor"}

    def _state_call(self, method: str, params: str, block_hash: str | None = None) -> str:
        match method:
            case "Metadata_metadata_at_version":
                self.metadata_reads += 1
                return str(self._metadata)
            case "SubnetInfoRuntimeApi_get_metagraph":
                netuid = int.from_bytes(bytes.fromhex(params.removeprefix("0x")), "little")
                return "0x" + self.codec.encode(self._output, self._metagraph(netuid)).hex()
            case "TransactionPaymentApi_query_info":
                weight = self.codec.encode_compact(0) + self.codec.encode_compact(0)
                return "0x" + (weight + b"\0" + self.fee_rao.to_bytes(8, "little")).hex()
        raise ValueError(method)

    def _state_getStorageAt(self, key: str, block_hash: str | None = None) -> str | None:
        events = self.codec.storage_key(self.codec.storage_entry("System", "Events"), [])
        if key == "0x" + events.hex():
            return "0x" + self._blocks.get(int((block_hash or "0x0")[-8:], 16), ([], b"\0"))[1].hex()
        entry = self.codec.storage_entry("SubtensorModule", "NeuronCertificates")
        for neuron in self.neurons:
            shown: bytes | None = neuron.get("certificate")
            if shown is not None and key == "0x" + self.codec.storage_key(entry, [self.netuid, neuron["hotkey"]]).hex():
                return "0x" + (self.codec.encode_compact(len(shown) - 1) + shown[1:] + shown[:1]).hex()
        return None

    def _state_getKeysPaged(self, *_: Any) -> list[str]:
        return []

    def _state_queryStorageAt(self, *_: Any) -> list[Any]:
        return []

    def _account_nextIndex(self, address: str) -> int:
        return self._nonces.get(address, 0)

    def _author_unwatchExtrinsic(self, subscription: str) -> bool:
        return True

    def _metagraph(self, netuid: int) -> dict[str, Any] | None:
        if netuid != self.netuid:
            return None
        count, zeros = len(self.neurons), [0] * len(self.neurons)
        none = {"block": 0, "version": 0, "ip": 0, "port": 0, "ip_type": 4, "protocol": 0, "placeholder1": 0,
                "placeholder2": 0}  # fmt: skip
        own = {
            "netuid": netuid,
            "block": self.block,
            "num_uids": count,
            "name": list(b"loopback"),
            "symbol": list("\N{GREEK SMALL LETTER TAU}".encode()),
            "hotkeys": [neuron["hotkey"] for neuron in self.neurons],
            "coldkeys": [neuron["hotkey"] for neuron in self.neurons],
            "identities": [None] * count,
            "axons": [neuron["axon"] or none for neuron in self.neurons],
            "active": [True] * count,
            "validator_permit": [neuron["permit"] for neuron in self.neurons],
            "tao_stake": [int(neuron["tao"] * _RAO) for neuron in self.neurons],
            "total_stake": [10**15] * count,  # alpha: not what a threshold in TAO is compared with
            "serving_rate_limit": SERVING_RATE_LIMIT,
        }
        return self._shape | own | dict.fromkeys(_LISTS, zeros) | {name: [] for name in _PAIRS}

    def _include(self, extrinsic: str) -> int:
        """Put an extrinsic into a block of its own and do what it says; returns the block."""
        decoded = self.codec.decode_extrinsic(extrinsic)
        sender, call = str(decoded["address"]), decoded["call"]
        self.extrinsics.append(call)
        self.block += 1
        self._nonces[sender] = self._nonces.get(sender, 0) + 1
        refusal = self._serve_axon(sender, call)
        record = b"\0" + (0).to_bytes(4, "little")  # phase: applying extrinsic 0
        info = self.codec.encode_compact(0) * 2 + b"\0\0"  # weight, class, pays fee
        if refusal is None:
            record += b"\0\0" + info
        else:
            record += b"\0\1" + bytes([3, 7, self._errors[refusal], 0, 0, 0]) + info
        self._blocks[self.block] = ([extrinsic], self.codec.encode_compact(1) + record + b"\0")
        return self.block

    def _serve_axon(self, sender: str, call: dict[str, Any]) -> str | None:
        """Apply the call as the chain does; returns the name of the error."""
        if call["call_function"] not in ("serve_axon", "serve_axon_tls"):
            return "SubnetNotExists"
        values = {argument["name"]: argument["value"] for argument in call["call_args"]}
        neuron = next((one for one in self.neurons if one["hotkey"] == sender), None)
        address = ipaddress.ip_address(int(values["ip"]))
        if neuron is None or values["netuid"] != self.netuid:
            return "HotKeyNotRegisteredInNetwork"
        if address.is_loopback or address.is_unspecified or address.is_multicast:
            return "InvalidIpAddress"
        if self.block - self._served_at.get(sender, -SERVING_RATE_LIMIT) < SERVING_RATE_LIMIT:
            return "ServingRateLimitExceeded"
        self._served_at[sender] = self.block
        names = ("version", "ip", "port", "ip_type", "protocol", "placeholder1", "placeholder2")
        if (sent := values.get("certificate")) is not None:
            neuron["certificate"] = bytes.fromhex(sent.removeprefix("0x")) if isinstance(sent, str) else bytes(sent)
        neuron["axon"] = {"block": self.block, **{name: int(values[name]) for name in names}}
        return None


def _sample(folder: Path, type_id: int) -> dict[str, Any]:
    """A recorded value of a type: what a metagraph has besides what is asked of this one."""
    types = json.loads((folder / "corpus.json").read_text())["types"]
    samples = next(one["samples"] for one in types if one["id"] == type_id)
    return dict(next(one["decoded"] for one in samples if one["decoded"] is not None))


def _hash(number: int) -> str:
    """A block's hash, from which its number can be read."""
    return "0x" + hashlib.sha256(str(number).encode()).hexdigest()[:56] + f"{number:08x}"
