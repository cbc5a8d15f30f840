"""`network=local`: a subnet in a file, with real keys and signatures and no chain.

::

    python -m hfa.network.local register --wallet.name validator --wallet.hotkey default --validator
    python -m hfa.network.local list
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from hfa.config import Name, config, from_mapping
from hfa.errors import ConfigError, HFAError, NetworkError
from hfa.network.base import Endpoint, NetworkConfig, Neuron, Verifier, WalletConfig
from hfa.network.bittensor import HotkeyVerifier, create_hotkey, hotkey_file, open_hotkey
from hfa.network.member import Member
from hfa.network.subnet_file import Registration, SubnetFile

log = logging.getLogger(__name__)

_YAML = Path(__file__).resolve().parents[2] / "conf" / "network" / "local.yaml"
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # bound to all addresses: reached by loopback


@config
class LocalNetworkConfig(NetworkConfig):
    """A subnet in a file.

    Args:
        folder: where the files of subnets lie.
        autoregister: make the miner's hotkey when there is none, and register it when it starts.
    """

    folder: Name
    autoregister: bool

    def file(self) -> SubnetFile:
        return SubnetFile(Path(self.folder).expanduser(), self.netuid)

    def build(self, wallet: WalletConfig) -> LocalNetwork:
        if self.autoregister and not hotkey_file(wallet).exists():
            signer = create_hotkey(wallet)
            log.info("Made the hotkey %s in %s", signer.hotkey, hotkey_file(wallet))
        else:
            signer = open_hotkey(wallet, f"make and register one with `{register_command(self, wallet)}`")
        return LocalNetwork(self, wallet, signer.hotkey, HotkeyVerifier(signer.hotkey, self.auth))


class LocalNetwork(Member):
    """The subnet of a file, with the semantics of a chain; changes by other processes show at once.

    Args:
        config: the file and the thresholds.
        wallet: named in the command that registers.
        hotkey: our own, ss58.
        verifier: judges requests to `hotkey`.
    """

    def __init__(self, config: LocalNetworkConfig, wallet: WalletConfig, hotkey: str, verifier: Verifier) -> None:
        super().__init__(config, hotkey, verifier)
        self._local, self._wallet = config, wallet
        self._file = config.file()
        self._seen: tuple[int, int, int] | None = None

    async def start(self) -> None:
        if self._local.autoregister:
            await asyncio.to_thread(self._register_once)
        await super().start()

    def neuron(self, hotkey: str) -> Neuron | None:
        self._notice_changes()
        return super().neuron(hotkey)

    def neurons(self) -> list[Neuron]:
        self._notice_changes()
        return super().neurons()

    async def _look(self) -> list[Neuron]:
        return self._read()

    def _reachable(self, host: str, port: int) -> Endpoint:
        return Endpoint(_ANY.get(host, host), port)

    async def _publish(self, endpoint: Endpoint) -> None:
        await asyncio.to_thread(self._file.publish, self.hotkey, str(endpoint))

    async def _disconnect(self) -> None:
        return  # the file is open only while it is read or written

    def _unregistered(self) -> str:
        who = f"Hotkey {self.hotkey} is not registered on netuid {self.netuid} in {self._file.path}"
        return f"{who}; register it with `{register_command(self._local, self._wallet)}`."

    def _register_once(self) -> None:
        if all(registration.hotkey != self.hotkey for registration in self._file.read()):
            registration = self._file.register(self.hotkey, stake_tao=0.0, validator_permit=False)
            log.info("Registered %s as uid %d on netuid %d", self.hotkey, registration.uid, self.netuid)

    def _read(self) -> list[Neuron]:
        self._seen = self._file.stamp()
        return [registration.neuron() for registration in self._file.read()]

    def _notice_changes(self) -> None:
        if self._file.stamp() == self._seen:
            return
        try:
            self._keep(self._read())
        except NetworkError as error:
            log.warning("%s Going on with what is known.", error)


def register_command(config: LocalNetworkConfig, wallet: WalletConfig, *, validator: bool = False) -> str:
    """The command line that registers `wallet` on the subnet of `config`."""
    words = ["python", "-m", "hfa.network.local", "register", "--folder", config.folder, "--netuid", str(config.netuid)]
    words += ["--wallet.name", wallet.name, "--wallet.hotkey", wallet.hotkey, "--wallet.path", wallet.path]
    return shlex.join(words + ["--validator"] * validator)


def config_from_yaml(*, folder: str | None = None, netuid: int | None = None) -> LocalNetworkConfig:
    """The local subnet as conf/network/local.yaml has it, for command lines that do not compose a configuration.

    Args:
        folder: instead of the YAML's.
        netuid: instead of the YAML's.
    """
    given = {name: value for name, value in (("folder", folder), ("netuid", netuid)) if value is not None}
    try:
        values = yaml.safe_load(_YAML.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError("conf/network/local.yaml", str(_YAML), f"a readable YAML file ({error})") from error
    values.pop("_target_")
    return from_mapping(LocalNetworkConfig, {**values, **given}, "network")


def add_subnet_flags(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--netuid", type=int, help="the subnet (default: conf/network/local.yaml)")
    parser.add_argument("--folder", help="where the files of subnets lie (default: conf/network/local.yaml)")


def add_wallet_flags(parser: argparse._ActionsContainer, *, name: str | None, hotkey: str | None) -> None:
    """The three flags of a wallet; `name` and `hotkey` are their defaults, None makes them required."""
    parser.add_argument("--wallet.name", dest="name", required=name is None, default=name, help="wallet")
    parser.add_argument("--wallet.hotkey", dest="hotkey", required=hotkey is None, default=hotkey, help="hotkey in it")
    parser.add_argument("--wallet.path", dest="path", help="folder of wallets (default: conf/network/local.yaml)")


def wallet_from(arguments: argparse.Namespace, config: LocalNetworkConfig) -> WalletConfig:
    path = config.wallet_path if arguments.path is None else arguments.path
    values = {"name": arguments.name, "hotkey": arguments.hotkey, "path": path}
    return from_mapping(WalletConfig, values, "wallet")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        config = config_from_yaml(folder=arguments.folder, netuid=arguments.netuid)
        arguments.run(arguments, config)
    except HFAError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hfa.network.local", description="A subnet in a file.")
    commands = parser.add_subparsers(required=True)
    register = commands.add_parser("register", help="register a hotkey, or change its stake and permit; makes the key")
    register.add_argument("--stake", type=float, default=1000.0, help="TAO at stake (default: %(default)g)")
    register.add_argument("--validator", action="store_true", help="give it a validator permit")
    deregister = commands.add_parser("deregister", help="take a hotkey off the subnet")
    create = commands.add_parser("create-wallet", help="make a hotkey without registering it")
    show = commands.add_parser("list", help="show the neurons")
    for command in (register, deregister, create):
        add_wallet_flags(command, name=None, hotkey=None)
    runs = {register: _register, deregister: _deregister, create: _create_wallet, show: _list}
    for command, run in runs.items():
        add_subnet_flags(command)
        command.set_defaults(run=run)
    return parser


def _register(arguments: argparse.Namespace, config: LocalNetworkConfig) -> None:
    if not 0 <= arguments.stake < math.inf:
        raise ConfigError("--stake", arguments.stake, "TAO, 0 or more")
    wallet = wallet_from(arguments, config)
    if not hotkey_file(wallet).exists():
        create_hotkey(wallet)
        _say(f"made {hotkey_file(wallet)}")
    hotkey = open_hotkey(wallet, "choose another wallet.hotkey").hotkey
    _show([config.file().register(hotkey, stake_tao=arguments.stake, validator_permit=arguments.validator)])


def _deregister(arguments: argparse.Namespace, config: LocalNetworkConfig) -> None:
    hotkey = open_hotkey(wallet_from(arguments, config), "only a hotkey that is there can be named").hotkey
    config.file().deregister(hotkey)
    _say(f"{hotkey} is off netuid {config.netuid}")


def _create_wallet(arguments: argparse.Namespace, config: LocalNetworkConfig) -> None:
    wallet = wallet_from(arguments, config)
    _say(f"{create_hotkey(wallet).hotkey}  {hotkey_file(wallet)}")


def _list(arguments: argparse.Namespace, config: LocalNetworkConfig) -> None:
    registrations = config.file().read()
    _say(f"netuid {config.netuid}: {len(registrations)} neurons in {config.file().path}")
    _show(registrations)


def _show(registrations: Sequence[Registration]) -> None:
    for registration in registrations:
        permit = "validator" if registration.validator_permit else "-"
        where = registration.endpoint or "-"
        stake = f"{registration.stake_tao:>12,.1f} TAO"
        _say(f"{registration.uid:>4}  {registration.hotkey}  {stake}  {permit:<9}  {where}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    raise SystemExit(main())
