"""The old wire, spoken by its own client: a real Dendrite of bittensor 10.5.0, in an environment of its own.

That SDK cannot be installed beside ours. HFA_DENDRITE=1, which `.ci/run` sets, makes the environment, once, in the
cache; without it the tests run where it is there already.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import filelock
import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "hfa" / "bittensor-10.5.0"
_INSTALL_S = 300


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter that has the old SDK."""
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{CACHE}.lock"):
        if not (CACHE / "ready").exists():
            if os.environ.get("HFA_DENDRITE") != "1":
                pytest.skip("no environment with bittensor 10.5.0; HFA_DENDRITE=1 makes one (a minute, 600 MB)")
            try:
                subprocess.run([sys.executable, "-m", "venv", "--clear", CACHE], check=True)
                install = [CACHE / "bin" / "pip", "install", "--quiet", "bittensor==10.5.0"]
                subprocess.run(install, check=True, timeout=_INSTALL_S)
            except subprocess.SubprocessError as error:
                pytest.skip(f"bittensor 10.5.0 cannot be installed, is PyPI away? {error}")
            (CACHE / "ready").touch()
    return CACHE / "bin" / "python"


def ask(python: Path, running: Any, wallet: str, *questions: dict[str, Any]) -> list[dict[str, Any]]:
    """What the Dendrite of `wallet` got for each question."""
    script = Path(__file__).with_name("dendrite_v10.py")
    words = [running.subnet.config.wallet_path, wallet, running.hotkey, running.url.rpartition(":")[2]]
    done = subprocess.run(
        [python, script, *words],
        input="\n".join(json.dumps(question) for question in questions),
        env={"HOME": str(running.subnet.folder), "PATH": os.environ["PATH"], "BT_NO_PARSE_CLI_ARGS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_a_dendrite_is_answered_and_refused(python, start):
    running = start("server.rate_per_s=100", "server.rate_burst=100")
    fields = {"context": "def f(x):\n", "prompt": "    return \N{SNOWMAN}", "max_tokens": 8, "accuracy_score": 1.0}
    fields |= {"per_item_scores": {"mine": 1.0}, "architecture_preference": "simplemind"}
    call, stream = {"kind": "call", "fields": fields}, {"kind": "stream", "fields": fields | {"max_tokens": 5}}
    with running.client() as client:
        expected = client.generate(fields["context"] + fields["prompt"], max_tokens=8, model="simplemind")
        shorter = client.generate(fields["context"] + fields["prompt"], max_tokens=5).text
    whole, *many, streamed, too_long = ask(
        python,
        running,
        "validator",
        call,
        {"kind": "many", "count": 8, "fields": fields | {"max_tokens": 2}},
        stream,
        {"kind": "call", "fields": fields | {"context": "x" * 50_000}},
    )
    assert (whole["status"], whole["message"]) == (200, "Success")
    synapse = whole["synapse"]
    assert synapse["response"] == expected.text
    assert (synapse["context"], synapse["prompt"]) == (fields["context"], fields["prompt"])
    assert synapse["context_length"] == expected.usage["prompt_tokens"] + expected.usage["completion_tokens"]
    assert synapse["architecture_type"] == "simplemind"
    assert synapse["processing_time"] > 0
    assert synapse["model_info"]["completion_tokens"] == 8
    assert (synapse["accuracy_score"], synapse["per_item_scores"]) == (None, None), "a miner does not grade itself"
    assert [one["status"] for one in many] == [200] * 8, "questions asked together are no replays"
    assert streamed["status"] == 200
    assert streamed["response"] == shorter
    assert streamed["pieces"][-1]["done"] is True
    assert too_long["status"] == 413
    assert too_long["message"].startswith("Too long for every model asked")

    running.subnet.signer("poor", stake_tao=1.0)
    running.subnet.signer("stranger", register=False)
    for wallet, words in (("poor", "1 TAO at stake"), ("stranger", "is not registered")):
        refused = ask(python, running, wallet, call)[0]
        assert refused["status"] == 403
        assert words in refused["message"]


def test_signed_fields_cannot_be_altered(python, start):
    """This client signs no fields; a subnet whose synapse does is configured so, and its requests differ."""
    running = start("network.auth.dendrite.hash_fields=[context,prompt]")
    call = {"kind": "call", "fields": {"context": "a", "prompt": "b"}}
    refused = ask(python, running, "validator", call)[0]
    assert refused["status"] == 401
    assert "not the one that was signed" in refused["message"]
