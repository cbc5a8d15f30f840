"""What every network shares: who may ask, and that a chain that is away changes nothing until it is away for long."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from hfa.errors import NetworkError, RequestError
from hfa.network import member
from hfa.network.base import Endpoint, Neuron, NotRegisteredError, Verifier
from hfa.network.bittensor import HotkeySigner, HotkeyVerifier
from hfa.network.local import LocalNetworkConfig
from hfa.network.member import ChainAwayError, Member

VALIDATOR = Neuron(1, "validator", 1000.0, True, None)
POOR = Neuron(2, "poor", 999.5, True, None)
PEER = Neuron(3, "peer", 5000.0, False, None)


class ScriptedChain(Member):
    """A chain that shows, one look after another, the neurons or the failure of a script; the last one stays."""

    def __init__(self, config: LocalNetworkConfig, hotkey: str, verifier: Verifier, script: list[Any]) -> None:
        super().__init__(config, hotkey, verifier)
        self.script, self.published, self.refusals = script, [], []
        self.looks, self.connected = 0, True
        self.looked = asyncio.Condition()

    async def _look(self) -> list[Neuron]:
        self.looks += 1
        shown = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        async with self.looked:
            self.looked.notify_all()
        if isinstance(shown, Exception):
            raise shown
        return list(shown)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with self.looked, asyncio.timeout(30):
            await self.looked.wait_for(condition)

    def _reachable(self, host: str, port: int) -> Endpoint:
        return Endpoint(host, port)

    async def _publish(self, endpoint: Endpoint) -> None:
        if self.refusals:
            raise self.refusals.pop(0)
        self.published.append(str(endpoint))

    def _unregistered(self) -> str:
        return "Register with `this command`."

    async def _disconnect(self) -> None:
        self.connected = False


Chain = Callable[..., ScriptedChain]


@pytest.fixture
def chain(make_config: Callable[..., LocalNetworkConfig], make_signer: Callable[[str], HotkeySigner]) -> Chain:
    signer = make_signer("miner")

    def make(*script: Any, **changes: Any) -> ScriptedChain:
        config = make_config(**{"sync_interval_s": 0.01, "retry_s": 0.01, **changes})
        me = Neuron(0, signer.hotkey, 0.0, False, None)
        shown = [[me, *look] if isinstance(look, list) else look for look in script]
        return ScriptedChain(config, signer.hotkey, HotkeyVerifier(signer.hotkey, config.auth), shown)

    return make


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scenario())  # type: ignore[arg-type]


def refusal(network: Member, hotkey: str) -> tuple[int, str]:
    with pytest.raises(RequestError) as raised:
        network.authorize(hotkey)
    return raised.value.status, str(raised.value)


def test_permit_and_stake_decide_who_may_ask(chain: Chain) -> None:
    async def scenario() -> None:
        network = chain([VALIDATOR, POOR, PEER])
        await network.start()
        assert network.authorize("validator") == VALIDATOR
        assert refusal(network, "poor") == (403, "Uid 2 has 999.5 TAO at stake; this miner answers from 1000.")
        assert refusal(network, "peer") == (403, "Uid 3 has no validator permit on netuid 1.")
        assert refusal(network, "5Stranger") == (403, "Hotkey 5Stranger is not registered on netuid 1 of local.")
        await network.close()

        lenient = chain([POOR, PEER], min_stake_tao=0.0, require_validator_permit=False)
        await lenient.start()
        assert lenient.authorize("poor") == POOR
        assert lenient.authorize("peer") == PEER
        assert [neuron.uid for neuron in lenient.neurons()] == [0, 2, 3]
        await lenient.close()

    run(scenario)


def test_lists_come_before_the_chain(chain: Chain) -> None:
    async def scenario() -> None:
        friend, both, poor, validator = (f"5{letter * 47}" for letter in "FBPV")
        seen = [VALIDATOR._replace(hotkey=validator), POOR._replace(hotkey=poor), PEER]
        network = chain(seen, allow=(poor, friend, both), deny=(validator, both))
        assert network.authorize(friend) == Neuron(None, friend, 0.0, False, None), "whatever the chain does"
        await network.start()
        assert network.authorize(poor) == seen[1]
        assert refusal(network, validator) == (403, f"Hotkey {validator} is denied by this miner.")
        assert refusal(network, both)[0] == 403
        assert refusal(network, "peer")[0] == 403
        await network.close()

    run(scenario)


def test_unregistered_hotkey_does_not_start(chain: Chain) -> None:
    async def scenario() -> None:
        network = chain([VALIDATOR])
        network.script = [[VALIDATOR]]
        with pytest.raises(NotRegisteredError, match="this command"):
            await network.start()
        assert not network.connected

    run(scenario)


def test_chain_away_at_the_start_is_an_error(chain: Chain) -> None:
    async def scenario() -> None:
        network = chain(ChainAwayError("The chain is away."))
        with pytest.raises(ChainAwayError):
            await network.start()
        assert network.last_sync_age_s == float("inf")
        assert refusal(network, "validator")[0] == 503

    run(scenario)


@pytest.mark.parametrize("failure", [ChainAwayError("The chain is away."), KeyError("a runtime we cannot decode")])
def test_last_known_state_outlives_failures_and_is_replaced_afterwards(
    chain: Chain, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        network = chain([VALIDATOR], failure, failure, failure, [VALIDATOR, POOR._replace(stake_tao=2000.0)])
        await network.start()
        await network.until(lambda: network.looks == 4)
        assert network.authorize("validator") == VALIDATOR
        await network.until(lambda: network.looks == 6)
        assert network.authorize("poor").stake_tao == 2000.0
        await network.close()

    with caplog.at_level(logging.WARNING):
        run(scenario)
    assert sum("oing on with" in message for message in caplog.messages) == 3


def test_stale_view_refuses_with_503_until_the_chain_is_back(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(member.time, "monotonic", lambda: now[0])

    async def scenario() -> None:
        network = chain([VALIDATOR])
        await network.sync()
        now[0] += 60.0
        assert network.authorize("validator") == VALIDATOR
        now[0] += 1.0
        status, sentence = refusal(network, "validator")
        assert (status, sentence) == (
            503,
            "The metagraph was last seen 61 s ago, more than the 60 s allowed; try later.",
        )
        await network.sync()
        assert network.authorize("validator") == VALIDATOR
        await network.close()

    run(scenario)


def pauses(monkeypatch: pytest.MonkeyPatch, count: int) -> Iterator[float]:
    """The pauses of the sync loop, none of them waited for; after `count` of them the loop ends."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        if len(waited) == count:
            raise asyncio.CancelledError
        waited.append(seconds)

    monkeypatch.setattr(member.asyncio, "sleep", sleep)
    return iter(waited)


def test_retries_back_off_up_to_the_interval_and_honour_what_was_asked(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = ChainAwayError("The chain is away.")
    waited = pauses(monkeypatch, 8)

    async def scenario() -> None:
        script = [[VALIDATOR], away, away, away, away, ChainAwayError("Slower.", 90.0), [VALIDATOR], [VALIDATOR]]
        network = chain(*script, sync_interval_s=10.0, retry_s=2.0)
        await network.start()
        await asyncio.gather(network._syncing, return_exceptions=True)
        await network.close()

    run(scenario)
    assert list(waited) == [10.0, 2.0, 4.0, 8.0, 10.0, 90.0, 10.0, 10.0]


def test_deregistration_is_noticed_and_serving_goes_on(chain: Chain, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        network = chain([VALIDATOR])
        await network.start()
        network.script = [[VALIDATOR]]
        looks = network.looks
        await network.until(lambda: network.looks > looks + 1)
        assert network.neuron(network.hotkey) is None
        assert network.authorize("validator") == VALIDATOR
        await network.close()

    run(scenario)
    assert [message for message in caplog.messages if "Deregistered" in message] == [
        "Deregistered: Register with `this command`."
    ]


def test_endpoint_is_published_once_and_again_only_when_it_is_gone(chain: Chain) -> None:
    async def scenario() -> None:
        network = chain([VALIDATOR])
        me = network.script[0][0]
        await network.start()
        assert await network.serve("10.0.0.1", 8091) == "10.0.0.1:8091"
        assert await network.serve("10.0.0.1", 8091) == "10.0.0.1:8091"
        assert network.published == ["10.0.0.1:8091"]
        network.script = [[me._replace(endpoint="10.0.0.1:8091")]]
        looks = network.looks
        await network.until(lambda: network.looks > looks + 2)
        assert network.published == ["10.0.0.1:8091"]
        network.script = [[me], [me._replace(endpoint="10.0.0.1:8091")]]  # registered anew: the chain forgot it
        looks = network.looks
        await network.until(lambda: network.looks > looks + 3)
        assert network.published == ["10.0.0.1:8091"] * 2
        await network.close()

    run(scenario)


def test_publishing_that_must_wait_is_put_off_and_one_that_cannot_work_is_an_error(chain: Chain) -> None:
    async def scenario() -> None:
        network = chain([VALIDATOR])
        await network.start()
        network.refusals = [NetworkError("The address is wrong.")]
        with pytest.raises(NetworkError, match="address is wrong"):
            await network.serve("10.0.0.1", 8091)
        network.refusals = [ChainAwayError("Rate limited.")] * 2
        await network.serve("10.0.0.1", 8091)
        await network.until(lambda: bool(network.published))
        assert network.refusals == []
        await network.close()
        await network.close()

    run(scenario)


def test_an_endpoint_that_could_not_be_published_is_soon_tried_again(chain: Chain) -> None:
    async def scenario() -> None:
        network = chain([VALIDATOR], sync_interval_s=3600.0, retry_s=0.01, max_staleness_s=7200.0)
        await network.start()
        network.refusals = [ChainAwayError("The chain is away.")] * 3
        await network.serve("10.0.0.1", 8091)
        async with asyncio.timeout(30):
            while not network.published:  # not with the next look, an hour from now
                await asyncio.sleep(0.01)
        await network.close()

    run(scenario)


def test_another_miner_of_the_same_hotkey_is_not_fought(chain: Chain, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        network = chain([VALIDATOR])
        me = network.script[0][0]
        network.script = [[me._replace(endpoint="10.0.0.1:1")]]
        await network.start()
        await network.serve("10.0.0.1", 8091)
        looks = network.looks
        await network.until(lambda: network.looks > looks + 2)
        published = len(network.published)
        assert published > 1, "what was there before is published over"
        network.script = [[me._replace(endpoint="10.0.0.1:8091")], [me._replace(endpoint="10.0.0.1:9999")]]
        looks = network.looks
        await network.until(lambda: network.looks > looks + 4)
        assert len(network.published) <= published + 1  # one look was on its way
        await network.close()

    run(scenario)
    (said,) = [message for message in caplog.messages if message.startswith("Another miner of this hotkey")]
    assert "published 10.0.0.1:9999 over 10.0.0.1:8091" in said
    assert "network.external_port" in said


def test_what_was_there_before_and_comes_back_is_newer(chain: Chain, caplog: pytest.LogCaptureFixture) -> None:
    """Two miners that are restarted in turn do not fight over the endpoint for ever."""

    async def scenario() -> None:
        network = chain([VALIDATOR])
        me = network.script[0][0]
        network.script = [[me._replace(endpoint="10.0.0.2:1")]]
        await network.start()
        await network.serve("10.0.0.1", 8091)
        network.script = [[me._replace(endpoint="10.0.0.1:8091")], [me._replace(endpoint="10.0.0.2:1")]]
        looks = network.looks
        await network.until(lambda: network.looks > looks + 3)
        published = len(network.published)
        await network.until(lambda: network.looks > looks + 8)
        assert len(network.published) == published
        await network.close()

    run(scenario)
    assert [message for message in caplog.messages if "published 10.0.0.2:1 over 10.0.0.1:8091" in message]


def test_close_ends_the_looking(chain: Chain) -> None:
    async def scenario() -> None:
        network = chain([VALIDATOR])
        await network.start()
        await network.until(lambda: network.looks > 1)
        await network.close()
        assert not network.connected
        assert {task for task in asyncio.all_tasks() if task is not asyncio.current_task()} == set()

    run(scenario)
