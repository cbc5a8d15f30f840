"""Tasks of the harness whose data is made here: nothing is downloaded.

Some are its own, by its own definition, with our text in place of a data set of the hub.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from hfa.config import from_node
from hfa.data.source import SourceConfig
from hfa.metrics.recall import find_answers
from hfa.types import IGNORE, Tokenizer

CONF = Path(__file__).parents[2] / "conf"
OWN = {  # tasks of the harness: its definition, and where a document of each has its text
    "wikitext": ("wikitext/wikitext.yaml", "page"),
    "lambada_openai": ("lambada/lambada_openai.yaml", "text"),
}
CACHE = Path("~/.cache/hfa").expanduser()


def make(name: str, tokenizer: Tokenizer, *, length: int, count: int, folder: Path) -> dict[str, Any] | str:
    """The harness's configuration of a task, or the path of a file that has it, with its documents beside it.

    Args:
        name: an option of ``conf/data``: text is scored in bits per byte, a recall task by what is generated; or one
            of `OWN`, which gets the text of ``data=stdlib``.
        tokenizer: of the checkpoint.
        length: tokens of a document.
        count: documents, at most.
        folder: gets them.
    """
    with initialize_config_dir(str(CONF), version_base="1.3"):
        node: Any = OmegaConf.to_container(
            compose(overrides=["+seed=0", f"+data={'stdlib' if name in OWN else name}", f"data.seq_len={length}"]),
            resolve=True,
        )
    source = from_node(node["data"], "data", SourceConfig).build(tokenizer, CACHE)
    there = source.num_examples("test")
    documents = [source.example(index, "test") for index in range(count if there is None else min(count, there))]
    if source.kind == "text":
        field = OWN[name][1] if name in OWN else "text"
        rows = [{field: tokenizer.decode(one.tokens.tolist())} for one in documents]
        scoring = _text_scoring()
    else:
        rows = []
        for one in documents:
            first = int((one.labels != IGNORE).argmax())
            answers = [one.labels[a.start : a.stop].tolist() for a in find_answers(one.gold[None])]
            rows.append(
                {
                    "prompt": tokenizer.decode(one.tokens[: first + 1].tolist()),
                    "answers": [tokenizer.decode(answer).strip() for answer in answers],
                    "room": 2 * (length - first),
                }
            )
        scoring = _recall_scoring(max(row["room"] for row in rows))
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path)}}, "test_split": "test"}
    if name in OWN:
        return _own(name, data, folder)
    return {"task": f"{name}_{length}", **data, **scoring}


def _own(name: str, data: dict[str, Any], folder: Path) -> str:
    """A file that takes everything but the data from the harness's own definition."""
    from lm_eval import tasks

    definition = Path(tasks.__file__).parent / OWN[name][0]
    nothing_else = {"dataset_name": None, "training_split": None, "validation_split": None}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"include": str(definition), **data, **nothing_else}), encoding="utf-8")
    return str(path)


def match(document: dict[str, Any], results: list[str]) -> dict[str, float]:
    """RULER's score: the share of the answers that are in what was generated."""
    said = results[0].lower()
    return {"match": sum(answer.lower() in said for answer in document["answers"]) / len(document["answers"])}


def _text_scoring() -> dict[str, Any]:
    measures = [{"metric": name} for name in ("bits_per_byte", "byte_perplexity")]
    return {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": measures,
    }


def _recall_scoring(room: int) -> dict[str, Any]:
    return {
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{answers}}",
        "process_results": match,
        "generation_kwargs": {"do_sample": False, "max_gen_toks": room, "until": []},
        "metric_list": [{"metric": "match", "aggregation": "mean", "higher_is_better": True}],
    }
