"""The artifact: what is saved is what is loaded, and nothing torn or foreign gets in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hfa import checkpoint
from hfa.config import from_node
from hfa.data.tokenizers.byte import ByteTokenizer
from hfa.errors import CheckpointError
from hfa.models import LanguageModel, ModelConfig

SIZES = {
    "_target_": "hfa.models.simplemind.SimpleMindConfig", "vocab_size": 257, "d_model": 16, "num_layers": 1,
    "num_heads": 2, "d_ff": 16, "dropout": 0.1, "max_seq_len": 100, "num_channels": 8, "active_channels": 2,
    "router": "dynamic", "aggregation": "learnable", "signed": True, "shared_channel": False, "output_gate": True,
    "conv_width": 4, "chunk_size": 16,
}  # fmt: skip

STORED = {key: value for key, value in SIZES.items() if key != "_target_"}  # as an artifact has them


def fresh_model(seed: int = 0) -> LanguageModel:
    torch.manual_seed(seed)
    return from_node(SIZES, "model", ModelConfig).build()


def save(folder: Path, seed: int = 0) -> Path:
    tokenizer = ByteTokenizer()
    provenance = {"commit": "abc", "seed": seed, "metrics": {"val/loss": 1.5}}
    return checkpoint.save(folder, model=fresh_model(seed), tokenizer=tokenizer, provenance=provenance)


def test_a_round_trip_keeps_logits_tokenizer_and_provenance(tmp_path: Path) -> None:
    artifact = checkpoint.load(save(tmp_path / "last"))
    tokens = torch.tensor([artifact.tokenizer.encode("flow")])
    with torch.no_grad():
        assert torch.equal(artifact.model(tokens)[0], fresh_model().eval()(tokens)[0])
    assert not artifact.model.training
    assert artifact.provenance["metrics"] == {"val/loss": 1.5}
    assert artifact.tokenizer.decode(artifact.tokenizer.encode("flow")) == "flow"
    assert "simplemind" in (tmp_path / "last" / "README.md").read_text()


def test_saving_again_replaces(tmp_path: Path) -> None:
    save(tmp_path / "last", seed=0)
    save(tmp_path / "last", seed=1)
    assert checkpoint.load(tmp_path / "last").provenance["seed"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_a_save_cut_off_between_its_renames_is_still_found(tmp_path: Path) -> None:
    run = tmp_path / "run" / "checkpoints"
    save(run / "last").rename(run / ".last.new")
    assert checkpoint.resolve("latest", architecture=None, root=tmp_path) == run / "last"
    assert checkpoint.resolve(str(tmp_path / "run"), architecture=None, root=tmp_path) == run / "last"
    assert checkpoint.load(run / "last").provenance["seed"] == 0
    save(run / "last", seed=1)
    assert checkpoint.load(run / "last").provenance["seed"] == 1
    assert [path.name for path in run.iterdir()] == ["last"]


def test_latest_is_the_newest_of_the_architecture(tmp_path: Path) -> None:
    older, newer = save(tmp_path / "a" / "last"), save(tmp_path / "b" / "last")
    save(tmp_path / "b" / "best")
    assert checkpoint.resolve("latest", architecture="simplemind", root=tmp_path) == newer
    assert checkpoint.resolve("best", architecture=None, root=tmp_path) == tmp_path / "b" / "best"
    assert checkpoint.resolve(str(older), architecture=None, root=tmp_path) == older
    with pytest.raises(CheckpointError, match=r"no hfa artifact below .*; train one with `python train.py model=hfa`"):
        checkpoint.resolve("latest", architecture="hfa", root=tmp_path)


@pytest.mark.parametrize("spec", ["", ".", "/"])
def test_a_folder_without_a_name_is_a_folder(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        checkpoint.load(checkpoint.resolve(spec, architecture=None, root=tmp_path))


def test_what_may_not_be_read_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a run by another user; whoever runs the tests may read everything, so it is the reading that refuses."""
    mine, others = (tmp_path / run / "checkpoints" / "last" for run in ("mine", "others"))
    for folder in (mine, others):
        save(folder)
    read = Path.read_text

    def refusing(path: Path, **options: Any) -> str:
        if others in path.parents:
            raise PermissionError(13, "Permission denied")
        return read(path, **options)

    monkeypatch.setattr(Path, "read_text", refusing)
    assert checkpoint.resolve("latest", architecture="simplemind", root=tmp_path) == mine
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(others)


def test_other_hidden_folders_are_nobodys_siblings(tmp_path: Path) -> None:
    save(tmp_path / "run" / "last").rename(tmp_path / ".backup")
    with pytest.raises(CheckpointError, match="no artifact below"):
        checkpoint.resolve("latest", architecture=None, root=tmp_path)


def rewrite(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def torn_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def changed_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (torn_weights, "the file is torn or was changed"),
        (changed_weights, "the file is torn or was changed"),
        (lambda folder: (folder / "model.safetensors").unlink(), "is missing"),
        (lambda folder: (folder / "config.json").unlink(), "no artifact here"),
        (lambda folder: (folder / "config.json").write_text("{"), "torn or foreign"),
        (lambda folder: (folder / "config.json").write_text("[" * 100_000), "torn or foreign"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer"),
        (lambda folder: rewrite(folder, format=2), "artifact format 2, this version reads 1"),
        (lambda folder: rewrite(folder, architecture="os.system"), "architecture 'os.system' is not one of"),
        (lambda folder: rewrite(folder, architecture=["hfa"]), "is not one of"),
        (lambda folder: rewrite(folder, model={**STORED, "_target_": "os.system"}), "may name no _target_"),
        (lambda folder: rewrite(folder, model={**STORED, "d_model": 32}), "disagree"),
        (lambda folder: rewrite(folder, model={**STORED, "num_layers": 5}), "not those of this version's"),
        (lambda folder: rewrite(folder, model={"d_model": 32}), "disagree"),
        (lambda folder: rewrite(folder, model={**STORED, "d_model": 10**30}), "disagree"),
        (lambda folder: rewrite(folder, provenance={"step": "many"}), "a step that is no number"),
        (
            lambda folder: rewrite(folder, model={**STORED, "d_ff": {"_target_": "hfa.training.fit.X"}}),
            "may name no _target_",
        ),
        (lambda folder: rewrite(folder, model={**STORED, "d_ff": [{"_target_": "hfa.x.Y"}]}), "may name no _target_"),
        (lambda folder: rewrite(folder, provenance=None), "no model, weights and provenance"),
        (lambda folder: rewrite(folder, weights=[1]), "no model, weights and provenance"),
    ],
)
def test_a_torn_or_foreign_artifact_is_one_sentence(tmp_path: Path, damage: object, sentence: str) -> None:
    folder = save(tmp_path / "last")
    damage(folder)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=sentence) as caught:
        checkpoint.load(folder)
    assert "\n" not in str(caught.value)
