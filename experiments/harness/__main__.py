"""Run the language-model evaluation harness on a checkpoint: ``python -m experiments.harness latest``.

The checkpoint is exported as a model of `transformers` first, so that this is also what any other tool would see.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.entry import leave, program
from experiments.language.study import cpu
from hfa import checkpoint
from hfa.errors import HFAError
from hfa.training.provenance import provenance

TASKS = ("stdlib", "wikitext", "lambada_openai", "niah_single_1", "niah_multikey_2", "vt")
RESULTS = Path(__file__).parent / "results" / "harness.json"


def main(arguments: list[str] | None = None) -> int:
    """Export, evaluate, and show what the harness found; returns the exit code."""
    asked = parse(arguments)
    artifact = checkpoint.resolve(asked.checkpoint, architecture=None, root=asked.root)
    with tempfile.TemporaryDirectory() as folder:
        found = run(artifact, asked.tasks, length=asked.length, count=asked.count, folder=Path(folder))
    if out := RESULTS if asked.record else asked.out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record(artifact, asked, found), indent=1) + "\n", encoding="utf-8")
    table = Table(title=f"lm-evaluation-harness on {artifact}", title_style="bold")
    for column in ("task", "measure", "value", "standard error"):
        table.add_column(column, justify="left" if column in ("task", "measure") else "right")
    for task, measures in found.items():
        for name, value in measures.items():
            if not name.endswith("_stderr"):
                error = measures.get(f"{name}_stderr")
                table.add_row(task, name, f"{value:.4f}", f"{error:.4f}" if isinstance(error, float) else "")
    Console(highlight=False).print(table)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(
        prog=program(), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="latest | best | a folder")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="options of conf/data, or some of its own")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a document")
    parser.add_argument("--count", type=int, default=20, help="documents of a task, at most")
    parser.add_argument("--root", type=Path, default=Path("outputs"), help="where latest and best are looked for")
    parser.add_argument("--out", type=Path, help="keep the results as JSON")
    parser.add_argument("--record", action="store_true", help="keep them beside the study, whatever --out says")
    return parser.parse_args(arguments)


def record(artifact: Path, asked: argparse.Namespace, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What is kept: the results, how they were made, and how what they are of was trained."""
    made = checkpoint.read_config(artifact)["provenance"]
    facts = provenance({"seed": 0, "tasks": asked.tasks, "length": asked.length, "count": asked.count})
    facts["machine"] = {"processor": cpu()}
    facts["lm_eval"] = version("lm-eval")
    kept = ("commit", "dirty", "date", "seed", "step", "torch", "threads")
    training = {"model": checkpoint.read_config(artifact)["architecture"], **{key: made[key] for key in kept}}
    return {"provenance": facts, "training": training, "results": found}


def run(artifact: Path, tasks: list[str], *, length: int, count: int, folder: Path) -> dict[str, dict[str, Any]]:
    """What the harness measures: task to measure to value.

    Args:
        artifact: of ours.
        tasks: options of ``conf/data``.
        length: tokens of a document.
        count: documents of a task, at most.
        folder: for the exported model and the documents.

    Raises:
        HFAError: the harness is not installed.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
    except ImportError:
        raise HFAError("The harness is not installed; pip install 'hfa[harness]'.") from None
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from experiments.harness.tasks import make
    from hfa.export import export

    exported = export(artifact, folder / "model")
    tokenizer = checkpoint.load(artifact).tokenizer
    model = HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(exported),
        tokenizer=AutoTokenizer.from_pretrained(exported),
        max_length=2 * length,
        batch_size=1,
        device="cpu",
    )
    made = [make(name, tokenizer, length=length, count=count, folder=folder) for name in tasks]
    results = lm_eval.simple_evaluate(model=model, tasks=made, log_samples=False, bootstrap_iters=1000)
    return {
        task: {
            name.replace(",none", ""): value
            for name, value in measures.items()
            if isinstance(value, int | float) and name != "sample_len"
        }
        for task, measures in results["results"].items()
    }


if __name__ == "__main__":
    leave(main)
