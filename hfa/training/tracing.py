"""``mode=audit``: why a checkpoint answers as it does, from what it read to the leaves where that was found."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.markup import escape

from hfa.data.loader import Item, collate
from hfa.errors import DataError
from hfa.metrics.plot_read import most_read, plot_reads
from hfa.metrics.recall import find_answers
from hfa.models import LanguageModel
from hfa.models.audit import Explanation, audit
from hfa.training.artifact import as_trained, load_artifact
from hfa.training.evaluation import check_ids, parts_at, predict
from hfa.training.provenance import provenance
from hfa.training.record import recorded
from hfa.training.report import console
from hfa.training.settings import EvaluationSettings, read_settings
from hfa.types import Example, Source, Tokenizer

log = logging.getLogger(__name__)

_AROUND = 14  # tokens shown before a position, and half as many after it


class Case(NamedTuple):
    """One answer, and how its first wrong token (or its first, if all are right) was arrived at."""

    task: str
    position: int  # of the query
    gold: int
    right: bool
    reads: list[Explanation]  # of each anchor layer

    @property
    def verdict(self) -> str:
        """Of the layer that gives the evidence most weight."""
        best = max(self.reads, key=lambda read: (read.weight(self.gold), read.selected(self.gold)))
        return f"layer {best.layer}: {best.verdict(self.gold)}"


def explain(cfg: Mapping[str, Any], run_dir: Path, overrides: Sequence[str] = ()) -> dict[str, float]:
    """Audit one answer of every recall task in the data: the first wrong one, or the first if none is.

    On the CPU, wherever the checkpoint is used otherwise: a GPU searches without the leaves that are shown.

    Args:
        cfg: the resolved configuration; ``evaluate.lengths`` (its greatest), ``num_examples`` and ``chunk_size`` count.
        run_dir: gets audit.json and a picture for each task.
        overrides: of the command line; those of the model have to agree with the checkpoint.

    Returns:
        for each task, whether the audited answer was right.

    Raises:
        HFAError: what the user has to change.
    """
    settings = read_settings(cfg, EvaluationSettings)
    settings.trainer.prepare()
    with recorded(run_dir, cfg) as record:
        artifact = load_artifact(settings, cfg, overrides, "cpu")
        source = settings.data.build(artifact.tokenizer, settings.cache)
        length = max(settings.evaluate.lengths or (source.seq_len,))
        check_ids(artifact.model, source)
        tasks = {name: part for name, part in parts_at(source, length).items() if part.kind == "recall"}
        if not tasks:
            raise DataError(f"data={source.name} asks nothing; an audit needs a recall task, e.g. data=needle.")
        out, report, found = console(), [], {}
        for name, part in tasks.items():
            example, case = find_case(
                artifact.model, name, part, settings.evaluate.num_examples, settings.evaluate.chunk_size
            )
            if not case.reads:
                raise DataError(
                    f"{artifact.path} has no anchor layers to audit; choose one that has, as with model=hfa."
                )
            said = f"{name} at {length:,}: {'right' if case.right else 'wrong'}. {case.verdict}"
            texts = _texts(example, case, artifact.tokenizer)
            reads = [read.to_json() for read in case.reads]
            picture = plot_reads(reads, case.gold, texts, run_dir / "plots" / f"audit_{name}.png", said)
            report.append({**case._asdict(), "reads": reads, "verdict": case.verdict, "length": length})
            found[f"audit/{name}"] = float(case.right)
            out.print(escape(said), soft_wrap=True, highlight=False)
            out.print(str(picture), soft_wrap=True, highlight=False)
        record["metrics"] = found
        facts = provenance(as_trained(cfg, artifact, overrides))
        whole = {"checkpoint": str(artifact.path), "training": artifact.provenance, **facts, "cases": report}
        (run_dir / "audit.json").write_text(json.dumps(whole, indent=1), encoding="utf-8")
    return found


def find_case(
    model: LanguageModel, task: str, part: Source, num_examples: int, chunk_size: int
) -> tuple[Example, Case]:
    """The first wrong answer among the examples, or the first answer of all."""
    model.eval()
    first: tuple[Example, int, bool] | None = None
    for index in range(num_examples):
        example = part.example(index, "test")
        correct = predict(model, collate([Item(example, 0)]), chunk_size).correct[0].numpy()
        for answer in find_answers(example.gold[None]):
            wrong = np.flatnonzero(~correct[answer.start : answer.stop])
            case = (example, answer.start + int(wrong[0]) if len(wrong) else answer.start, not len(wrong))
            if len(wrong):
                return example, _case(model, task, *case, chunk_size)
            first = first or case
    assert first  # every example of a recall task asks something
    return first[0], _case(model, task, *first, chunk_size)


@torch.no_grad()
def _case(model: LanguageModel, task: str, example: Example, position: int, right: bool, chunk_size: int) -> Case:
    tokens = torch.from_numpy(example.tokens[None, : position + 1])
    start, state = position // chunk_size * chunk_size, None
    if start:
        for piece in tokens[:, :start].split(chunk_size, dim=1):
            _, state = model.hidden(piece, state, last=1)
    with audit(model) as trail:
        model.hidden(tokens[:, start:], state)
    latest = {read.layer: read for read in trail.reads}  # of every layer, the piece that ends with the query
    reads = [read.explain(0, read.chosen.shape[2] - 1) for read in latest.values()]
    return Case(task, position, int(example.gold[position]), right, reads)


def _texts(example: Example, case: Case, tokenizer: Tokenizer) -> dict[int, str]:
    """What stands around each token that a picture names, the token itself in brackets."""
    return {
        position: f"{_text(example, tokenizer, position - _AROUND, position)}"
        f"[{_text(example, tokenizer, position, position + 1)}]"
        f"{_text(example, tokenizer, position + 1, position + 1 + _AROUND // 2)}"
        for read in case.reads
        for position, _ in most_read(read.to_json())
    }


def _text(example: Example, tokenizer: Tokenizer, start: int, stop: int) -> str:
    tokens = example.tokens[max(0, start) : stop]
    if tokens.size and tokens.max() >= tokenizer.vocab_size:  # a task with ids of its own
        return " ".join(map(str, tokens[-4:].tolist()))
    return tokenizer.decode(tokens.tolist()).replace("\n", "↵")
