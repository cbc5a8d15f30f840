"""`python mine.py` as an operator runs it: a process, a port, keys, signals, restarts, mistakes."""

from __future__ import annotations

import itertools
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import torch
import yaml

from hfa import checkpoint
from hfa.config import from_mapping, from_node
from hfa.data.tokenizers.byte import ByteTokenizer
from hfa.models import ModelConfig
from hfa.network.base import WalletConfig
from hfa.network.bittensor import HotkeySigner, create_hotkey
from hfa.network.client import HFAClient
from hfa.network.local import LocalNetworkConfig

ROOT = Path(__file__).parents[2]
PORTS = ("server.host=127.0.0.1", "server.port=0", "server.status_port=0")
HTTP = httpx.Client(verify=False, timeout=60, trust_env=False)
TINY = {
    "vocab_size": 257,
    "d_model": 32,
    "num_layers": 3,
    "num_heads": 2,
    "d_ff": 64,
    "dropout": 0.0,
    "max_seq_len": 40000,
    "pattern": ["flow", "anchor"],
    "num_channels": 8,
    "active_channels": 4,
    "window": 8,
    "block_size": 4,
    "num_retrieved": 8,
    "chunk_size": 16,
}


def until(condition: Callable[[], bool], what: str, timeout_s: float = 120) -> None:
    limit, pause = time.monotonic() + timeout_s, threading.Event()
    while not condition():
        assert time.monotonic() < limit, f"not in time: {what}"
        pause.wait(0.02)


_NUMBERS = itertools.count()


class Miner:
    """A running `python mine.py` and what it has printed."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable,
                str(ROOT / "mine.py"),
                "network=local",
                "server.host=127.0.0.1",
                "server.port=0",
                "server.status_port=0",
                f"statistics_path=.hfa/statistics/{next(_NUMBERS)}.json",  # several run at once, on whatever ports
                *words,
            ],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            until(lambda: self.has("Miner ready with") or self.process.poll() is not None, "ready", 300)
        except AssertionError:
            self.process.kill()
            raise
        assert self.process.poll() is None, self.output
        self.url = re.search(r'Serving .* at (http://[^\s"]+)', self.output)[1]

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line)

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def has(self, words: str) -> bool:
        return words in self.output

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(60)
        self._reader.join(10)
        return code


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with artifacts of both architectures."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("hfa", "simplemind"):
        values = yaml.safe_load((ROOT / "conf" / "model" / f"{name}.yaml").read_text())
        small = {key: value for key, value in TINY.items() if key in values}
        torch.manual_seed(0)
        model = from_node(values | small, "model", ModelConfig).build().eval()
        run = folder / "outputs" / name / "run" / "checkpoints" / "last"
        checkpoint.save(run, model=model, tokenizer=ByteTokenizer(), provenance={"seed": 0})
    return folder


@pytest.fixture(scope="module")
def validator(place: Path) -> HotkeySigner:
    return caller(place, "validator")


def caller(place: Path, name: str, *, register: bool = True, **registration: object) -> HotkeySigner:
    """A hotkey in the folders that conf/network/local.yaml names, below `place`."""
    values = yaml.safe_load((ROOT / "conf" / "network" / "local.yaml").read_text())
    values.pop("_target_")
    config = from_mapping(LocalNetworkConfig, values | {"folder": str(place / values["folder"])}, "network")
    wallets = str(place / values["wallet_path"])
    signer = create_hotkey(WalletConfig(name=name, hotkey="default", path=wallets))
    if register:
        config.file().register(signer.hotkey, **({"stake_tao": 5000.0, "validator_permit": True} | registration))
    return signer


@contextmanager
def mining(place: Path, *words: str) -> Iterator[Miner]:
    miner = Miner(place, *words)
    try:
        yield miner
    finally:
        miner.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def miner(place: Path) -> Iterator[Miner]:
    with mining(place, "server.rate_burst=6", "server.rate_per_s=0.01", "server.max_body_bytes=100000") as running:
        yield running


def client(miner: Miner, signer: HotkeySigner) -> HFAClient:
    hotkey = HTTP.get(miner.url + "/health").json()["hotkey"]
    return HFAClient(signer, url=miner.url, receiver=hotkey, timeout_s=60)


def post(miner: Miner, signer: HotkeySigner | None, body: bytes, sent: bytes | None = None) -> httpx.Response:
    headers = {}
    if signer is not None:
        hotkey = HTTP.get(miner.url + "/health").json()["hotkey"]
        headers = signer.sign(body, method="POST", path="/v1/generate", receiver=hotkey)
    return HTTP.post(miner.url + "/v1/generate", content=body if sent is None else sent, headers=headers)


BODY = b'{"prompt": "hello", "max_tokens": 4}'


def test_what_it_prints(miner):
    assert miner.has("Miner ready with 2 models: ['hfa', 'simplemind']")
    assert re.search(r"hfa: [\d,]+ parameters on cpu, the default, from outputs/hfa/run/checkpoints/last", miner.output)
    assert re.search(r"simplemind: [\d,]+ parameters on cpu, from outputs/", miner.output)
    until(lambda: miner.has("Miner running... 2"), "the first heartbeat")


def test_every_line_of_the_log_is_json_on_request(place, validator):
    """From the first to the last, a warning and a request among them."""
    with mining(place, "--logging.json", "models=[hfa,transformer]", "heartbeat_s=0.1") as running:
        assert post(running, validator, BODY).status_code == 200
        assert running.stop() == 0
    records = [json.loads(line) for line in running.lines]
    assert {"time", "level", "logger", "message"} <= set.intersection(*(set(record) for record in records))
    assert "WARNING" in {record["level"] for record in records}
    assert [record["outcome"] for record in records if record.get("outcome")] == ["length"]
    assert records[-1]["message"] == "Miner stopped"


def test_every_kind_of_caller(miner, place, validator):
    """Signed, unsigned, replayed, tampered, oversized, unregistered, over limit, streaming: each with its answer."""
    assert post(miner, validator, BODY).status_code == 200
    said = re.compile(r"hfa for uid \d+: length, 5 tokens in, 4 out, ")
    until(lambda: said.search(miner.output) is not None, "the line about the request")
    assert post(miner, None, BODY).status_code == 401
    assert post(miner, validator, BODY, BODY.replace(b"hello", b"hullo")).status_code == 401
    hotkey = HTTP.get(miner.url + "/health").json()["hotkey"]
    headers = validator.sign(BODY, method="POST", path="/v1/generate", receiver=hotkey)
    sent_twice = [HTTP.post(miner.url + "/v1/generate", content=BODY, headers=headers).status_code for _ in range(2)]
    assert sent_twice == [200, 401]
    assert post(miner, validator, b"x" * 200_000).status_code == 413
    assert post(miner, caller(place, "stranger", register=False), BODY).status_code == 403
    assert post(miner, caller(place, "poor", stake_tao=1.0), BODY).status_code == 403
    assert post(miner, caller(place, "unpermitted", validator_permit=False), BODY).status_code == 403
    with client(miner, validator) as signed:
        stream = signed.stream("hello", max_tokens=6)
        assert "".join(stream) == signed.generate("hello", max_tokens=6).text == stream.answer.text
    other = caller(place, "other")
    codes = [post(miner, other, b'{"prompt": "' + b"x" * 40000 + b'", "max_tokens": 99}').status_code for _ in range(7)]
    assert codes == [413] * 6 + [429]


def test_sigterm_drains_a_stream_and_statistics_survive(place, validator):
    statistics = "statistics_path=drained.json"
    with mining(place, statistics) as running, client(running, validator) as signed:
        stream = signed.stream("hello", max_tokens=300)
        pieces = iter(stream)
        first = next(pieces)
        running.process.send_signal(signal.SIGTERM)
        until(lambda: running.has("Miner stopping"), "the signal")
        text = first + "".join(pieces)
        assert stream.answer.usage["completion_tokens"] == 300
        assert stream.answer.text == text
        assert running.process.wait(60) == 0
        until(lambda: running.has("Miner stopped"), "the last line")
        assert "Traceback" not in running.output
    with mining(place, statistics) as again, client(again, validator) as signed:
        assert signed.statistics()["architectures"]["hfa"]["requests"] == 1
        signed.generate("hello", max_tokens=2)
        assert again.stop(signal.SIGINT) == 0
    kept = json.loads((place / "drained.json").read_text())
    assert kept["architectures"]["hfa"]["requests"] == 2


def test_a_killed_miner_goes_on_where_it_was_and_a_second_signal_does_not_wait(place, validator):
    """After SIGKILL the statistics are whole, and a request accepted before is still a replay."""
    statistics = "statistics_path=killed.json"
    with mining(place, statistics, "heartbeat_s=0.05") as running:
        hotkey = HTTP.get(running.url + "/health").json()["hotkey"]
        headers = validator.sign(BODY, method="POST", path="/v1/generate", receiver=hotkey)
        assert HTTP.post(running.url + "/v1/generate", content=BODY, headers=headers).status_code == 200
        until((place / "killed.json").exists, "the statistics")
        running.stop(signal.SIGKILL)
    with mining(place, statistics, "server.drain_s=600") as again, client(again, validator) as signed:
        assert HTTP.post(again.url + "/v1/generate", content=BODY, headers=headers).status_code == 401
        assert signed.statistics()["architectures"]["hfa"]["requests"] == 1
        stream = signed.stream("hello", max_tokens=4000)
        pieces = iter(stream)
        next(pieces)
        again.process.send_signal(signal.SIGTERM)
        until(lambda: again.has("Miner stopping"), "the first signal")
        again.process.send_signal(signal.SIGTERM)
        assert len("".join(pieces)) < 4000
        assert stream.answer.finish_reason == "shutdown"
        assert again.process.wait(60) == 0


def test_a_full_disk_refuses_what_it_cannot_remember_and_loses_nothing(place, validator):
    """No file can grow: a request whose replay could not be noticed is refused, and all is well once there is room."""
    statistics = "statistics_path=full.json"
    words = ("heartbeat_s=0.05", "server.rate_burst=100")
    with mining(place, statistics, *words) as running:
        assert post(running, validator, BODY).status_code == 200
        until(lambda: (place / "full.json").exists(), "the statistics")
        kept = (place / "full.json").read_text()
        resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        codes = [post(running, validator, BODY).status_code for _ in range(5)]
        assert set(codes) == {503}
        assert HTTP.get(running.url + "/health").status_code == 200
        assert (place / "full.json").read_text() == kept
        resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        hotkey = HTTP.get(running.url + "/health").json()["hotkey"]
        headers = validator.sign(BODY, method="POST", path="/v1/generate", receiver=hotkey)
        sent = [HTTP.post(running.url + "/v1/generate", content=BODY, headers=headers).status_code for _ in range(2)]
        assert sent == [200, 401]
        assert running.stop() == 0
    assert json.loads((place / "full.json").read_text())["architectures"]["hfa"]["requests"] == 2


def resident(process: subprocess.Popen) -> int:
    """Bytes of its memory that are in use."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def test_memory_stays_bounded_whatever_is_sent(place, validator):
    """Bodies too large, announced and not, and hundreds of connections that say half of something or nothing."""
    words = ("server.max_body_bytes=100000", "server.max_uploads=8", "server.max_uploads_per_address=8")
    huge = b"x" * (8 << 20)
    with mining(place, *words, "server.rate_burst=1000", "server.head_timeout_s=5") as running:
        assert post(running, validator, BODY).status_code == 200
        host, port = running.url.removeprefix("http://").split(":")
        hotkey = HTTP.get(running.url + "/health").json()["hotkey"]

        def head(length: str) -> bytes:
            headers = validator.sign(BODY, method="POST", path="/v1/generate", receiver=hotkey)
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            return f"POST /v1/generate HTTP/1.1\r\nhost: x\r\n{lines}{length}\r\n\r\n".encode()

        def flood(number: int) -> bytes:
            announced = number % 2 == 0
            with socket.create_connection((host, int(port)), timeout=30) as connection:
                connection.sendall(head(f"content-length: {len(huge)}" if announced else "transfer-encoding: chunked"))
                with suppress(ConnectionError):
                    connection.sendall(huge if announced else b"%x\r\n%s\r\n0\r\n\r\n" % (len(huge), huge))
                    return connection.recv(65536)
            return b""

        half = (
            b"",
            b"POST /v1/gen",
            head("content-length: 90000") + b"{",
            b"GET /health HTTP/1.1\r\nx: " + b"y" * 9000,
        )
        before, most, over = resident(running.process), 0, threading.Event()
        with ExitStack() as held, ThreadPoolExecutor(13) as pool:
            for number in range(200):
                held.enter_context(socket.create_connection((host, int(port)), timeout=30)).sendall(half[number % 4])

            def watch() -> int:
                most = 0
                while not over.wait(0.005):
                    most = max(most, resident(running.process))
                return most

            watching = pool.submit(watch)
            answers = list(pool.map(flood, range(24)))
            over.set()
            most = watching.result()
        assert {answer[9:12] for answer in answers} <= {b"413", b"503", b""}
        assert sum(answer[9:12] in (b"413", b"503") for answer in answers) > 12
        assert most - before < 64 << 20, "a third of what was sent"
        until(lambda: post(running, validator, BODY).status_code == 200, "all places come back")


def test_killed_again_and_again_while_it_writes(place, validator):
    """SIGKILL at moments that nobody chose, with statistics written as fast as they can be: each file is whole."""
    counted = 0
    for moment in range(2):
        with mining(place, "statistics_path=torn.json", "heartbeat_s=0.001", "server.rate_burst=100") as running:
            for _ in range(3 + moment):
                assert post(running, validator, BODY).status_code == 200
            until((place / "torn.json").exists, "the first is written")
            running.stop(signal.SIGKILL)
        requests = json.loads((place / "torn.json").read_text())["architectures"]["hfa"]["requests"]
        assert counted <= requests <= counted + 3 + moment
        counted = requests
    assert not list(place.glob("torn.json.unreadable*"))


def test_a_torn_artifact_is_a_warning_and_the_other_serves(place, validator, tmp_path):
    copy = tmp_path / "outputs"
    for name in ("hfa", "simplemind"):
        artifact = checkpoint.load(place / "outputs" / name / "run" / "checkpoints" / "last")
        folder = copy / name / "checkpoints" / "last"
        checkpoint.save(folder, model=artifact.model, tokenizer=artifact.tokenizer, provenance={})
    weights = copy / "hfa" / "checkpoints" / "last" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with mining(place, f"checkpoint_root={copy}") as running, client(running, validator) as signed:
        assert running.has("WARNING hfa is not served from here: ")
        assert running.has("Miner ready with 1 models: ['simplemind']")
        assert signed.generate("hello", max_tokens=2).reason == "hfa is not loaded"


def test_no_model_is_503_with_a_sentence(place, validator):
    with mining(place, "checkpoint_root=nowhere") as running:
        refused = post(running, validator, BODY)
        assert refused.status_code == 503
        assert refused.json()["error"]["message"].startswith("No model is loaded")
        assert running.stop() == 0


def command(place: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "mine.py"), *words],
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_help_is_worth_reading_and_imports_nothing_heavy(place):
    shown = command(place, "--help", PYTHONPROFILEIMPORTTIME="1")
    assert shown.returncode == 0
    for words in (
        "--wallet.name",
        "--netuid",
        "network=test",
        "python -m hfa.network.client",
        "max_body_bytes",
        "SIGTERM",
    ):
        assert words in shown.stdout
    imported = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
    assert "hydra" in imported
    assert not imported & {"torch", "bittensor", "fastapi", "uvicorn", "lightning"}


def test_flags_may_stand_anywhere(place):
    shown = command(place, "model=simplemind", "--cfg", "job", "network=local")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "default: simplemind" in shown.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["server.prt=1"], "server.prt: there is no such key; did you mean server.port?"),
        (["server.port=abc"], "server.port: got 'abc', expected a valid integer."),
        (["network=tset"], "network: no option 'tset'; did you mean test? choose one of finney, local, test."),
        (["--netuidd", "4"], "--netuidd: no such flag; did you mean --netuid?"),
        (["--netuid"], "--netuid: no value was given; write --netuid VALUE."),
        (
            ["serve"],
            "'serve' is not understood (error parsing override 'serve');"
            " write key=value, in quotes if a shell may change it.",
        ),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2(place, words, sentence):
    failed = command(place, *words)
    assert failed.returncode == 2
    assert failed.stderr == f"{sentence}\n"
    assert "Traceback" not in failed.stdout


def test_a_taken_port_is_one_sentence_and_exit_2(place):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        failed = command(place, "server.host=127.0.0.1", f"server.port={port}")
    assert failed.returncode == 2
    assert failed.stderr.startswith(f"server.port: got {port}, expected a free port; ")
    assert len(failed.stderr.splitlines()) == 1


def test_an_unregistered_hotkey_is_exit_1_with_the_command(place):
    caller(place, "outsider", register=False)
    failed = command(place, "server.port=0", "network.autoregister=false", "--wallet.name", "outsider")
    assert failed.returncode == 1
    assert "python -m hfa.network.local register" in failed.stderr
    assert "--wallet.name outsider" in failed.stderr
    assert len(failed.stderr.splitlines()) == 1
    assert "Traceback" not in failed.stdout + failed.stderr


def test_the_whole_traceback_on_request(place):
    failed = command(place, "network=tset", HYDRA_FULL_ERROR="1")
    assert failed.returncode == 2
    assert "Traceback" in failed.stderr
