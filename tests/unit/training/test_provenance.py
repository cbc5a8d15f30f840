"""What is written down of where a number comes from."""

import subprocess
import sys

import pytest

ASK = 'from hfa.training.provenance import provenance; print(provenance({"seed": 3})["command"])'


@pytest.mark.parametrize("name", ["ask", "ask.__main__"])
def test_a_module_is_told_by_its_name_and_a_script_as_it_was_typed(tmp_path, name):
    path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
    path.parent.mkdir(exist_ok=True)
    path.write_text(ASK)
    assert said(tmp_path, "-m", "ask", "--quick", "a=b c") == "python -m ask --quick 'a=b c'"
    assert said(tmp_path, str(path), "x") == f"python {path} x"
    assert said(path.parent, path.name) == f"python {path.name}"


def said(folder, *arguments):
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()
