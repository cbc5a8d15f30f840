"""What is written down of where a number comes from."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[3]
ASK = 'from hfa.training.provenance import provenance; print(provenance({"seed": 3})["command"])'


@pytest.mark.parametrize("name", ["ask", "ask.__main__"])
def test_a_module_is_told_by_its_name_and_a_script_as_it_was_typed(tmp_path, name):
    path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
    path.parent.mkdir(exist_ok=True)
    path.write_text(ASK)
    assert said(tmp_path, "-m", "ask", "--quick", "a=b c") == "python -m ask --quick 'a=b c'"
    assert said(tmp_path, str(path), "x") == f"python {path} x"
    assert said(path.parent, path.name) == f"python {path.name}"


def test_code_that_differs_is_told_and_results_that_grow_are_not(tmp_path):
    for name in ("hfa/training/provenance.py", "experiments/soak/results/soak.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        shutil.copy(REPO / name, path)
    for command in ("init -q", "add -A", "-c user.name=a -c user.email=a@b commit -qm one"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    ask = [sys.executable, "-c", "from provenance import _git; print(_git()[1])"]

    def dirty():
        return subprocess.run(
            ask, cwd=tmp_path / "hfa" / "training", capture_output=True, text=True, check=True
        ).stdout.strip()

    assert dirty() == "False"
    path.write_text("{}")
    assert dirty() == "False"
    with (tmp_path / "hfa/training/provenance.py").open("a") as file:
        file.write("\n")
    assert dirty() == "True"


def test_a_commit_made_while_a_run_goes_on_is_not_its_own(tmp_path):
    path = tmp_path / "hfa/training/provenance.py"
    path.parent.mkdir(parents=True)
    shutil.copy(REPO / "hfa/training/provenance.py", path)
    commit = "git -c user.name=a -c user.email=a@b commit -q --allow-empty -m"
    subprocess.run(f"git init -q && git add -A && {commit} one", shell=True, cwd=tmp_path, check=True)
    ask = f"""
import subprocess
from provenance import provenance
before = provenance({{"seed": 3}})["commit"]
subprocess.run("{commit} two", shell=True, check=True)
print(before == provenance({{"seed": 3}})["commit"])
"""
    assert said(path.parent, "-c", ask) == "True"


def said(folder, *arguments):
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()
