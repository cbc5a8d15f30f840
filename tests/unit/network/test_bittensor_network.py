"""The real chain's network, through the SDK's own client, over an object of the SDK's Substrate protocol."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bittensor as bt
import pytest

from hfa.config import from_mapping
from hfa.errors import NetworkError, RequestError
from hfa.network import bittensor
from hfa.network.base import AuthConfig, Network, NotRegisteredError, WalletConfig
from hfa.network.bittensor import BittensorNetwork, BittensorNetworkConfig, HotkeySigner, HotkeyVerifier
from hfa.network.member import ChainAwayError

SUBNET = {"block": 100, "tempo": 360, "last_step": 0, "blocks_since_last_step": 0, "network_registered_at": 1}
SUBNET = {**SUBNET, "owner_hotkey": "5Owner", "owner_coldkey": "5Owner"}


class MemoryChain:
    """One subnet in memory, as far as the SDK's client asks for it to read a metagraph and to serve an axon."""

    def __init__(self, netuid: int) -> None:
        self.netuid = netuid
        self.token_symbols: dict[int, str] = {}
        self.neurons: list[dict[str, Any]] = []
        self.failure: Exception | None = None
        self.refusal: bt.ChainError | None = None
        self.fee: bt.Balance | None = bt.tao(0)
        self.connections = self.open = self.extrinsics = 0

    def register(self, hotkey: str, tao: float = 0.0, permit: bool = False) -> None:
        self.neurons.append({"hotkey": hotkey, "tao_stake": bt.tao(tao).rao, "permit": permit, "axon": None})

    def balance(self, rao: int, netuid: int = 0) -> bt.Balance:
        return bt.Balance.from_rao(rao, netuid)

    async def connect(self) -> None:
        self._answer()
        self.connections += 1
        self.open += 1

    async def close(self) -> None:
        self.open -= 1

    async def query_map(self, module: str, item: str, params: Any = None, block_hash: Any = None) -> list[Any]:
        assert item == "TokenSymbol"
        return []

    async def block_number(self) -> int:
        return 100

    async def block_hash(self, block: int | None = None) -> str:
        return "0x00"

    async def runtime_call(self, api: str, method: str, params: list[Any], block_hash: str | None = None) -> Any:
        self._answer()
        assert (api, method) == ("SubnetInfoRuntimeApi", "get_metagraph")
        if params != [self.netuid]:
            return None
        return {
            **SUBNET,
            "hotkeys": [neuron["hotkey"] for neuron in self.neurons],
            "validator_permit": [neuron["permit"] for neuron in self.neurons],
            "tao_stake": [neuron["tao_stake"] for neuron in self.neurons],
            "total_stake": [10**18 for _ in self.neurons],
            "axons": [neuron["axon"] for neuron in self.neurons],
        }

    async def compose(self, call: Any) -> Any:
        return call

    async def estimate_fee(self, call: Any, keypair: Any) -> bt.Balance:
        if self.fee is None:
            raise bt.RpcConnectionError("connection refused")
        return self.fee

    async def submit(self, call: Any, keypair: Any, **options: Any) -> bt.ExtrinsicResult:
        self._answer()
        self.extrinsics += 1
        if self.refusal is not None:
            return bt.ExtrinsicResult(success=False, message=self.refusal.message, error=self.refusal)
        assert (call.module, call.function) == ("SubtensorModule", "serve_axon")
        me = next(neuron for neuron in self.neurons if neuron["hotkey"] == keypair.ss58_address)
        me["axon"] = {name: call.params[name] for name in ("ip", "port", "ip_type")}
        return bt.ExtrinsicResult(success=True)

    def _answer(self) -> None:
        if self.failure is not None:
            raise self.failure


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MemoryChain:
    monkeypatch.setenv("BTCLI_TOKEN_SYMBOLS_CACHE", str(tmp_path / "symbols.json"))
    return MemoryChain(439)


Build = Callable[..., BittensorNetwork]


@pytest.fixture
def build(
    chain: MemoryChain,
    auth: AuthConfig,
    make_wallet: Callable[[str], WalletConfig],
    make_signer: Callable[[str], HotkeySigner],
) -> Build:
    signer = make_signer("miner")
    values = {
        "name": "test",
        "netuid": 439,
        "wallet_path": "wallets",
        "min_stake_tao": 1000.0,
        "require_validator_permit": True,
        "allow": (),
        "deny": (),
        "sync_interval_s": 3600.0,
        "retry_s": 1.0,
        "max_staleness_s": 7200.0,
        "auth": auth,
        "chain": "test",
        "external_ip": "203.0.113.7",
        "external_port": None,
        "certificate": None,
        "rpc_timeout_s": 30.0,
        "publish_timeout_s": 30.0,
        "max_fee_tao": 0.01,
    }

    def make(**changes: Any) -> BittensorNetwork:
        config = from_mapping(BittensorNetworkConfig, {**values, **changes}, "network")
        verifier = HotkeyVerifier(signer.hotkey, config.auth)
        return BittensorNetwork(config, make_wallet("miner"), signer, verifier, substrate=chain)  # type: ignore[arg-type]

    return make


def test_metagraph_becomes_neurons_and_decides_who_may_ask(build: Build, chain: MemoryChain) -> None:
    async def scenario() -> None:
        network: Network = build()
        chain.register("5Validator", tao=1000.0, permit=True)
        chain.register("5Poor", tao=999.999999999, permit=True)
        chain.register(network.hotkey)
        await network.start()
        assert network.neurons() == [
            (0, "5Validator", 1000.0, True, None),
            (1, "5Poor", 999.999999999, True, None),
            (2, network.hotkey, 0.0, False, None),
        ]
        assert network.authorize("5Validator").uid == 0
        with pytest.raises(RequestError, match="TAO at stake"):
            network.authorize("5Poor")
        await network.close()
        await network.close()
        assert (chain.connections, chain.open) == (1, 0)

    asyncio.run(scenario())


def test_unregistered_says_the_exact_command(build: Build, chain: MemoryChain) -> None:
    network = build()
    with pytest.raises(NotRegisteredError) as raised:
        asyncio.run(network.start())
    command = str(raised.value).split("`")[1]
    path = command.split("--wallet-path ")[1]
    assert command == (f"btcli subnets register --netuid 439 --network test -w miner -H default --wallet-path {path}")
    assert chain.open == 0
    assert chain.extrinsics == 0


def test_no_such_subnet_is_one_sentence(build: Build, chain: MemoryChain) -> None:
    with pytest.raises(NetworkError, match=r"network\.netuid: there is no subnet 7 on test; `btcli subnets list"):
        asyncio.run(build(netuid=7).start())


def test_axon_is_served_once_with_the_external_address(build: Build, chain: MemoryChain) -> None:
    async def scenario() -> None:
        network = build()
        chain.register(network.hotkey)
        await network.start()
        assert await network.serve("0.0.0.0", 8091) == "203.0.113.7:8091"
        assert chain.neurons[0]["axon"] == {"ip": int(ipaddress.ip_address("203.0.113.7")), "port": 8091, "ip_type": 4}
        await network.serve("0.0.0.0", 8091)
        await network.close()

        restarted = build()
        await restarted.start()
        await restarted.serve("0.0.0.0", 8091)
        assert chain.extrinsics == 1
        await restarted.close()

        moved = build(external_ip="2001:db8:0:0::7", external_port=443)
        await moved.start()
        assert await moved.serve("0.0.0.0", 8091) == "[2001:db8::7]:443"
        await moved.sync()
        assert moved.neuron(moved.hotkey).endpoint == "[2001:db8::7]:443"
        assert chain.extrinsics == 2
        await moved.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", "::1", "localhost"])
def test_address_nobody_can_reach_is_not_published(
    build: Build, chain: MemoryChain, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bittensor, "_outgoing", lambda family: "10.0.0.7")

    async def scenario() -> None:
        network = build(external_ip=None)
        chain.register(network.hotkey)
        await network.start()
        with pytest.raises(NetworkError, match=r"network\.external_ip: .*set network\.external_ip"):
            await network.serve(host, 8091)
        assert chain.extrinsics == 0
        await network.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_the_address_of_the_way_out_is_published_if_it_is_a_public_one(
    build: Build, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {socket.AF_INET: "9.9.9.9", socket.AF_INET6: "2620:fe::fe"}
    monkeypatch.setattr(bittensor, "_outgoing", own.get)
    assert build(external_ip=None).endpoint(host, 8091).host in own.values()
    monkeypatch.setattr(bittensor, "_outgoing", {socket.AF_INET: "100.64.0.9"}.get)
    with pytest.raises(NetworkError, match=r"network\.external_ip: .*; set network\.external_ip"):
        build(external_ip=None).endpoint(host, 8091)


def test_the_way_out_is_an_address_of_this_machine() -> None:
    own = bittensor._outgoing(socket.AF_INET)
    if own is not None:  # where there is a way out at all
        socket.create_server((own, 0)).close()


@pytest.mark.parametrize(
    "message", ["Extrinsic dropped", "Extrinsic usurped", "1010: Invalid Transaction: Transaction is outdated"]
)
def test_what_became_of_a_transaction_is_no_reason_not_to_mine(build: Build, chain: MemoryChain, message: str) -> None:
    async def scenario() -> None:
        network = build(retry_s=0.01)
        chain.register(network.hotkey)
        await network.start()
        chain.refusal = bt.ChainError(message)
        assert await network.serve("0.0.0.0", 8091) == "203.0.113.7:8091"
        chain.refusal, chain.fee = None, None
        await asyncio.sleep(0.05)
        assert chain.neurons[0]["axon"] is None, "without a fee nothing is signed"
        chain.fee = bt.tao(0)
        async with asyncio.timeout(30):
            while chain.neurons[0]["axon"] is None:
                await asyncio.sleep(0.01)
        await network.close()

    asyncio.run(scenario())


def test_a_fee_that_cannot_be_asked_for_is_not_the_operators_mistake(build: Build, chain: MemoryChain) -> None:
    async def scenario() -> None:
        network = build()
        chain.register(network.hotkey)
        await network.start()
        chain.fee = None
        assert await network.serve("0.0.0.0", 8091) == "203.0.113.7:8091"
        assert chain.extrinsics == 0
        await network.close()

    asyncio.run(scenario())


def test_refusals_of_the_chain(build: Build, chain: MemoryChain) -> None:
    async def scenario() -> None:
        network = build()
        chain.register(network.hotkey)
        await network.start()
        chain.refusal = bt.ChainError("Serving too often", "ServingRateLimitExceeded")
        assert await network.serve("0.0.0.0", 8091) == "203.0.113.7:8091"  # tried again with the next sync
        chain.refusal = bt.ChainError("Wrong address", "InvalidIpAddress")
        with pytest.raises(NetworkError, match=r"8091 was not published on netuid 439: Wrong address; \S+"):
            await network.serve("0.0.0.0", 8091)
        chain.refusal, chain.fee = None, bt.tao("0.02")
        extrinsics = chain.extrinsics
        with pytest.raises(NetworkError, match=r"network\.max_fee_tao: .*exceeds max_fee_tao"):
            await network.serve("0.0.0.0", 8091)
        assert chain.extrinsics == extrinsics, "nothing is signed past the fee"
        await network.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("failure", "cause", "pause_s"),
    [
        (bt.RpcConnectionError("connection refused"), "connection refused", 0.0),
        (OSError("no route to host"), "no route to host", 0.0),
        (bt.RpcPolicyError("rate limited (HTTP 429)", retry_after="30"), "rate limited", 30.0),
        (bt.RpcPolicyError("rate limited", retry_after="1e9"), "rate limited", 7200.0),
        (bt.RpcPolicyError("rate limited", retry_after="Wed, 21 Oct"), "rate limited", 0.0),
    ],
)
def test_chain_away_keeps_what_is_known_and_connects_anew(
    build: Build, chain: MemoryChain, failure: Exception, cause: str, pause_s: float
) -> None:
    async def scenario() -> None:
        network = build()
        chain.register(network.hotkey)
        chain.register("5Validator", tao=1000.0, permit=True)
        await network.start()
        chain.failure = failure
        with pytest.raises(ChainAwayError, match=cause) as raised:
            await network.sync()
        assert raised.value.retry_after_s == pause_s
        assert network.authorize("5Validator").uid == 1
        assert chain.open == 0
        chain.failure = None
        chain.register("5New")
        await network.sync()
        assert network.neuron("5New").uid == 2
        assert (chain.connections, chain.open) == (2, 1)
        await network.close()

    asyncio.run(scenario())


def test_answer_that_never_comes_ends_in_time(
    build: Build, chain: MemoryChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        network = build(rpc_timeout_s=0.05)
        chain.register(network.hotkey)

        async def never() -> int:
            await asyncio.Event().wait()
            return 0

        monkeypatch.setattr(chain, "block_number", never)
        with pytest.raises(ChainAwayError, match=r"metagraph failed \(no answer within 0\.05 s\)"):
            await network.start()
        assert chain.open == 0

    asyncio.run(scenario())


def test_connection_that_takes_long_is_waited_for_and_not_opened_twice(
    build: Build, chain: MemoryChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        network, woken, connect = build(rpc_timeout_s=0.05), asyncio.Event(), chain.connect
        chain.register(network.hotkey)

        async def slow() -> None:
            await connect()
            await woken.wait()

        monkeypatch.setattr(chain, "connect", slow)
        for _ in range(3):
            with pytest.raises(ChainAwayError, match="connection failed"):
                await network.sync()
        assert chain.connections == 1
        woken.set()
        await network.sync()
        assert (chain.connections, chain.open) == (1, 1)
        await network.close()
        assert chain.open == 0

        woken.clear()
        with pytest.raises(ChainAwayError):
            await network.sync()
        await network.close()
        assert {task for task in asyncio.all_tasks() if task is not asyncio.current_task()} == set()

    asyncio.run(scenario())


def test_build_opens_the_hotkey_and_no_connection(
    auth: AuthConfig, build: Build, make_wallet: Callable[[str], WalletConfig]
) -> None:
    config = build()._chain
    with pytest.raises(NetworkError, match=r"btcli wallet new-hotkey -w other -H default --wallet-path"):
        config.build(make_wallet("other"))
    assert config.build(make_wallet("miner")).hotkey == build().hotkey
