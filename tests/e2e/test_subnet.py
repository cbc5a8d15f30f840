"""The validator in a box, whole: real processes, ports and signatures, and weights at the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
import yaml

from experiments.claims import studies
from hfa import checkpoint
from hfa.config import from_node
from hfa.data.tokenizers.byte import ByteTokenizer
from hfa.models import ModelConfig

ROOT = Path(__file__).parents[2]
TINY = {"vocab_size": 257, "d_model": 32, "num_layers": 3, "num_heads": 2, "d_ff": 64, "dropout": 0.0}
ROUNDS, LENGTHS = 6, ("256", "512")


def test_a_subnet_in_which_lying_does_not_pay(tmp_path, monkeypatch):
    """An untrained HFA, which knows nothing; the liar, right once in four; and who is right until it dies."""
    values = yaml.safe_load((ROOT / "conf" / "model" / "hfa.yaml").read_text())
    torch.manual_seed(0)
    model = from_node(values | TINY | {"pattern": ["flow", "anchor"]}, "model", ModelConfig).build().eval()
    folder = tmp_path / "trained" / "hfa" / "checkpoints" / "last"
    checkpoint.save(folder, model=model, tokenizer=ByteTokenizer(), provenance={"seed": 0})
    words = ["--checkpoints", str(tmp_path / "trained"), "--folder", str(tmp_path / "subnet"), "--seed", "1"]
    words += ["--imposters", "liar", "dying", "--rounds", str(ROUNDS), "--lengths", *LENGTHS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "experiments.subnet", *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no trained model here answers better than a guess" in done.stdout
    assert "transformer does not mine, it is not trained: python train.py experiment=quickstart" in done.stdout
    assert "(dying is dead)" in done.stdout
    result = json.loads((tmp_path / "subnet" / "subnet.json").read_text())
    weights = result["weights"]
    assert max(weights, key=weights.get) == "dying"
    assert 0 < weights["liar"] < weights["dying"] / 2
    assert weights["hfa"] == 0
    assert (tmp_path / "subnet" / "weights.png").stat().st_size > 0

    monkeypatch.setattr(studies, "_SUBNET", str(tmp_path / "subnet" / "subnet.json"))
    table = studies.subnet()
    assert table.rows[0] == ["dying", *table.rows[0][1:-1], f"{weights['dying']:.3f}"]
    assert all({"command", "commit", "seed", "machine", "date"} <= claim.made.keys() for claim in table.claims)
