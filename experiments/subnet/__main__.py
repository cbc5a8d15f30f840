"""`python -m experiments.subnet`: see what a validator would see, before paying for a registration.

Each architecture that has a checkpoint under --checkpoints mines as `python mine.py`, beside imposters; those that have
none are named, with the command that trains them. The validator asks all of them the same challenges, one after the
other, and sets weights by what it has checked itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from rich.console import Console
from rich.table import Table

from experiments.complexity.__main__ import processor
from experiments.entry import leave
from experiments.subnet.challenge import draw
from experiments.subnet.validator import Outcome, ask, scores, weights
from hfa import checkpoint
from hfa.errors import CheckpointError, NetworkError
from hfa.network.base import WalletConfig
from hfa.network.bittensor import HotkeySigner, create_hotkey
from hfa.network.local import config_from_yaml
from hfa.training.provenance import provenance

mpl.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
ARCHITECTURES = ("hfa", "simplemind", "transformer")
IMPOSTERS = ("liar", "slow", "dying")
console = Console(highlight=False)


def main() -> int:
    """Run the subnet; returns the exit code."""
    arguments = _arguments()
    folder = Path(arguments.folder).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with mining(folder, Path(arguments.checkpoints), arguments.imposters) as processes:
        validator = _validator(folder)
        miners = published(folder, processes, arguments.ready)
        outcomes, history = asyncio.run(rounds(arguments, validator, miners, processes))
    final = history[-1]
    console.print(table(outcomes, final))
    plot(outcomes, history, folder / "weights.png")
    console.print(f"  plot: {folder / 'weights.png'}")
    result = {"weights": final, "history": history, "outcomes": [one._asdict() for one in outcomes]}
    result["provenance"] = _provenance(arguments)
    (folder / "subnet.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if arguments.record:
        RESULTS.mkdir(exist_ok=True)
        for name in ("subnet.json", "weights.png"):
            shutil.copyfile(folder / name, RESULTS / name)
        console.print(f"  recorded in {RESULTS}")
    honest = max(final[name] for name in final if name not in IMPOSTERS)
    if final.get("liar", 0.0) >= honest:
        console.print("[red]The liar is not beaten:[/red] no trained model here answers better than a guess.")
        return 1
    return 0


@contextmanager
def mining(
    folder: Path, checkpoints: Path, imposters: Sequence[str] = IMPOSTERS
) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """All miners as processes, by name."""
    trained = [name for name in ARCHITECTURES if _is_trained(checkpoints, name)]
    if not trained:
        raise CheckpointError(
            f"--checkpoints: no artifact below {checkpoints}; run `python -m experiments.quickstart`."
        )
    for name in sorted(set(ARCHITECTURES) - set(trained)):
        command = f"python train.py experiment=quickstart model={name} hydra.run.dir={checkpoints / name}"
        console.print(f"{name} does not mine, it is not trained: {command}", soft_wrap=True)
    subnet = [f"network.folder={folder}/subnets", f"network.wallet_path={folder}/wallets", "server.host=127.0.0.1"]
    subnet += [f"network.auth.nonce_dir={folder}/nonces", "server.port=0", "server.status_port=0", "engine.threads=1"]
    subnet += ["server.rate_per_s=1000.0", f"checkpoint_root={checkpoints.resolve()}"]
    commands = {
        name: ["mine.py", f"model={name}", f"models=[{name}]", f"wallet.name={name}", *subnet,
               f"statistics_path={folder}/{name}.json", f"hydra.run.dir={folder}/logs/{name}"]
        for name in trained
    }  # fmt: skip
    for name in imposters:
        own = ["--wallet.name", name, "--wallet.path", f"{folder}/wallets", "--folder", f"{folder}/subnets"]
        commands[name] = ["-m", "experiments.subnet.imposter", name, *own]
    processes: dict[str, subprocess.Popen[bytes]] = {}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        for name, words in commands.items():
            with (folder / f"{name}.log").open("wb") as log:
                processes[name] = subprocess.Popen(
                    [sys.executable, *words], cwd=ROOT, stdout=log, stderr=log, env=environment
                )
        yield processes
    finally:
        for process in processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in processes.values():
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def published(
    folder: Path, processes: Mapping[str, subprocess.Popen[bytes]], timeout_s: float
) -> dict[str, tuple[str, str]]:
    """URL and hotkey of each miner, once all are in the metagraph."""
    limit = time.monotonic() + timeout_s
    while time.monotonic() < limit:
        endpoints = {one.hotkey: one.endpoint for one in config_from_yaml(folder=f"{folder}/subnets").file().read()}
        there = {name: hotkey for name in processes if endpoints.get(hotkey := _hotkey(folder, name))}
        if len(there) == len(processes):
            return {name: (f"http://{endpoints[hotkey]}", hotkey) for name, hotkey in there.items()}
        for name, process in processes.items():
            if process.poll() is not None:
                raise NetworkError(f"{name} did not come up; {folder / name}.log says why.")
        time.sleep(0.2)
    raise NetworkError(f"Not all miners were there within {timeout_s:g} s; their logs are in {folder}.")


async def rounds(
    arguments: argparse.Namespace,
    validator: HotkeySigner,
    miners: Mapping[str, tuple[str, str]],
    processes: Mapping[str, subprocess.Popen[bytes]],
) -> tuple[list[Outcome], list[dict[str, float]]]:
    """Every challenge to every miner, in an order drawn anew; the weights after each round."""
    rng = random.Random(arguments.seed)
    outcomes: list[Outcome] = []
    history: list[dict[str, float]] = []
    for number in range(1, arguments.rounds + 1):
        for length in arguments.lengths:
            challenge = draw(rng, length, arguments.secrets)
            for name in rng.sample(sorted(miners), len(miners)):
                outcomes.append(await ask(validator, name, *miners[name], challenge))
        history.append(weights(scores(outcomes, miners), arguments.sharpness))
        now = "  ".join(f"{name} {weight:.2f}" for name, weight in history[-1].items())
        dead = [name for name, process in processes.items() if process.poll() is not None]
        console.print(f"round {number}: {now}{f'  ({dead[0]} is dead)' if dead else ''}")
    return outcomes, history


def table(outcomes: list[Outcome], final: Mapping[str, float]) -> Table:
    """A row a miner: right answers and median time by length, and the weight."""
    lengths = sorted({one.length for one in outcomes})
    shown = Table(title="\nwhat the validator saw", title_style="bold")
    shown.add_column("miner")
    for length in lengths:
        shown.add_column(f"right at {length:,} bytes", justify="right")
        shown.add_column("median", justify="right")
    shown.add_column("weight", justify="right")
    shown.add_column("as u16", justify="right")
    greatest = max(final.values()) or 1.0
    for name, weight in sorted(final.items(), key=lambda item: -item[1]):
        cells = []
        for length in lengths:
            own = [one for one in outcomes if one.miner == name and one.length == length]
            times = sorted(one.seconds for one in own)
            cells += [f"{sum(one.right for one in own)} of {len(own)}", f"{times[len(times) // 2]:.2f} s"]
        shown.add_row(name, *cells, f"{weight:.3f}", f"{round(65535 * weight / greatest)}")
    return shown


def plot(outcomes: list[Outcome], history: list[dict[str, float]], path: Path) -> None:
    """Left: how often each was right, by length; right: the weights after each round."""
    names, lengths = list(history[0]), sorted({one.length for one in outcomes})
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for at, name in enumerate(names):
        rates = []
        for length in lengths:
            own = [one.right for one in outcomes if one.miner == name and one.length == length]
            rates.append(sum(own) / len(own))
        place = [index + (at - (len(names) - 1) / 2) * 0.8 / len(names) for index in range(len(lengths))]
        left.bar(place, rates, 0.8 / len(names), label=name, color=f"C{at}")
        right.plot(range(1, len(history) + 1), [one[name] for one in history], "o-", label=name, color=f"C{at}", ms=3)
    left.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    left.set(xlabel="context, bytes", ylabel="right answers", title="Checked by the validator", ylim=(0, 1.05))
    right.set(xlabel="round", ylabel="weight", title="Weights it would set", ylim=(0, None))
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _validator(folder: Path) -> HotkeySigner:
    signer = create_hotkey(WalletConfig(name="validator", hotkey="default", path=f"{folder}/wallets"))
    file = config_from_yaml(folder=f"{folder}/subnets").file()
    file.register(signer.hotkey, stake_tao=5000.0, validator_permit=True)
    return signer


def _hotkey(folder: Path, name: str) -> str:
    """The address of a miner's key; empty until it has made one."""
    public = folder / "wallets" / name / "hotkeys" / "defaultpub.txt"
    try:
        return str(json.loads(public.read_text())["ss58Address"])
    except (OSError, ValueError, KeyError):
        return ""


def _is_trained(checkpoints: Path, name: str) -> bool:
    try:
        checkpoint.resolve("latest", architecture=name, root=checkpoints)
    except CheckpointError:
        return False
    return True


def _provenance(arguments: argparse.Namespace) -> dict[str, Any]:
    models = {}
    for name in ARCHITECTURES:
        if _is_trained(Path(arguments.checkpoints), name):
            path = checkpoint.resolve("latest", architecture=name, root=Path(arguments.checkpoints))
            own = checkpoint.read_config(path)["provenance"]
            models[name] = {key: own.get(key) for key in ("commit", "command", "seed", "step")}
    return provenance(
        vars(arguments),
        machine={"processor": processor(), "cores": os.cpu_count()},
        models=models,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.subnet", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoints", default="outputs/quickstart", help="where runs are kept (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 8192], help="bytes of context")
    parser.add_argument("--secrets", type=int, default=4, help="values in a context, one of which is asked for")
    parser.add_argument("--sharpness", type=float, default=2.0, help="weights are scores to this power")
    parser.add_argument("--imposters", nargs="*", choices=IMPOSTERS, default=IMPOSTERS)
    parser.add_argument("--ready", type=float, default=900.0, metavar="S", help="for all miners to come up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default="outputs/subnet")
    parser.add_argument("--record", action="store_true", help=f"keep the result in {RESULTS}")
    return parser.parse_args()


if __name__ == "__main__":
    leave(main)
