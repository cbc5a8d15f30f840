"""The file of a local subnet: whole for every reader, whoever writes, and one sentence when it is not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hfa.errors import NetworkError
from hfa.network.subnet_file import SubnetFile

REGISTER = """
import sys
from pathlib import Path
from hfa.network.subnet_file import SubnetFile
file = SubnetFile(Path(sys.argv[1]), 1)
print("ready", flush=True)
sys.stdin.readline()
for index in range(int(sys.argv[3])):
    file.register(f"{sys.argv[2]}-{index}", stake_tao=1.0, validator_permit=False)
"""


def start_writer(folder: Path, name: str, count: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", REGISTER, str(folder), name, str(count)]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def go(writer: subprocess.Popen[str]) -> None:
    assert writer.stdin is not None
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    writer.stdin.write("go\n")
    writer.stdin.close()
    writer.stdout.close()


def test_register_keeps_uid_and_changes_stake(tmp_path: Path) -> None:
    file = SubnetFile(tmp_path, 1)
    first = file.register("a", stake_tao=5, validator_permit=False)
    file.register("b", stake_tao=1, validator_permit=False)
    again = file.register("a", stake_tao=7, validator_permit=True)
    assert (again.uid, again.registered_block, again.registered_at) == (0, 1, first.registered_at)
    assert [(one.uid, one.hotkey, one.stake_tao) for one in file.read()] == [(0, "a", 7.0), (1, "b", 1.0)]


def test_deregistered_uid_is_given_to_the_next(tmp_path: Path) -> None:
    file = SubnetFile(tmp_path, 1)
    for hotkey in "abc":
        file.register(hotkey, stake_tao=0, validator_permit=False)
    file.deregister("b")
    assert file.register("d", stake_tao=0, validator_permit=False).uid == 1
    with pytest.raises(NetworkError, match="Hotkey b is not registered on netuid 1"):
        file.deregister("b")


def test_published_endpoint_survives_new_stake(tmp_path: Path) -> None:
    file = SubnetFile(tmp_path, 1)
    file.register("a", stake_tao=0, validator_permit=False)
    file.publish("a", "127.0.0.1:8091")
    file.register("a", stake_tao=9, validator_permit=True)
    assert file.read()[0].neuron() == (0, "a", 9.0, True, "127.0.0.1:8091")
    with pytest.raises(NetworkError, match="not registered"):
        file.publish("stranger", "127.0.0.1:8091")


def test_stamp_differs_after_every_change(tmp_path: Path) -> None:
    file = SubnetFile(tmp_path, 1)
    stamps = [file.stamp()]
    for stake in (1, 2, 3):
        file.register("a", stake_tao=stake, validator_permit=False)
        stamps.append(file.stamp())
    assert len(set(stamps)) == 4


def test_processes_lose_no_registration_and_readers_see_no_torn_file(tmp_path: Path) -> None:
    file = SubnetFile(tmp_path, 1)
    writers = [start_writer(tmp_path, name, 15) for name in "abc"]
    for writer in writers:
        go(writer)
    seen = 0
    while any(writer.poll() is None for writer in writers):
        count = len(file.read())
        assert count >= seen
        seen = count
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert [one.uid for one in file.read()] == list(range(45))
    assert {one.hotkey for one in file.read()} == {f"{name}-{index}" for name in "abc" for index in range(15)}


def test_a_killed_writer_leaves_a_whole_file_and_no_lock(tmp_path: Path) -> None:
    file = SubnetFile(tmp_path, 1)
    writer = start_writer(tmp_path, "a", 100_000)
    go(writer)
    deadline = time.monotonic() + 30
    while len(file.read()) < 5:
        assert time.monotonic() < deadline
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    count = len(file.read())
    assert file.register("after", stake_tao=0, validator_permit=False).uid == count


NEURON = {"uid": 0, "hotkey": "a", "stake_tao": 1.0, "validator_permit": True, "endpoint": None}
NEURON = {**NEURON, "registered_block": 1, "registered_at": "2026-01-01T00:00:00+00:00"}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "Expecting value"),
        ('{"format": 1, "netu', "Unterminated string"),
        ("[1, 2]", "list indices"),
        ("[" * 100_000, "recursion|nest"),
        ('{"format": 2, "netuid": 1, "block": 0, "neurons": []}', "format 1 of netuid 1 was expected"),
        ('{"format": 1, "netuid": 2, "block": 0, "neurons": []}', "format 1 of netuid 1 was expected"),
        ('{"format": 1, "netuid": 1, "neurons": []}', "block"),
        (json.dumps({"format": 1, "netuid": 1, "block": 0, "neurons": [7]}), "items"),
        (json.dumps({"format": 1, "netuid": 1, "block": 0, "neurons": [{"uid": 0}]}), r"neurons\[0\]"),
        (json.dumps({"format": 1, "netuid": 1, "block": 0, "neurons": [{**NEURON, "stake_tao": -1}]}), "stake_tao"),
        (
            json.dumps({"format": 1, "netuid": 1, "block": 0, "neurons": [{**NEURON, "stake_tao": float("nan")}]}),
            "stake",
        ),
    ],
)
def test_torn_or_foreign_file_is_one_sentence_and_stays(tmp_path: Path, text: str, what: str) -> None:
    file = SubnetFile(tmp_path, 1)
    file.path.write_text(text)
    with pytest.raises(NetworkError, match=rf"1\.json is not a whole subnet file \(.*({what})") as raised:
        file.read()
    assert "\n" not in str(raised.value)
    with pytest.raises(NetworkError, match="delete it and register again"):
        file.register("a", stake_tao=0, validator_permit=False)
    assert file.path.read_text() == text


def test_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(NetworkError, match=r"taken.*cannot be written .*set network\.folder"):
        SubnetFile(tmp_path / "taken", 1).register("a", stake_tao=0, validator_permit=False)
