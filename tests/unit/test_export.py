"""Our artifacts as models of transformers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from hfa import checkpoint
from hfa.config import from_node
from hfa.data.tokenizers.bpe import BPEConfig
from hfa.data.tokenizers.byte import ByteTokenizer
from hfa.errors import ConfigError
from hfa.models import ModelConfig
from hfa.types import Tokenizer

transformers = pytest.importorskip("transformers")
CONF = Path(__file__).parents[2] / "conf" / "model"
SMALL = {
    "vocab_size": 300, "d_model": 32, "num_layers": 3, "num_heads": 2, "d_ff": 48, "dropout": 0.0, "num_kv_heads": 1,
    "window": 4, "block_size": 2, "num_retrieved": 4, "num_trees": 2, "beam": 2, "leaf_size": 3,
    "num_channels": 16, "active_channels": 4, "chunk_size": 8,
}  # fmt: skip
TEXT = "def f(x):\n    return 'né <|endoftext|>'\n"


def artifact(folder: Path, name: str, tokenizer: Tokenizer | None = None) -> checkpoint.Artifact:
    node: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"), resolve=True)
    node |= {key: value for key, value in SMALL.items() if key in node}
    torch.manual_seed(0)
    model = from_node(node, "model", ModelConfig).build()  # type: ignore[type-abstract]
    checkpoint.save(folder, model=model, tokenizer=tokenizer or ByteTokenizer(), provenance={})
    return checkpoint.load(folder)


@pytest.fixture(params=["hfa", "simplemind", "transformer"])
def exported(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[checkpoint.Artifact, Any]:
    from hfa.export import export

    ours = artifact(tmp_path / "ours", request.param)
    folder = export(tmp_path / "ours", tmp_path / "theirs")
    return ours, transformers.AutoModelForCausalLM.from_pretrained(folder)


@torch.no_grad()
def greedy(model: Any, prompt: torch.Tensor, count: int) -> list[int]:
    logits, state = model(prompt)
    said, logits = [], logits[:, -1]
    for _ in range(count):
        said.append(int(logits.argmax(-1)))
        logits, state = model.step(logits.argmax(-1), state)
    return said


@torch.no_grad()
def test_the_same_logits_and_the_same_words(exported: tuple[checkpoint.Artifact, Any]) -> None:
    ours, theirs = exported
    prompt = torch.tensor([list(range(40, 75))])
    assert torch.equal(theirs(prompt).logits, ours.model(prompt)[0])
    with_labels = theirs(prompt, labels=prompt)
    expected = torch.nn.functional.cross_entropy(ours.model(prompt)[0][0, :-1], prompt[0, 1:])
    torch.testing.assert_close(with_labels.loss, expected)
    expected_words = greedy(ours.model, prompt, 12)
    for use_cache in (True, False):
        said = theirs.generate(prompt, max_new_tokens=12, min_new_tokens=12, do_sample=False, use_cache=use_cache)
        assert said[0, 35:].tolist() == expected_words


def test_fine_tuning_trains_the_index_too(tmp_path: Path) -> None:
    artifact(tmp_path / "artifact", "hfa")
    from hfa.export import export

    folder = export(tmp_path / "artifact", tmp_path / "exported")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).train()
    prompt = torch.randint(257, (2, 40), generator=torch.Generator().manual_seed(0))
    model(prompt, labels=prompt).loss.backward()
    learnt = [name for name, weight in model.named_parameters() if ".index." in name and weight.grad is not None]
    assert learnt


def writes(folder: Path, first: str = "", trust: bool = False) -> str:
    """Python that loads an export and continues a prompt by 12 tokens."""
    return f"""
import torch
{first}
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(folder)!r}, trust_remote_code={trust})
said = model.generate(torch.arange(40, 75)[None], max_new_tokens=12, min_new_tokens=12, do_sample=False)
print(type(model).__name__, said.shape)
"""


WRITTEN = "ExportedForCausalLM torch.Size([1, 47])"


def test_it_writes_in_a_process_that_knows_nothing_else(tmp_path: Path) -> None:
    """`from_pretrained` imports and builds our models while tensors go to no device at all."""
    from hfa.export import export

    artifact(tmp_path / "ours", "hfa")
    script = writes(export(tmp_path / "ours", tmp_path / "theirs"), first="import hfa.export")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == WRITTEN, done.stderr[-2000:]


@torch.no_grad()
def test_what_it_does_not_have_is_not_passed_over(exported: tuple[checkpoint.Artifact, Any]) -> None:
    _, theirs = exported
    prompt = torch.arange(40, 60)[None]
    with pytest.raises(ValueError, match="output_hidden_states: a model of hfa has no such argument"):
        theirs(prompt, output_hidden_states=True)
    with pytest.raises(ValueError, match="inputs_embeds: a model of hfa has no such argument"):
        theirs(prompt, inputs_embeds=torch.zeros(1, 20, 32))
    assert torch.equal(theirs(prompt, return_dict=False)[0], theirs(prompt).logits)
    assert not theirs.accepts_loss_kwargs


@torch.no_grad()
def test_prompts_of_other_lengths_beams_and_several_answers(exported: tuple[checkpoint.Artifact, Any]) -> None:
    ours, theirs = exported
    prompts = [torch.arange(50, 62), torch.arange(60, 65)]
    padded = torch.full((2, 12), 256)
    padded[0], padded[1, 7:] = prompts
    mask = (padded != 256).long()
    said = theirs.generate(padded, attention_mask=mask, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    for row, prompt in enumerate(prompts):
        assert said[row, 12:].tolist() == greedy(ours.model, prompt[None], 8)
    beams = theirs.generate(prompts[0][None], max_new_tokens=5, num_beams=3, num_return_sequences=2, do_sample=False)
    assert beams.shape == (2, 17)
    with pytest.raises(ValueError, match="pad on the left"):
        theirs(padded, attention_mask=mask.flip(1))
    with pytest.raises(ValueError, match=r"attention_mask: got \(2, 9\), expected \(2, 12\)"):
        theirs(padded, attention_mask=mask[:, :9])
    with pytest.raises(ValueError, match="past_key_values: got a tuple"):
        theirs(padded, past_key_values=("not", "a cache"))
    cache = theirs(padded, attention_mask=mask, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="zeros after the first call"):
        theirs(padded, attention_mask=torch.cat([mask, mask], dim=1), past_key_values=cache)


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_a_tokenizer_keeps_its_ids(kind: str, tmp_path: Path) -> None:
    from hfa.export import export

    ours = ByteTokenizer() if kind == "byte" else BPEConfig(vocab_size=280, train_bytes=9999).build(lambda: [TEXT] * 9)
    artifact(tmp_path / "ours", "transformer", ours)
    theirs = transformers.AutoTokenizer.from_pretrained(export(tmp_path / "ours", tmp_path / "theirs"))
    for text in (TEXT, "x <|unused270|> y", f"x {theirs.eos_token} y"):
        assert theirs(text)["input_ids"] == ours.encode(text)
    assert theirs.decode(ours.encode(TEXT)) == TEXT
    assert theirs.eos_token_id == ours.end_of_text
    assert len(theirs) == ours.vocab_size


def test_the_folder_says_by_itself_where_its_code_is(tmp_path: Path) -> None:
    artifact(tmp_path / "ours", "hfa")
    made = subprocess.run(
        [sys.executable, "-m", "hfa.export", str(tmp_path / "ours"), str(tmp_path / "theirs")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert made.stdout.strip() == str(tmp_path / "theirs")
    code = writes(tmp_path / "theirs", trust=True)
    environment = {
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
        "PATH": "",
        "PYTHONPATH": str(CONF.parents[1]),
    }
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert loaded.stdout.strip() == WRITTEN
    wrong = subprocess.run([sys.executable, "-m", "hfa.export", "nowhere", "x"], capture_output=True, text=True)
    assert (wrong.returncode, "nowhere: no artifact here" in wrong.stderr) == (2, True)


def test_nothing_is_written_over_that_no_export_wrote(tmp_path: Path) -> None:
    from hfa.export import export

    ours = artifact(tmp_path / "ours", "transformer").path
    with pytest.raises(ConfigError, match="a folder that is empty, of an earlier export, or not there yet"):
        export(ours, ours)
    checkpoint.load(ours)
    assert export(ours, tmp_path / "theirs") == export(ours, tmp_path / "theirs")
