"""The language-model evaluation harness finds what we find."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from experiments.harness.__main__ import run
from experiments.harness.tasks import match
from hfa import checkpoint
from hfa.config import from_node
from hfa.data.tokenizers.byte import ByteTokenizer
from hfa.models import ModelConfig

pytest.importorskip("lm_eval")
CONF = Path(__file__).parents[3] / "conf" / "model"


@pytest.fixture
def artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    node = OmegaConf.to_container(OmegaConf.load(CONF / "simplemind.yaml"), resolve=True)
    assert isinstance(node, dict)
    node |= {"vocab_size": 257, "d_model": 32, "num_layers": 2, "num_heads": 2, "d_ff": 48}
    torch.manual_seed(0)
    model = from_node(node, "model", ModelConfig).build()  # type: ignore[type-abstract]
    return checkpoint.save(tmp_path / "ours", model=model, tokenizer=ByteTokenizer(), provenance={})


def test_the_same_bits_per_byte(artifact: Path, tmp_path: Path) -> None:
    found = run(artifact, ["stdlib", "wikitext", "lambada_openai", "vt"], length=900, count=2, folder=tmp_path)
    model, tokenizer = checkpoint.load(artifact).model, ByteTokenizer()
    nats, num_bytes = 0.0, 0
    for line in (tmp_path / "stdlib.jsonl").read_text().splitlines():
        text = json.loads(line)["text"]
        tokens = torch.tensor([[tokenizer.end_of_text, *tokenizer.encode(text)]])
        with torch.no_grad():
            logits, _ = model(tokens[:, :-1])
        nats += float(torch.nn.functional.cross_entropy(logits[0], tokens[0, 1:], reduction="sum"))
        num_bytes += len(text.encode())
    assert found["stdlib_900"]["bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-4)
    assert found["vt_900"]["match"] == 0
    assert found["wikitext"]["bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes, rel=0.2), "reformatted"
    assert found["lambada_openai"]["acc"] == 0


def test_the_score_is_rulers() -> None:
    assert match({"answers": ["ABCDE", "X", "no"]}, [" abcde x"]) == {"match": pytest.approx(2 / 3)}
