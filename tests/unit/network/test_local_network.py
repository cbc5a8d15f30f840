"""`network=local`: registers itself, sees what others do to the file, and its command line says what went wrong."""

from __future__ import annotations

import asyncio
import logging
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from hfa.errors import NetworkError, RequestError
from hfa.network.base import NotRegisteredError, WalletConfig
from hfa.network.bittensor import HotkeySigner, create_hotkey, hotkey_file
from hfa.network.local import LocalNetworkConfig, config_from_yaml, main

MakeConfig = Callable[..., LocalNetworkConfig]
MakeWallet = Callable[[str], WalletConfig]


def test_fresh_machine_makes_and_registers_the_miner(make_config: MakeConfig, make_wallet: MakeWallet) -> None:
    async def scenario() -> None:
        wallet = make_wallet("miner")
        network = make_config().build(wallet)
        assert hotkey_file(wallet).exists()
        await network.start()
        assert await network.serve("0.0.0.0", 8091) == "127.0.0.1:8091"
        me = network.neuron(network.hotkey)
        assert me == (0, network.hotkey, 0.0, False, "127.0.0.1:8091")
        await network.close()

        again = make_config().build(wallet)
        await again.start()
        assert again.hotkey == network.hotkey
        assert again.neurons() == [me], "a restart changes neither key nor uid, and the endpoint stays published"
        before = make_config().file().stamp()
        await again.serve("127.0.0.1", 8091)
        assert make_config().file().stamp() == before, "what is published already is not published again"
        await again.close()

    asyncio.run(scenario())


def test_start_keeps_the_stake_and_permit_of_a_registered_miner(
    make_config: MakeConfig, make_wallet: MakeWallet, make_signer: Callable[[str], HotkeySigner]
) -> None:
    async def scenario() -> None:
        hotkey = make_signer("miner").hotkey
        make_config().file().register(hotkey, stake_tao=7.0, validator_permit=True)
        network = make_config().build(make_wallet("miner"))
        await network.start()
        assert network.neurons() == [(0, hotkey, 7.0, True, None)]
        await network.close()

    asyncio.run(scenario())


def test_without_autoregister_the_sentence_has_a_command_that_works(
    make_config: MakeConfig, make_wallet: MakeWallet, capsys: pytest.CaptureFixture[str]
) -> None:
    config, wallet = make_config(autoregister=False), make_wallet("a miner")
    with pytest.raises(NetworkError, match="there is no hotkey file") as missing:
        config.build(wallet)
    create_hotkey(wallet)
    network = config.build(wallet)
    with pytest.raises(NotRegisteredError, match="is not registered on netuid 1") as unregistered:
        asyncio.run(network.start())
    for sentence in (str(missing.value), str(unregistered.value)):
        command = shlex.split(sentence.split("`")[1])
        assert command[:3] == ["python", "-m", "hfa.network.local"]
        assert main(command[3:]) == 0
    assert network.hotkey in capsys.readouterr().out

    async def scenario() -> None:
        await network.start()
        assert network.neuron(network.hotkey) is not None
        await network.close()

    asyncio.run(scenario())


def test_changes_by_others_show_at_once(
    make_config: MakeConfig, make_wallet: MakeWallet, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        config = make_config(sync_interval_s=3600.0, max_staleness_s=7200.0)
        network, other = config.build(make_wallet("miner")), config.file()
        await network.start()
        with pytest.raises(RequestError, match="not registered"):
            network.authorize("v")
        other.register("v", stake_tao=999.0, validator_permit=True)
        with pytest.raises(RequestError, match="999 TAO"):
            network.authorize("v")
        other.register("v", stake_tao=1000.0, validator_permit=True)
        assert network.authorize("v").uid == 1

        whole = other.path.read_text()
        other.path.write_text(whole[:100])
        assert network.authorize("v").uid == 1, "a torn file leaves what was known"
        assert [neuron.uid for neuron in network.neurons()] == [0, 1]
        assert len([line for line in caplog.messages if "not a whole subnet file" in line]) == 1
        with pytest.raises(NetworkError, match="not a whole subnet file"):
            await network.sync()

        other.path.write_text(whole)
        other.deregister("v")
        with pytest.raises(RequestError, match="not registered"):
            network.authorize("v")
        await network.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())


def test_two_miners_start_at_the_same_time(make_config: MakeConfig, make_wallet: MakeWallet) -> None:
    async def scenario() -> None:
        networks = [make_config().build(make_wallet(name)) for name in ("a", "b", "c")]
        await asyncio.gather(*(network.start() for network in networks))
        await asyncio.gather(*(network.serve("127.0.0.1", 8000 + index) for index, network in enumerate(networks)))
        shown = networks[0].neurons()
        assert [neuron.uid for neuron in shown] == [0, 1, 2]
        assert {neuron.endpoint for neuron in shown} == {"127.0.0.1:8000", "127.0.0.1:8001", "127.0.0.1:8002"}
        await asyncio.gather(*(network.close() for network in networks))

    asyncio.run(scenario())


def test_ipv6_endpoint_is_bracketed(make_config: MakeConfig, make_wallet: MakeWallet) -> None:
    async def scenario() -> None:
        network = make_config().build(make_wallet("miner"))
        await network.start()
        assert await network.serve("::", 8091) == "[::1]:8091"
        await network.close()

    asyncio.run(scenario())


def test_command_line_registers_lists_and_deregisters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--folder", str(tmp_path / "subnets"), "--netuid", "439"]
    wallet = ["--wallet.name", "v", "--wallet.hotkey", "hot", "--wallet.path", str(tmp_path / "wallets")]
    assert main(["create-wallet", *wallet]) == 0
    hotkey = capsys.readouterr().out.split()[0]
    assert main(["register", *wallet, *where, "--stake", "1234", "--validator"]) == 0
    assert main(["list", *where]) == 0
    assert "1 neurons" in capsys.readouterr().out
    neuron = config_from_yaml(folder=str(tmp_path / "subnets"), netuid=439).file().read()[0].neuron()
    assert neuron == (0, hotkey, 1234.0, True, None)
    assert main(["deregister", *wallet, *where]) == 0
    assert config_from_yaml(folder=str(tmp_path / "subnets"), netuid=439).file().read() == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["create-wallet", "--wallet.name", "v", "--wallet.hotkey", "../hot"], "wallet.hotkey: got '../hot'"),
        (["create-wallet", "--wallet.name", "v/w", "--wallet.hotkey", "hot"], "wallet.name: got 'v/w'"),
        (["create-wallet", "--wallet.name", "", "--wallet.hotkey", "hot"], "wallet.name: got ''"),
        (["register", "--wallet.name", "v", "--wallet.hotkey", "hot", "--stake", "nan"], "--stake: got nan"),
        (["register", "--wallet.name", "v", "--wallet.hotkey", "hot", "--stake", "-1"], "--stake: got -1.0"),
        (["deregister", "--wallet.name", "v", "--wallet.hotkey", "hot"], "there is no hotkey file"),
        (["list", "--netuid", "-1"], "network.netuid: got -1"),
    ],
)
def test_command_line_mistakes_are_one_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert sentence in err
    assert err.count("\n") == 1
    assert out == ""
    assert list(tmp_path.iterdir()) == []
