"""Kernels are compiled anew when the source of anything they call changes."""

import shutil
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[3] / "hfa"
ASK = """
import torch
from hfa.ops.fused import swiglu_mlp
print(float(swiglu_mlp(torch.ones(1, 16), torch.ones(32, 16), torch.ones(16, 16))[0, 0]))
"""


def test_a_kernel_follows_what_it_calls(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "hfa", ignore=shutil.ignore_patterns("__pycache__"))
    before = ask(tmp_path)
    assert ask(tmp_path) == before
    path = tmp_path / "hfa" / "ops" / "simd.py"
    source = path.read_text(encoding="utf-8")
    path.write_text(source.replace("return splat(1.0) / (splat(1.0) +", "return splat(2.0) / (splat(1.0) +"))
    assert ask(tmp_path) == 2 * before
    assert len(list(tmp_path.rglob("kernels-*"))) == 2


def ask(folder):
    command = [sys.executable, "-c", ASK]
    env = {"PYTHONPATH": str(folder), "HOME": str(folder), "PATH": ""}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True)
    return float(done.stdout)
