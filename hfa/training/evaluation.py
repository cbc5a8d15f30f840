"""``mode=evaluate``: what a checkpoint predicts and recalls, at any length, whatever it was trained on."""

from __future__ import annotations

import csv
import itertools
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor

from hfa import checkpoint
from hfa.data.loader import Item, collate
from hfa.errors import ConfigError, DataError
from hfa.metrics.bits import BitsPerByte, LossByPosition
from hfa.metrics.group import is_right, right_nats
from hfa.metrics.plot import plot_loss, plot_overview, plot_recall
from hfa.metrics.recall import MEASURES, Cell, Count, Measure, Recall
from hfa.metrics.retention import Kept, Witness
from hfa.models import LanguageModel
from hfa.models.audit import audit, can_audit
from hfa.models.memory import Memory
from hfa.models.state import State
from hfa.training.answering import find_free, find_matches
from hfa.training.artifact import as_trained, load_artifact
from hfa.training.fit import started_loggers
from hfa.training.loggers import media
from hfa.training.provenance import provenance
from hfa.training.record import recorded
from hfa.training.report import show
from hfa.training.settings import EvaluationSettings, read_settings
from hfa.types import IGNORE, NOWHERE, Batch, Example, Source, Split, Tokenizer

log = logging.getLogger(__name__)

_LOGITS = 1 << 25  # numbers in the logits of one piece: 128 MiB
_SIDE_BY_SIDE = 1 << 17  # tokens of the examples run together: a state has something of every one of them
_BY_DEPTH: dict[Measure, str] = {  # titles of heat-maps
    "exact": "Exact recall, % of answers",
    "storage": "Evidence that every memory held as it was written, %",
    "selection": "Evidence that was read when it was asked for, %",
    "answer": "Tokens of answers that were the likeliest, %",
    "match": "Answers found in what the model wrote, %",
}
_FIRST_BIN = 64  # tokens in the first bin of the loss by position; the others double


class Evaluation(NamedTuple):
    """What was measured.

    Attributes:
        bits: bits per byte by (text source, length).
        loss: by position, of each text source at its greatest length.
        recall: exact answers by (task, length, depth), and where models have an exact memory what was stored in it
            and selected from it.
        forms: of tasks whose length decides on their form, by (task, length): how many examples had which.
    """

    bits: dict[tuple[str, int], BitsPerByte]
    loss: dict[str, LossByPosition]
    recall: Recall
    forms: dict[tuple[str, int], Counter[str]]

    def answers(self) -> Iterator[tuple[str, int, Count]]:
        """The answers of each task at each length, over all depths."""
        for task in self.recall.tasks():
            for length in self.recall.lengths(task):
                yield task, length, self.recall.at(task, length)

    def to_json(self) -> dict[str, Any]:
        bits = [
            {"source": name, "length": length, "bits_per_byte": counted.value, **counted.to_json()}
            for (name, length), counted in self.bits.items()
        ]
        cells = [cell._asdict() for cell in self.recall.cells()]
        recall = [
            {
                "task": task,
                "length": length,
                "accuracy": count.accuracy,
                "interval": list(count.interval),
                "answers": count.answers,
                **({"forms": dict(self.forms[task, length])} if (task, length) in self.forms else {}),
                "retention": {name: share.to_json() for name, share in count.retention().items()},
            }
            for task, length, count in self.answers()
        ]
        return {
            "bits_per_byte": bits,
            "recall": recall,
            "recall_by_depth": self.recall.to_json(),
            "retention": cells,
            "loss_by_position": {name: counted.to_json() for name, counted in self.loss.items()},
        }

    def metrics(self) -> dict[str, float]:
        """One number for each source and length, as loggers and tables want them."""
        bits = {f"test/bits_per_byte/{name}/{length}": bits.value for (name, length), bits in self.bits.items()}
        recall = {f"test/recall/{task}/{length}": count.accuracy for task, length, count in self.answers()}
        audited = {
            f"test/{name}/{task}/{length}": share.value
            for task, length, count in self.answers()
            for name, share in count.retention().items()
            if name != "answer"
        }
        return bits | recall | audited


def evaluate(cfg: Mapping[str, Any], run_dir: Path, overrides: Sequence[str] = ()) -> dict[str, float]:
    """Measure the checkpoint that `cfg` names on the data that it names.

    Architecture, sizes and tokenizer are the checkpoint's, whatever ``model`` and ``tokenizer`` were composed.

    Args:
        cfg: the resolved configuration, plain data.
        run_dir: gets evaluation.json, retention.csv, plots/, run.json and, as it was composed, config.yaml.
        overrides: of the command line; those of the model have to agree with the checkpoint.

    Returns:
        :meth:`Evaluation.metrics`.

    Raises:
        HFAError: what the user has to change.
    """
    settings = read_settings(cfg, EvaluationSettings)
    settings.trainer.prepare()
    with recorded(run_dir, cfg) as record:
        device = "cuda" if settings.trainer.device_kind == "gpu" else "cpu"
        artifact = load_artifact(settings, cfg, overrides, device)
        source = settings.data.build(artifact.tokenizer, settings.cache)
        cfg = as_trained(cfg, artifact, overrides)
        _warn_of_other_documents(artifact, cfg, source)
        with started_loggers(settings, cfg, run_dir, None) as loggers:
            record["metrics"] = _evaluate(settings, cfg, run_dir, artifact, source, loggers)
    return dict(record["metrics"])


def _warn_of_other_documents(artifact: checkpoint.Artifact, cfg: Mapping[str, Any], source: Source) -> None:
    """Say so when the data that a checkpoint was trained with has come to hold something else."""
    before = (artifact.provenance.get("material") or {}).get("documents", source.fingerprint)
    trained = (artifact.provenance.get("config") or {}).get("data") or {}
    if before != source.fingerprint and trained.get("name") == cfg["data"].get("name"):
        log.warning(
            "The documents or splits of data %s are others than those that %s was trained with: "
            "it may have been trained on some that are tested now",
            source.name,
            artifact.path,
        )


def _evaluate(
    settings: EvaluationSettings,
    cfg: Mapping[str, Any],
    run_dir: Path,
    artifact: checkpoint.Artifact,
    source: Source,
    loggers: Sequence[Logger],
) -> dict[str, float]:
    folder, name = artifact.path, artifact.model.config.title
    step = int(artifact.provenance.get("step") or 0)
    log.info("Evaluating %s from %s", name, folder)
    exact = settings.trainer.device_kind == "gpu" and can_audit(artifact.model)
    if exact:
        log.warning("A GPU looks at every key: model.num_trees, beam, leaf_size and num_ranked are not measured.")

    def keep(found: Evaluation) -> None:  # the longest may not fit into memory, or be cut off
        report = {
            "checkpoint": str(folder),
            "training": artifact.provenance,
            "exact_retrieval": exact,
            **provenance(cfg, documents=source.fingerprint),
            **found.to_json(),
        }
        path = run_dir / "evaluation.json"
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(report, indent=2), encoding="utf-8")
        fresh.replace(path)

    found = evaluate_model(
        artifact.model,
        artifact.tokenizer,
        source,
        lengths=settings.evaluate.lengths or (source.seq_len,),
        num_examples=settings.evaluate.num_examples,
        text_tokens=settings.evaluate.text_tokens,
        depth_bins=settings.evaluate.depth_bins,
        chunk_size=settings.evaluate.chunk_size,
        batch_size=settings.evaluate.batch_size,
        generate=settings.evaluate.generate,
        on_length=keep,
    )
    metrics = found.metrics()
    tables = write_table(found, run_dir / "retention.csv")
    plots = draw(found, name, run_dir / "plots")
    for logger in loggers:
        logger.log_metrics(metrics, step)
    for place in media(loggers):
        if cells := list(found.recall.cells()):
            place.show_table("retention", Cell._fields, cells, step)
        for path in plots:
            place.show_picture(path.stem, path, step)
    show(found, title=f"{name} from {folder}", files=[run_dir / "evaluation.json", *tables, *plots])
    return metrics


def evaluate_model(
    model: LanguageModel,
    tokenizer: Tokenizer,
    source: Source,
    *,
    lengths: tuple[int, ...],
    num_examples: int,
    text_tokens: int | None = None,
    depth_bins: int,
    chunk_size: int,
    batch_size: int,
    generate: bool = False,
    split: Split = "test",
    on_length: Callable[[Evaluation], None] | None = None,
) -> Evaluation:
    """Measure `model` on every part of `source` at every length.

    An answer is right when every token of it is the likeliest one given the tokens before it (teacher forcing,
    which for exact answers is what greedy decoding gives).

    Args:
        model: on its device; it is run in eval mode with packed weights, and left as it came.
        tokenizer: the one it was trained with.
        source: what to measure on; ``at_length`` makes its examples longer or shorter.
        lengths: tokens per example.
        num_examples: of each recall task at each length, and without `text_tokens` of each text, which may have fewer.
        text_tokens: of each text at each length, as far as whole windows go: from its beginning, so the same text.
        depth_bins: parts of the context that recall is counted in.
        chunk_size: tokens run at once; the state is carried from piece to piece, and activations stay small.
        batch_size: examples run side by side, at most; fewer where they are long, since each has a state of its own,
            which grows with its length in a model that has an exact memory.
        generate: also let the model write the answers by itself, in tasks in text that end with them, and look for each
            in what it wrote: RULER's score.
        split: of the data.
        on_length: is handed what was measured so far, after every length.

    Raises:
        ConfigError: the data has token ids that the model lacks, or a task does not fit into a length.
        DataError: likewise, where that depends on the text of a task.
    """
    check_ids(model, source)
    byte_lengths = tokenizer.byte_lengths()
    found = Evaluation({}, {}, Recall(depth_bins), {})
    training, packs = model.training, not model.is_packed and model.pack()
    model.eval()
    try:
        for length in sorted(set(lengths)):
            together = max(1, min(batch_size, _SIDE_BY_SIDE // length))
            for name, part in parts_at(source, length).items():
                by_position = LossByPosition.doubling(length, _FIRST_BIN)
                bits = BitsPerByte()
                by_tokens = text_tokens if part.kind == "text" else None
                count = num_examples if by_tokens is None else max(1, by_tokens // length)
                for examples in _examples(part, count, together, split):
                    batch = collate([Item(example, 0) for example in examples])
                    if forms := [example.form for example in examples if example.form]:
                        found.forms.setdefault((name, length), Counter()).update(forms)
                    asked = find_free(batch) if generate and part.vocab_size == tokenizer.vocab_size else None
                    nats, correct, kept, state = predict(model, batch, chunk_size, resume_at=asked)
                    if part.kind == "recall":
                        matched = None if asked is None else find_matches(model, tokenizer, batch, state, asked)
                        found.recall.update(name, correct, batch.gold, kept, matched)
                    else:
                        bits.update(nats, batch.labels, byte_lengths)
                        by_position.update(nats, batch.labels, byte_lengths)
                if part.kind == "text" and bits.tokens:
                    found.bits[name, length], found.loss[name] = bits, by_position
                elif part.kind == "text":
                    log.warning("%s: its %s documents are shorter than %s tokens: not measured", name, split, length)
            if on_length and (found.bits or found.recall.tasks()):
                on_length(found)
    finally:
        model.train(training)
        if packs:
            model.unpack()
    if not found.bits and not found.recall.tasks():
        raise DataError(
            f"{source.name}: no {split} document is as long as {min(lengths)} tokens; measure shorter ones."
        )
    return found


def check_ids(model: LanguageModel, source: Source) -> None:
    """Whether the model knows every token id that the data has.

    Raises:
        ConfigError: it does not.
    """
    if source.vocab_size > model.config.vocab_size:
        expected = f"at most {model.config.vocab_size}, the checkpoint's ids"
        raise ConfigError("data.vocab_size", source.vocab_size, expected, "choose other data or another checkpoint")


def parts_at(source: Source, length: int) -> dict[str, Source]:
    """The parts of a source, with examples of `length` tokens.

    Raises:
        ConfigError: one does not fit into that.
    """
    try:
        return source.at_length(length).parts()
    except ConfigError as error:
        expected = f"{error.expected} (data.{error.key})"
        raise ConfigError("evaluate.lengths", length, expected, error.remedy) from None


class Predicted(NamedTuple):
    """How the labels of a batch were predicted, on the CPU."""

    nats: Tensor  # float32 [B, T], 0 where nothing is scored
    correct: Tensor  # bool [B, T], the likeliest token was the label, or another of its group
    kept: Kept | None  # what became of the evidence; None in a model without anchor layers
    resumed: State | None  # the state after the first `resume_at` tokens


@torch.no_grad()
def predict(model: LanguageModel, batch: Batch, chunk_size: int, resume_at: int | None = None) -> Predicted:
    """Predict each label of a batch.

    Only the pieces with labels whose evidence is known are audited: what the others read is nobody's answer.

    Args:
        model: in eval mode.
        batch: on any device.
        chunk_size: tokens run at once.
        resume_at: a position whose state is wanted; None wants none.
    """
    device = next(model.parameters()).device
    tokens, labels, group = (part.to(device) for part in (batch.tokens, batch.labels, batch.group))
    nats, correct = torch.zeros(tokens.shape), torch.zeros(tokens.shape, dtype=torch.bool)
    positions = max(1, _LOGITS // model.config.vocab_size)
    last = int((labels != IGNORE).any(0).nonzero().max()) + 1 if (labels != IGNORE).any() else 0
    kept, witness, state, resumed = Kept.nothing(batch.gold), Witness(batch.gold), None, None
    told = can_audit(model)
    for start, stop in itertools.pairwise(
        sorted({*range(0, last, chunk_size), last, *([resume_at] if resume_at else ())})
    ):
        piece = slice(start, stop)
        scored = (labels[:, piece] != IGNORE).any(0).nonzero()
        first = int(scored[0]) if len(scored) else stop - start - 1  # what is before it nobody asks for
        if not told or (batch.gold[:, piece] == NOWHERE).all():
            features, state = model.hidden(tokens[:, piece], state, last=stop - start - first)
            if told:
                witness.note(list(memories(state)), piece)
        else:
            with audit(model) as trail:
                features, state = model.hidden(tokens[:, piece], state, last=stop - start - first)
            held = list(memories(state))
            witness.note(held, piece)
            witness.check(kept, held, piece)
            kept.add_selected(trail.reads)
        rows, columns = (labels[:, piece] != IGNORE).nonzero(as_tuple=True)
        for row, column in zip(rows.split(positions), columns.split(positions), strict=True):
            logits = model.head(features[row, column - first]).float()
            column = start + column
            nats[row.cpu(), column.cpu()] = right_nats(logits, row, column, labels, group).cpu()
            correct[row.cpu(), column.cpu()] = is_right(logits.argmax(-1), row, column, labels, group).cpu()
        if stop == resume_at:
            resumed = state
    return Predicted(nats, correct, kept if told else None, resumed)


def memories(state: State) -> Iterator[Memory]:
    """The exact memories in a model's state, one an anchor layer."""
    if isinstance(state, Memory):
        yield state
    elif isinstance(state, tuple):
        for inner in state:
            yield from memories(inner)


def write_table(found: Evaluation, path: Path) -> list[Path]:
    """Every rate by task, length and depth as a CSV file; none where nothing was asked."""
    cells = list(found.recall.cells())
    if not cells:
        return []
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Cell._fields)
        writer.writerows(cells)
    return [path]


def draw(found: Evaluation, name: str, folder: Path) -> list[Path]:
    """The plots of what was measured; only those that have something to show."""
    plots = []
    if len(found.recall.tasks()) > 1:
        plots.append(plot_overview({name: found.recall}, folder / "retention.png", f"Retention of {name}, %"))
    if found.recall.tasks():
        for measure in MEASURES:
            if any(count.share(measure).whole for *_, count in found.answers()):
                path = folder / ("recall.png" if measure == "exact" else f"{measure}.png")
                plots.append(plot_recall({name: found.recall}, path, _BY_DEPTH[measure], measure=measure))
    if found.loss:
        losses = {f"{name} on {text}": loss for text, loss in found.loss.items()}
        plots.append(plot_loss(losses, folder / "loss_by_position.png"))
    return plots


def _examples(part: Source, num_examples: int, batch_size: int, split: Split) -> Iterator[list[Example]]:
    there = part.num_examples(split)
    count = num_examples if there is None else min(num_examples, there)
    for start in range(0, count, batch_size):
        indices = range(start, min(start + batch_size, count))
        yield [part.example(index, split) for index in indices]
