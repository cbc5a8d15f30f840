"""Training, and measuring cell by cell."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from experiments.language.study import different
from experiments.language.variant import composed, num_parameters
from experiments.retention.ledger import Ledger
from experiments.retention.plan import EXPERIMENT, cells, settings_of, sources
from hfa import checkpoint, training
from hfa.config import from_node
from hfa.errors import HFAError
from hfa.models import ModelConfig
from hfa.training.provenance import provenance
from hfa.training.runs import RUN

OUTPUTS = Path("outputs") / EXPERIMENT
_SIDE_BY_SIDE = 1 << 14  # tokens of the examples that are run together
console = Console(highlight=False)


def train(seed: int, overrides: tuple[str, ...], *, quick: bool = False) -> Path:
    """Train with one seed, unless that is done already; the folder of the artifact.

    Raises:
        HFAError: it was done with other settings.
    """
    folder = OUTPUTS / (f"quick{seed}" if quick else f"seed{seed}")
    artifact = folder / "checkpoints" / "last"
    if not finished(artifact, composed(EXPERIMENT, [f"seed={seed}", *overrides])):
        shutil.rmtree(folder, ignore_errors=True)  # cut off
        words = [f"experiment={EXPERIMENT}", f"seed={seed}", *overrides, f"hydra.run.dir={folder}"]
        console.print(f"$ python {shlex.join(['train.py', *words])}", style="dim", markup=False)
        subprocess.run([sys.executable, "train.py", *words], check=True)
    return artifact


def finished(artifact: Path, cfg: Mapping[str, Any]) -> bool:
    """Whether a training that `cfg` composes has ended there.

    Raises:
        HFAError: it is of another configuration.
    """
    if not (artifact / "config.json").exists():
        return False
    description = checkpoint.read_config(artifact)
    there = description["provenance"]
    changed = different(there["config"], cfg)
    if not changed and description["parameters"] != num_parameters(from_node(cfg["model"], "model", ModelConfig)):
        changed = ["version of the architecture"]
    if changed:
        raise HFAError(
            f"{artifact}: trained with another {', '.join(changed)}; move it away, or delete it to train again."
        )
    return bool(there["step"] == cfg["trainer"]["max_steps"])


def measure(
    seed: int, artifact: Path, lengths: list[int], ledger: Ledger, overrides: Sequence[str] = (), *, quick: bool
) -> None:
    """Measure every cell of one seed that the ledger lacks."""
    loaded = checkpoint.load(artifact)
    weights = checkpoint.read_config(artifact)["weights"]["sha256"][:16]
    tasks = sources(settings_of(f"seed={seed}", *overrides), loaded.tokenizer)
    there = provenance(composed(EXPERIMENT, [f"seed={seed}", *overrides]))
    del there["config"]
    for cell in cells(tasks, lengths, quick=quick):
        key = {"seed": seed, "task": cell.task, "length": cell.length, "examples": cell.examples, "weights": weights}
        if ledger.has(**key):
            continue
        began = time.process_time()
        found = training.evaluate_model(
            loaded.model,
            loaded.tokenizer,
            tasks[cell.task],
            lengths=(cell.length,),
            num_examples=cell.examples,
            depth_bins=8,
            chunk_size=2048,
            batch_size=max(1, _SIDE_BY_SIDE // cell.length),
        )
        cpu_s = round(time.process_time() - began, 1)
        count = found.recall.at(cell.task, cell.length)
        rates = {name: share.to_json() for name, share in count.retention().items()}
        ledger.append(
            {**key, "cpu_s": cpu_s, **rates, "exact": count.exact, "answers": count.answers}
            | {"recall": found.recall.to_json(), "provenance": there}
        )
        said = ", ".join(f"{name} {share.value:.2%}" for name, share in count.retention().items())
        console.print(f"  seed {seed}  {cell.task:18} {cell.length:9,}  {said} of {count.tokens:,}  ({cpu_s:.0f} s)")


def training_record(artifact: Path) -> dict[str, Any]:
    """What a finished training says about itself: its command, commit, seconds and newest metrics."""
    run: dict[str, Any] = json.loads((artifact.parents[1] / RUN).read_text(encoding="utf-8"))
    return run


def estimate(lengths: list[int], seeds: int, overrides: Sequence[str] = (), *, quick: bool) -> str:
    """How much there is to do."""
    settings = settings_of(*overrides)
    tokenizer = settings.tokenizer.build(settings.data.documents, settings.cache)
    planned = list(cells(sources(settings, tokenizer), lengths, quick=quick))
    trained = settings.trainer.max_steps * settings.loader.batch_size * settings.data.seq_len
    lines = [
        f"{length:>9,} tokens: {sum(cell.length == length for cell in planned):3} cells, "
        f"{sum(cell.tokens for cell in planned if cell.length == length) / 1e6:6.1f}M tokens"
        for length in sorted(lengths)
    ]
    total = sum(cell.tokens for cell in planned)
    lines.append(f"Each of {seeds} seeds: {trained / 1e6:.1f}M tokens of training, {total / 1e6:.1f}M of evaluation.")
    return "\n".join(lines)


def threads(number: int | None) -> None:
    """How many CPU threads this process may use."""
    if number:
        torch.set_num_threads(number)
