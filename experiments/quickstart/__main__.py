"""`make demo`: train HFA and SimpleMind, evaluate both, serve them as a miner, and ask it signed questions.

Each step is a command that is printed before it runs, so that any of them can be repeated by hand.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shlex
import shutil
import signal
import string
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.entry import leave, program
from hfa import checkpoint
from hfa.errors import CheckpointError, HFAError, NetworkError
from hfa.metrics.plot import plot_recall
from hfa.metrics.recall import Recall
from hfa.network.base import WalletConfig
from hfa.network.bittensor import HotkeySigner, open_hotkey
from hfa.network.client import Answer, HFAClient
from hfa.network.local import config_from_yaml

MODELS = {  # and with what: a young index finds more when it looks further
    "hfa": "model.num_trees=8 model.beam=16 model.num_ranked=512",
    "simplemind": "",
}
ROOT = Path("outputs/quickstart")
RESULTS = Path(__file__).parent / "results"
CONTEXT_BYTES = 32_000
READY_TIMEOUT_S = 120.0
console = Console(highlight=False)


def main() -> int:
    """Run everything; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=program(), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help=f"evaluate on twice as many examples and four times the text, and keep what was measured in {RESULTS}",
    )
    recording = parser.parse_args().record
    began = time.monotonic()
    for model in MODELS:
        train(model)
    more = "evaluate.num_examples=16 evaluate.text_tokens=262144" if recording else ""
    evaluations = {model: evaluate(model, more) for model in MODELS}
    console.print(comparison(evaluations))
    recalls = {model: Recall.from_json(measured["recall_by_depth"]) for model, measured in evaluations.items()}
    plot_recall(recalls, ROOT / "recall.png", "quickstart: exact answers, %")
    for plot in [ROOT / "recall.png", *sorted(ROOT.glob("*/evaluation/plots/loss*.png"))]:
        console.print(f"  plot: {plot}")
    if recording:
        record(evaluations)
    run("-m hfa.network.local register --wallet.name validator --wallet.hotkey default --validator")
    with miner() as client:
        ask_all(client)
    console.print(f"\n[bold]Done in {(time.monotonic() - began) / 60:.1f} minutes.[/bold] Everything is under {ROOT}.")
    return 0


def train(model: str) -> None:
    """Train unless this commit's run is already there."""
    folder = ROOT / model
    with contextlib.suppress(CheckpointError):
        provenance = checkpoint.read_config(folder / "checkpoints" / "last")["provenance"]
        unchanged = not provenance.get("dirty") and not git("status", "--porcelain", "--untracked-files=no")
        finished = provenance.get("step") == provenance["config"]["trainer"]["max_steps"]
        if unchanged and finished and provenance.get("commit") == git("rev-parse", "HEAD"):
            console.print(f"\n[bold]{model}[/bold] is trained already: {folder} (delete it to train again)")
            return
    console.rule(f"Train {model}")
    shutil.rmtree(folder, ignore_errors=True)  # of another commit, or cut off
    run(f"train.py experiment=quickstart model={model} {MODELS[model]} hydra.run.dir={folder}")


def evaluate(model: str, override: str) -> dict[str, Any]:
    """What the checkpoint measures at lengths up to 64 times the training's."""
    console.rule(f"Evaluate {model}")
    folder = ROOT / model / "evaluation"
    run(
        f"train.py mode=evaluate experiment=quickstart checkpoint={ROOT / model / 'checkpoints' / 'last'}"
        f" hydra.run.dir={folder} {override}"
    )
    measured: dict[str, Any] = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    return measured


def comparison(evaluations: dict[str, dict[str, Any]]) -> Table:
    """One table: bits per byte and exact answers by length, a column a model."""
    table = Table(title="\nquickstart: what was measured", title_style="bold")
    table.add_column("measure")
    table.add_column("tokens", justify="right")
    rows: dict[tuple[str, int], dict[str, str]] = {}
    for model, measured in evaluations.items():
        table.add_column(model, justify="right")
        for one in measured["bits_per_byte"]:
            rows.setdefault((f"bits per byte, {one['source']}", one["length"]), {})[model] = (
                f"{one['bits_per_byte']:.3f}"
            )
        for one in measured["recall"]:
            low, high = one["interval"]
            cell = f"{one['accuracy']:.1%} of {one['answers']} [{low:.0%}, {high:.0%}]"
            rows.setdefault((f"exact answers, {one['task']}", one["length"]), {})[model] = cell
    for (measure, length), cells in sorted(rows.items()):
        table.add_row(measure, f"{length:,}", *(cells.get(model, "") for model in evaluations))
    return table


def record(evaluations: dict[str, dict[str, Any]]) -> None:
    """Keep what was measured, with its provenance, beside this file."""
    RESULTS.mkdir(exist_ok=True)
    shutil.copyfile(ROOT / "recall.png", RESULTS / "recall.png")
    for model, measured in evaluations.items():
        (RESULTS / f"{model}.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    console.print(f"  recorded in {RESULTS}")


@contextlib.contextmanager
def miner() -> Iterator[HFAClient]:
    """The miner with both checkpoints on the local network, and a client of it; stopped on leaving."""
    console.rule("Deploy")
    command = (
        f"mine.py model=hfa network=local checkpoint=latest checkpoint_root={ROOT} server.host=127.0.0.1 server.port=0"
        " wallet.name=demo engine.threads=1"
    )
    console.print(f"[dim]$ python {command}[/dim]")
    process = subprocess.Popen([sys.executable, *shlex.split(command)])
    try:
        with HFAClient(validator(), **address(process)) as client:
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        console.print(f"The miner has stopped, exit code {process.wait(timeout=60)}.")


def validator() -> HotkeySigner:
    """The key that signs our requests."""
    subnet = config_from_yaml()
    wallet = WalletConfig(name="validator", hotkey="default", path=subnet.wallet_path)
    return open_hotkey(wallet, "register it as above")


def address(process: subprocess.Popen[bytes]) -> dict[str, str]:
    """Where the miner published itself on the local subnet."""
    subnet = config_from_yaml()
    wallet = WalletConfig(name="demo", hotkey="default", path=subnet.wallet_path)
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(HFAError):
            hotkey = open_hotkey(wallet, "wait").hotkey
            published = next((one.endpoint for one in subnet.file().read() if one.hotkey == hotkey), None)
            if published is not None:
                with HFAClient(validator(), url=f"http://{published}", receiver=hotkey, timeout_s=5) as client:
                    client.health()
                return {"url": f"http://{published}", "receiver": hotkey}
        time.sleep(0.2)
    raise NetworkError("the demo's miner did not come up; its log above says why.")


def ask_all(client: HFAClient) -> None:
    """A short prompt, then the same needle to each model, then the statistics."""
    console.rule("Ask")
    prompt = "def __init__(self"
    report(f"short prompt: {prompt!r}", client.generate(prompt, max_tokens=48, temperature=0.0))
    context, key, value = haystack(random.Random(0))
    for model in MODELS:
        answer = client.generate(f"{context}# secret {key} = ", max_tokens=len(value), temperature=0.0, model=model)
        verdict = "[green]exact[/green]" if answer.text == value else f"[red]wrong[/red], the value was {value}"
        report(f"needle in {len(context):,} bytes, asked of {model}: {key} = ?  {verdict}", answer)
    console.print(statistics_table(client.statistics()))


def haystack(rng: random.Random) -> tuple[str, str, str]:
    """Real source text with one needle in its first half: the context, the key and the value."""
    path = Path(sysconfig.get_path("stdlib")) / "argparse.py"
    lines = path.read_text(encoding="utf-8")[:CONTEXT_BYTES].splitlines(keepends=True)
    key = "".join(rng.choices(string.ascii_uppercase + string.digits, k=6))
    value = "".join(rng.choices(string.digits, k=8))
    lines.insert(len(lines) // 3, f"# secret {key} = {value}\n")
    return "".join(lines), key, value


def report(question: str, answer: Answer) -> None:
    total_s, prompt = answer.timings["total_s"], answer.usage["prompt_tokens"]
    console.print(f"\n[bold]{question}[/bold]")
    console.print(f"  {answer.text!r}", markup=False)
    console.print(f"  {answer.model} ({answer.reason}); {prompt:,} tokens in; {total_s:.2f} s", style="dim")


def statistics_table(statistics: dict[str, Any]) -> Table:
    """A row an architecture: requests, success rate, times and speed."""
    table = Table(title="\nthe miner's statistics", title_style="bold")
    formats = {
        "requests": "{:,}",
        "success_rate": "{:.0%}",
        "mean_s": "{:.2f} s",
        "p95_s": "{:.2f} s",
        "prefill_tokens_per_s": "{:,.0f}/s",
        "tokens_per_s": "{:,.0f}/s",
    }
    for title in ("model", "requests", "success", "mean", "p95", "prefill", "decode"):
        table.add_column(title, justify="left" if title == "model" else "right")
    for name, one in statistics["architectures"].items():
        cells = ["" if one[key] is None else form.format(one[key]) for key, form in formats.items()]
        table.add_row(name, *cells)
    return table


def run(command: str) -> None:
    """Run a Python command and show it; the demo ends where a step fails."""
    console.print(f"[dim]$ python {command}[/dim]")
    subprocess.run([sys.executable, *shlex.split(command)], check=True)


def git(*words: str) -> str:
    """What git says; nothing outside a checkout."""
    return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    leave(main)
