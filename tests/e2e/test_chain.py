"""The real SDK against a loopback node with the real runtime's metadata, over a real WebSocket."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from subtensor_node import SubtensorNode, fixtures

from hfa.config import from_mapping
from hfa.errors import NetworkError, RequestError
from hfa.network.base import NotRegisteredError, WalletConfig
from hfa.network.bittensor import BittensorNetwork, BittensorNetworkConfig, HotkeySigner, create_hotkey
from hfa.network.member import ChainAwayError

ROOT = Path(__file__).parents[2]
ADDRESS = "203.0.113.7"


@pytest.fixture(scope="session")
def recorded() -> Path:
    try:
        return fixtures()
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"the SDK's source distribution cannot be fetched: {error}")


@pytest.fixture
def node(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SubtensorNode]:
    monkeypatch.setenv("BITTENSOR_RUNTIME_CACHE_DIR", str(tmp_path / "runtimes"))
    monkeypatch.setenv("BTCLI_TOKEN_SYMBOLS_CACHE", str(tmp_path / "symbols.json"))
    with SubtensorNode(recorded) as running:
        yield running


class Operator:
    """Keys, and the network as conf/network/test.yaml has it, on the node."""

    def __init__(self, folder: Path, node: SubtensorNode) -> None:
        self.wallets, self.node, self.folder = str(folder / "wallets"), node, folder
        self.wallet = WalletConfig(name="hfa_silx", hotkey="hfa_silx_hot", path=self.wallets)
        self.hotkey = create_hotkey(self.wallet).hotkey

    def signer(self, name: str) -> HotkeySigner:
        return create_hotkey(WalletConfig(name=name, hotkey="default", path=self.wallets))

    def network(self, **changes: Any) -> BittensorNetwork:
        values = yaml.safe_load((ROOT / "conf" / "network" / "test.yaml").read_text())
        values.pop("_target_")
        values["auth"] |= {"nonce_dir": str(self.folder / "nonces")}
        values |= {"chain": self.node.url, "external_ip": ADDRESS, "sync_interval_s": 0.1, "retry_s": 0.05}
        return from_mapping(BittensorNetworkConfig, values | changes, "network").build(self.wallet)


@pytest.fixture
def operator(tmp_path: Path, node: SubtensorNode) -> Operator:
    return Operator(tmp_path, node)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(scenario(), 60)
        assert {task for task in asyncio.all_tasks() if task is not asyncio.current_task()} == set()

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def test_registered_published_once_and_over_one_connection(node: SubtensorNode, operator: Operator) -> None:
    async def scenario() -> None:
        validator = operator.signer("validator").hotkey
        node.register(validator, tao=1000.25, permit=True)
        node.register(operator.hotkey)
        network = operator.network(min_stake_tao=1000.0)
        await network.start()
        assert network.authorize(validator).stake_tao == 1000.25
        assert await network.serve("0.0.0.0", 8091) == f"{ADDRESS}:8091"
        looks = node.requests.count("state_call")
        await until(lambda: node.requests.count("state_call") > looks + 6)
        assert network.neuron(operator.hotkey).endpoint == f"{ADDRESS}:8091"
        assert [call["call_function"] for call in node.extrinsics] == ["serve_axon"]
        assert (node.connections, node.open) == (1, 1)
        await network.close()
        await until(lambda: node.open == 0)

        again = operator.network()  # a restart finds the endpoint and publishes nothing
        await again.start()
        await again.serve("0.0.0.0", 8091)
        await again.close()
        assert len(node.extrinsics) == 1

    run(scenario)


def test_unregistered_and_no_such_subnet_are_a_sentence_each(node: SubtensorNode, operator: Operator) -> None:
    async def scenario() -> None:
        with pytest.raises(NotRegisteredError) as raised:
            await operator.network().start()
        command = str(raised.value).split("`")[1]
        words = f"--netuid 439 --network {node.url} -w hfa_silx -H hfa_silx_hot --wallet-path {operator.wallets}"
        assert command == f"btcli subnets register {words}"
        with pytest.raises(NetworkError, match=r"network\.netuid: there is no subnet 440 on ws://"):
            await operator.network(netuid=440).start()
        await until(lambda: node.open == 0)
        assert node.extrinsics == []

    run(scenario)


def test_publishing_that_is_rate_limited_is_tried_again(node: SubtensorNode, operator: Operator) -> None:
    async def scenario() -> None:
        node.register(operator.hotkey)
        first = operator.network(sync_interval_s=3600.0, max_staleness_s=7200.0)
        await first.start()
        await first.serve("0.0.0.0", 8091)
        await first.close()
        moved = operator.network()
        await moved.start()
        assert await moved.serve("0.0.0.0", 8092) == f"{ADDRESS}:8092"  # put off: the chain asks to wait 50 blocks
        await until(lambda: len(node.extrinsics) > 3)
        assert moved.neuron(operator.hotkey).endpoint == f"{ADDRESS}:8091"
        node.block += 50
        await until(lambda: moved.neuron(operator.hotkey).endpoint == f"{ADDRESS}:8092")
        await moved.close()

    run(scenario)


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "224.0.0.1"])
def test_an_address_the_chain_refuses_is_a_sentence(node: SubtensorNode, operator: Operator, address: str) -> None:
    async def scenario() -> None:
        node.register(operator.hotkey)
        network = operator.network(external_ip=address)
        await network.start()
        with pytest.raises(NetworkError, match=address):
            await network.serve("0.0.0.0", 8091)
        await network.close()

    run(scenario)


def test_a_certificate_is_published_and_a_dear_fee_is_not_paid(node: SubtensorNode, operator: Operator) -> None:
    async def scenario() -> None:
        node.register(operator.hotkey)
        network = operator.network(certificate="0x01" + "ab" * 32)
        await network.start()
        node.fee_rao = 2 * 10**7  # 0.02 TAO; conf/network/test.yaml allows 0.01
        with pytest.raises(NetworkError, match=r"network\.max_fee_tao"):
            await network.serve("0.0.0.0", 8091)
        assert node.extrinsics == [], "nothing is signed past the fee"
        node.fee_rao = 0
        await network.serve("0.0.0.0", 8091)
        (call,) = node.extrinsics
        assert call["call_function"] == "serve_axon_tls"
        assert node.neurons[0]["certificate"] == b"\x01" + b"\xab" * 32
        await network.close()

    run(scenario)


def test_another_certificate_is_published_at_the_same_endpoint(node: SubtensorNode, operator: Operator) -> None:
    async def scenario() -> None:
        node.register(operator.hotkey)
        for certificate in ("0x01" + "ab" * 32, "0x01" + "ab" * 32, "0x01" + "cd" * 32, "0x01" + "cd" * 32):
            node.block += 50  # the chain's rate limit
            network = operator.network(certificate=certificate)
            await network.start()
            await network.serve("0.0.0.0", 8091)
            looks = node.requests.count("state_call")
            await until(lambda looks=looks: node.requests.count("state_call") > looks + 4)
            assert node.neurons[0]["certificate"] == bytes.fromhex(certificate[2:])
            await network.close()
        assert len(node.extrinsics) == 2, "each once, whatever restarts"

    run(scenario)


def test_a_node_that_dies_and_comes_back_is_neither_noticed_by_callers_nor_leaked_to(
    node: SubtensorNode, operator: Operator, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        validator = operator.signer("validator").hotkey
        node.register(operator.hotkey)
        node.register(validator, permit=True)
        network = operator.network(max_staleness_s=1.0, rpc_timeout_s=0.5)
        await network.start()
        for _ in range(3):
            await asyncio.to_thread(node.kill)
            await until(lambda: network.last_sync_age_s > 0.4)
            assert network.authorize(validator).hotkey == validator, "what is known is good enough for a while"
            await asyncio.to_thread(node.start)
            age = network.last_sync_age_s
            await until(lambda age=age: network.last_sync_age_s < min(age, 0.3))
        assert node.open == 1
        await asyncio.to_thread(node.kill)
        await until(lambda: network.last_sync_age_s > 1.0)
        with pytest.raises(RequestError, match="The metagraph was last seen") as raised:
            network.authorize(validator)
        assert raised.value.status == 503
        await network.close()

    with caplog.at_level(logging.WARNING):
        run(scenario)
    assert any("Going on with the metagraph" in message for message in caplog.messages)


def test_slow_answers_end_in_time_and_serving_goes_on(node: SubtensorNode, operator: Operator) -> None:
    async def scenario() -> None:
        node.register(operator.hotkey)
        network = operator.network(rpc_timeout_s=0.5)
        await network.start()
        node.delay_s = 30.0
        with pytest.raises(ChainAwayError, match=r"no answer within 0\.5 s"):
            await network.sync()
        assert network.neuron(operator.hotkey) is not None
        node.delay_s = 0.0
        await until(lambda: network.last_sync_age_s < 0.1)
        await network.close()

    run(scenario)


def test_a_runtime_upgrade_in_mid_run_is_taken_in(node: SubtensorNode, operator: Operator) -> None:
    """A new version over the same metadata: that it is read anew is seen, not what a change of its types would do."""

    async def scenario() -> None:
        node.register(operator.hotkey)
        network = operator.network()
        await network.start()
        reads = node.metadata_reads
        node.spec_version += 1
        node.block += 1
        node.register(operator.signer("later").hotkey, tao=5.0, permit=True)
        await until(lambda: len(network.neurons()) == 2)
        assert await network.serve("0.0.0.0", 8091) == f"{ADDRESS}:8091"
        await until(lambda: network.neuron(operator.hotkey).endpoint is not None)
        assert node.metadata_reads > reads
        await network.close()

    run(scenario)


@pytest.mark.parametrize("over", ["http", "rpc"])
def test_policy_refusals_are_heeded(node: SubtensorNode, operator: Operator, over: str) -> None:
    """An endpoint that asks to be left alone for a while is; and nothing is retried in between."""

    async def scenario() -> None:
        node.register(operator.hotkey)
        network = operator.network(sync_interval_s=3600.0, max_staleness_s=7200.0)
        await network.start()
        if over == "http":
            node.http_refusal = (429, {"Retry-After": "90"})
            await asyncio.to_thread(node.kill)
            await asyncio.to_thread(node.start)
        else:
            data = {"retry_after": 90, "policy": "free"}
            node.rpc_refusal = {"code": -32005, "message": "too many requests", "data": data}
        with pytest.raises(ChainAwayError) as raised:
            await network.sync()
        assert raised.value.retry_after_s == 90.0
        assert network.neuron(operator.hotkey) is not None
        node.http_refusal = node.rpc_refusal = None
        await network.sync()
        await network.close()

    run(scenario)


def test_deregistration_is_noticed_and_a_new_registration_is_published(
    node: SubtensorNode, operator: Operator, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        node.register(operator.hotkey)
        network = operator.network()
        await network.start()
        await network.serve("0.0.0.0", 8091)
        node.deregister(operator.hotkey)
        await until(lambda: network.neuron(operator.hotkey) is None)
        node.block += 50
        node.register(operator.hotkey)
        await until(lambda: (me := network.neuron(operator.hotkey)) is not None and me.endpoint is not None)
        assert [call["call_function"] for call in node.extrinsics] == ["serve_axon"] * 2
        await network.close()

    run(scenario)
    assert [message for message in caplog.messages if message.startswith("Deregistered: ")]


@dataclasses.dataclass
class Mining:
    """`python mine.py` on the node, and what it prints."""

    process: subprocess.Popen[str]
    log: Path

    def says(self, words: str) -> bool:
        return words in self.log.read_text()


@pytest.fixture
def mine(operator: Operator, tmp_path: Path) -> Iterator[Callable[..., Mining]]:
    running: list[Mining] = []

    def start(*words: str) -> Mining:
        own = [f"network={operator.node.url}", "network.netuid=439", f"network.external_ip={ADDRESS}"]
        own += ["--wallet.name", "hfa_silx", "--wallet.hotkey", "hfa_silx_hot", "--wallet.path", operator.wallets]
        own += [
            "server.host=127.0.0.1",
            "server.port=0",
            "server.status_port=0",
            "network.sync_interval_s=0.2",
            "network.retry_s=0.1",
        ]
        log = tmp_path / f"mine{len(running)}.log"
        command = [sys.executable, str(ROOT / "mine.py"), *own, *words]
        with log.open("w") as file:
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=file, stderr=file, text=True)
        running.append(Mining(process, log))
        return running[-1]

    yield start
    for mining in running:
        if mining.process.poll() is None:
            mining.process.kill()
            mining.process.wait(10)


def wait(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 300  # kernels compile once
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_the_operators_command(node: SubtensorNode, operator: Operator, mine: Callable[..., Mining]) -> None:
    """Unregistered it exits with 1 and the command; registered it serves, outlives its node, and stops cleanly."""
    unregistered = mine()
    assert unregistered.process.wait(300) == 1
    assert "btcli subnets register --netuid 439 --network ws://127.0.0.1" in unregistered.log.read_text()
    assert "Traceback" not in unregistered.log.read_text()
    node.register(operator.hotkey)
    miner = mine()
    wait(lambda: miner.says("Miner ready with"))
    assert miner.says(f"Published {ADDRESS}:")
    node.kill()
    wait(lambda: miner.says("Going on with the metagraph"))
    node.start()
    connections = node.connections
    wait(lambda: node.connections > connections)
    miner.process.send_signal(signal.SIGTERM)
    assert miner.process.wait(60) == 0
    assert miner.says("Miner stopped")
    assert "Traceback" not in miner.log.read_text()
    coldkeys = [path for path in Path(operator.wallets).rglob("*") if "coldkey" in path.name]
    assert coldkeys == []


def test_what_the_chain_refuses_is_said_before_models_are_loaded(
    node: SubtensorNode, operator: Operator, mine: Callable[..., Mining], tmp_path: Path
) -> None:
    """No address to publish is exit 2; a chain that is away is exit 75, and worth another start."""
    node.register(operator.hotkey)
    nowhere = mine("network.external_ip=null")  # it listens on loopback
    assert nowhere.process.wait(300) == 2
    assert "127.0.0.1 cannot be reached from outside; set network.external_ip" in nowhere.log.read_text()
    node.kill()
    away = mine()
    assert away.process.wait(300) == 75
    assert "is the chain reachable?" in away.log.read_text()
    for mining in (nowhere, away):
        said = mining.log.read_text()
        assert "Traceback" not in said
        assert "is not served" not in said, "models were looked for first"
    assert node.extrinsics == []


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_tls(node: SubtensorNode, operator: Operator, mine: Callable[..., Mining], tmp_path: Path) -> None:
    words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
    words += ["-subj", "/CN=miner", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(["openssl", *words, "-keyout", "key.pem", "-out", "cert.pem"], cwd=tmp_path, check=True, stderr=-3)
    node.register(operator.hotkey)
    miner = mine("server.tls_certificate=cert.pem", "server.tls_key=key.pem", f"network.certificate=0x01{'ab' * 32}")
    wait(lambda: miner.says("Miner ready with"))
    url = miner.log.read_text().partition(" at https://")[2].split()[0]
    trusting = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    answer = httpx.get(f"https://{url}/health", verify=trusting, trust_env=False)
    assert answer.json()["hotkey"] == operator.hotkey
    assert node.extrinsics[0]["call_function"] == "serve_axon_tls"
