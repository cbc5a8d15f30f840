"""What an operator relies on: logs, metrics, the dashboard, the status page, units, weights swapped while serving."""

from __future__ import annotations

import configparser
import errno
import gc
import json
import logging
import logging.config
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import weakref
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import yaml

from hfa import checkpoint
from hfa.data.tokenizers.byte import ByteTokenizer
from hfa.errors import CheckpointError, ConfigError, RequestError
from hfa.inference import EngineConfig
from hfa.network.base import Neuron
from hfa.network.client import BittensorAuth
from hfa.serving import loading
from hfa.serving.connection import BoundedProtocol
from hfa.serving.loading import Loader
from hfa.serving.logs import JSONFormatter
from hfa.serving.miner import HFAMiner
from hfa.serving.server import Server
from hfa.serving.service import priority

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "conf" / "deploy"
HTTP = httpx.Client(verify=False, timeout=60, trust_env=False)


def until(condition) -> None:
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_weights_are_swapped_without_dropping_a_request(start, tiny, tmp_path):
    """Under load, the newest artifact takes over each time; a torn one does not; every answer is one model's own."""
    folder = tmp_path / "outputs" / "hfa" / "checkpoints" / "last"

    def deploy(version: int) -> None:
        model, generator = tiny("hfa"), torch.Generator().manual_seed(version)
        for parameter in model.parameters():
            if parameter.ndim > 1:  # fresh weights repeat their last token, whatever the version
                parameter.data += 4 * parameter.std() * torch.randn(parameter.shape, generator=generator)
        checkpoint.save(folder, model=model, tokenizer=ByteTokenizer(), provenance={})

    deploy(0)
    running = start(f"checkpoint_root={tmp_path / 'outputs'}", "models=[hfa]", "watch_s=0.05", "server.rate_per_s=1e6")
    answers: Counter[str] = Counter()
    stop = threading.Event()

    def ask() -> None:
        with running.client() as client:
            while not stop.is_set():
                streamed = client.stream("hello", max_tokens=20)
                answers["".join(streamed)] += 1

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        engine = running.miner.models["hfa"].engine
        for version in (1, 0, 1):
            deploy(version)
            until(lambda: running.miner.models["hfa"].engine is not engine)  # noqa: B023
            old, engine = engine, running.miner.models["hfa"].engine
            until(lambda: not old._thread.is_alive())  # noqa: B023
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        time.sleep(0.5)
        assert running.miner.models["hfa"].engine is engine, "a torn artifact changes nothing"
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert len(answers) == 2, "the answers of two versions, and no mixture"
    record = HTTP.get(running.url + "/statistics").json()["architectures"]["hfa"]
    assert record["requests"] == record["succeeded"] == answers.total()


def test_sessions_go_on_with_newer_weights(start, tiny, tmp_path):
    """From their tokens: those that are idle at once, and one that is answering when it has answered."""
    folder = tmp_path / "outputs" / "hfa" / "checkpoints" / "last"

    def deploy(**sizes: int) -> None:
        checkpoint.save(folder, model=tiny("hfa", **sizes), tokenizer=ByteTokenizer(), provenance={})

    deploy()
    running = start(f"checkpoint_root={tmp_path / 'outputs'}", "models=[hfa]", "watch_s=0.05", "server.rate_per_s=1e6")
    auth = BittensorAuth(running.validator, running.hotkey)
    with httpx.Client(base_url=running.url, auth=auth, trust_env=False, timeout=60) as http:
        idle, busy = (http.post("/v1/sessions", json={"model": "hfa"}).json()["id"] for _ in range(2))

        def say(one: str, prompt: str, **more: Any) -> httpx.Response:
            return http.post(f"/v1/sessions/{one}/generate", json={"prompt": prompt, "max_tokens": 2, **more})

        assert say(idle, "Once upon").status_code == 200
        before = http.get(f"/v1/sessions/{idle}").json()["position"]
        engine = running.miner.models["hfa"].engine
        with ThreadPoolExecutor() as pool:
            answering = pool.submit(say, busy, "Once upon", max_tokens=2000)
            until(lambda: engine.load().running)
            deploy(d_ff=48)
            until(lambda: running.miner.models["hfa"].engine is not engine)
            there = http.get(f"/v1/sessions/{idle}").json()
            assert (there["position"], there["ready"]) == (before, 0), "the state was of the old weights"
            assert say(idle, " a time").json()["usage"]["cached_tokens"] == 0
            assert answering.result(60).status_code == 200
        until(lambda: http.get(f"/v1/sessions/{busy}").status_code == 200)
        assert say(busy, " a time").json()["context_length"] == 9 + 2000 + 7 + 2


def test_an_artifact_that_no_engine_takes_does_not_end_the_watch(start, tiny, tmp_path, caplog):
    """Whose blocks are no divisor of what lies between two checkpoints: passed over, and the next one is served."""
    folder = tmp_path / "outputs" / "hfa" / "checkpoints" / "last"

    def deploy(**sizes: int) -> None:
        checkpoint.save(folder, model=tiny("hfa", **sizes), tokenizer=ByteTokenizer(), provenance={})

    deploy()
    running = start(
        f"checkpoint_root={tmp_path / 'outputs'}", "models=[hfa]", "watch_s=0.05", "engine.checkpoint_every=16"
    )
    engine = running.miner.models["hfa"].engine
    deploy(block_size=64, window=64, chunk_size=64, d_ff=48)
    until(lambda: "passed over, the old one goes on: engine.checkpoint_every: got 16" in caplog.text)
    assert running.miner.models["hfa"].engine is engine
    deploy(d_ff=32)
    until(lambda: running.miner.models["hfa"].engine is not engine)


def test_an_artifact_that_is_being_copied_is_loaded_once_it_is_here(settings, runs, tmp_path, caplog):
    source, there = runs / "hfa" / "checkpoints" / "last", tmp_path / "hfa" / "checkpoints" / "last"
    loader = Loader(spec="latest", root=tmp_path, asked=["hfa"], engine=settings().engine)
    there.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(source / name, there)
    weights = (source / "model.safetensors").read_bytes()
    for part in (100, len(weights) // 2):
        (there / "model.safetensors").write_bytes(weights[:part])
        assert loader.newer("hfa") is None
    assert "hfa is not served from here" in caplog.text
    (there / "model.safetensors").write_bytes(weights)
    served = loader.newer("hfa")
    assert served is not None
    served.engine.close()
    (there / "README.md").write_text("a word more")
    assert loader.newer("hfa") is None, "the same weights are not loaded twice"


def test_a_model_that_failed_to_load_is_let_go(settings, runs, tmp_path, monkeypatch):
    """Whatever its error is kept for."""
    made: list[weakref.ref] = []

    def fail(engine, name):
        made.append(weakref.ref(engine))
        raise RuntimeError("boom") from ValueError(engine)

    monkeypatch.setattr(loading, "_warm_up", fail)
    monkeypatch.setattr(loading.log, "exception", lambda *_: None)  # pytest keeps what is logged, with its frames
    folder = runs / "hfa" / "checkpoints" / "last"
    loader = Loader(spec=str(folder), root=tmp_path, asked=["hfa"], engine=settings().engine)
    assert loader.newer("hfa") is None
    gc.collect()
    assert made[0]() is None
    with pytest.raises(RuntimeError, match="boom"):
        loader.load(again=False)


def test_newer_weights_without_room_beside_the_old_are_left_alone(settings, tiny, tmp_path, monkeypatch, caplog):
    """A GPU may not hold both: the old ones go on where they are, and the newer ones are read once."""
    folder, build, tried = tmp_path / "hfa" / "checkpoints" / "last", EngineConfig.build, []

    def full(self, model, name, tokenizer, *, fall_back):
        tried.append(fall_back)
        if not fall_back:
            raise torch.OutOfMemoryError("no memory left")
        return build(self, model, name, tokenizer)

    monkeypatch.setattr(EngineConfig, "build", full)
    loader = Loader(spec="latest", root=tmp_path, asked=["hfa"], engine=settings().engine)
    checkpoint.save(folder, model=tiny("hfa"), tokenizer=ByteTokenizer(), provenance={})
    loader.newer("hfa").engine.close()
    checkpoint.save(folder, model=tiny("hfa", d_ff=48), tokenizer=ByteTokenizer(), provenance={})
    assert loader.newer("hfa") is None
    assert loader.newer("hfa") is None
    assert tried == [True, False]
    assert "hfa goes on as it is: " in caplog.text
    assert "has no room beside what serves" in caplog.text


def test_a_watcher_that_is_loading_does_not_hold_up_the_end(monkeypatch):
    """And what it has loaded when nobody waits for it any more is closed."""
    monkeypatch.setattr(loading, "_JOIN_S", 0.05)
    looking, go_on, closed = threading.Event(), threading.Event(), threading.Event()

    class Fresh:
        path = "x"
        engine = types.SimpleNamespace(close=lambda drain_s=0.0: closed.set())

    class Slow:
        def names(self):
            return ["hfa"]

        def newer(self, name):
            looking.set()
            go_on.wait(60)
            return Fresh()

    watcher = loading.Watcher(Slow(), service=None, interval_s=0.001, drain_s=0.0)
    watcher.start()
    assert looking.wait(60)
    stopping = threading.Thread(target=watcher.stop)
    stopping.start()
    stopping.join(60)
    assert not stopping.is_alive()
    go_on.set()
    assert closed.wait(60)


def test_nobody_waits_for_a_session_that_holds_the_engine(start):
    """The engine's lock is taken for long; the event loop goes on answering all who do not need it."""
    running = start("models=[hfa]", "server.rate_burst=100")
    engine = running.miner.models["hfa"].engine
    held, go_on = threading.Event(), threading.Event()
    call = engine.call(lambda sessions: held.set() or go_on.wait(60))
    assert held.wait(60)
    with ThreadPoolExecutor(4) as pool, httpx.Client(trust_env=False, timeout=60) as http:
        auth = BittensorAuth(running.validator, running.hotkey)
        waiting = [
            pool.submit(http.post, running.url + "/v1/generate", json={"prompt": "hello", "max_tokens": 2}, auth=auth),
            pool.submit(http.post, running.url + "/v1/sessions", auth=auth),
            pool.submit(http.get, running.url + "/health"),
            pool.submit(http.get, running.url + "/metrics"),
        ]
        try:
            time.sleep(0.3)  # they arrive
            for _ in range(3):
                assert httpx.get(running.url + "/v1/models", trust_env=False, timeout=10).status_code == 200
            assert not any(one.done() for one in waiting)
        finally:
            go_on.set()
        assert [one.result(60).status_code for one in waiting] == [200] * 4
    call.result(60)


def test_not_ready_while_all_callers_are_refused(start):
    """The metagraph cannot be seen for longer than the miner may go on without."""
    running = start("network.sync_interval_s=0.05", "network.retry_s=0.05", "network.max_staleness_s=3")
    assert HTTP.get(running.url + "/ready").status_code == 204
    running.subnet.config.file().path.write_text("torn")
    until(lambda: HTTP.get(running.url + "/ready").status_code == 503)
    assert "metagraph was last seen" in HTTP.get(running.url + "/ready").json()["error"]["message"]
    with running.client() as client, pytest.raises(RequestError) as refused:
        client.generate("hello")
    assert refused.value.status == 503


def test_stake_is_priority_by_decades():
    stakes = (0, 5, 999, 1000, 9000, 99_999, 1e6)
    assert [priority(Neuron(0, "5A", stake, True, None)) for stake in stakes] == [0, 0, 3, 3, 3, 5, 6]


def test_a_greater_stake_goes_first_when_the_queue_is_full(start):
    running = start("engine.max_concurrent=1", "engine.max_queue=1", "models=[hfa]", "server.rate_burst=100")
    great = running.subnet.signer("great", stake_tao=1e6)
    statuses: list[int] = []

    def wait_in_line() -> None:
        body = b'{"prompt": "hello", "max_tokens": 3000}'
        headers = running.validator.sign(body, method="POST", path="/v1/generate", receiver=running.hotkey)
        statuses.append(HTTP.post(f"{running.url}/v1/generate", content=body, headers=headers).status_code)

    def load():
        return running.miner.models["hfa"].engine.load()

    lines = [threading.Thread(target=wait_in_line) for _ in range(2)]
    for thread in lines:
        thread.start()
    until(lambda: load().running + load().waiting == 2)
    with running.client(great) as client:
        assert client.generate("hello", max_tokens=2).text
    until(lambda: bool(statuses))
    assert statuses[0] == 503, "who has less made room"
    running.miner.stop()
    for model in running.miner.models.values():
        model.engine.close()
    for thread in lines:
        thread.join(60)


class Text(HTMLParser):
    """The visible text of a page, and its tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1

    def handle_data(self, data):
        self.words += f" {data}"


def test_the_status_page_is_for_this_machine_and_shows_what_there_is(start, caplog):
    with caplog.at_level("INFO"):
        running = start()
    url = re.search(r"Status page at (http://127\.0\.0\.1:\d+)", caplog.text)[1]
    with running.client() as client:
        client.generate("hello", max_tokens=2)
    hostile = running.subnet.config.file()
    hostile.publish(running.validator.hotkey, "<script>alert(1)</script>:1")
    page = HTTP.get(url + "/")
    assert page.status_code == 200
    shown = Text(page.text)
    for words in (
        "hfa (default)",
        "simplemind",
        running.hotkey,
        running.validator.hotkey,
        "100.0%",
        "5,000.0",
        "<script>",
    ):
        assert words in shown.words
    assert not {"script", "iframe", "img", "form"} & set(shown.tags)
    assert str(running.subnet.config.wallet_path) not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert HTTP.get(running.url + "/").status_code == 404, "the public port has no status page"


@pytest.fixture
def certificate(tmp_path) -> Callable[..., tuple[str, str]]:
    """``certificate(name, *how)`` makes a certificate and its key; gives what makes a miner speak TLS."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "1"]

    def make(name: str, *how: str) -> tuple[str, str]:
        out = ["-keyout", f"{name}.key", "-out", f"{name}.pem", *(how or ["-nodes"])]
        subprocess.run(["openssl", *words, "-subj", "/CN=x", *out], cwd=tmp_path, check=True, stderr=-3)
        return f"server.tls_certificate={tmp_path / name}.pem", f"server.tls_key={tmp_path / name}.key"

    return make


def test_what_tls_cannot_be_served_with_is_one_sentence(settings, certificate, tmp_path):
    for name, how in (("a", ()), ("b", ()), ("c", ("-passout", "pass:secret"))):
        certificate(name, *how)
    (tmp_path / "none.pem").write_text("none")
    for certificate, key, said in (
        ("a.pem", "b.key", "server.tls_certificate"),
        ("none.pem", "a.key", "server.tls_certificate"),
        ("c.pem", "c.key", "server.tls_key.*without a password"),
    ):
        with pytest.raises(ConfigError, match=said):
            settings(f"server.tls_certificate={tmp_path / certificate}", f"server.tls_key={tmp_path / key}")


def test_the_status_page_on_all_addresses_and_beside_tls(start, certificate, caplog):
    """In plain HTTP whatever the public port speaks, with all that a monitor asks for, and nothing that computes."""
    caplog.set_level("INFO")
    running = start("server.status_host=0.0.0.0", *certificate("own"))
    port = re.search(r"Status page at http://0\.0\.0\.0:(\d+)", caplog.text)[1]
    url = f"http://127.0.0.1:{port}"
    assert "hfa miner" in HTTP.get(url).text
    assert HTTP.get(url + "/health").json()["models"] == HTTP.get(running.url + "/health").json()["models"]
    assert HTTP.get(url + "/ready").status_code == 204
    assert "hfa_registered 1.0" in HTTP.get(url + "/metrics").text
    assert HTTP.post(url + "/v1/generate").status_code == 404


def test_a_handshake_that_never_begins_is_cut_off(start, certificate):
    """A connection that has not come through it is in no count, so it must not stay."""
    running = start("server.head_timeout_s=2", *certificate("own"))
    host, port = running.url.removeprefix("https://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as silent:
        assert silent.recv(1) == b"", "uvicorn by itself waits a minute"
    assert HTTP.get(running.url + "/health").status_code == 200


def test_who_is_idle_behind_tls_keeps_nobody_from_stopping(settings, certificate):
    """A client that pools its connections answers the end of TLS when it next asks something: never."""
    with httpx.Client(verify=False, trust_env=False) as idle:
        with HFAMiner(settings("server.drain_s=20", *certificate("own"))) as miner:
            assert idle.get(miner.url + "/health").status_code == 200
            before = time.monotonic()
        assert time.monotonic() - before < 10


def test_what_a_slow_reader_has_not_taken_is_not_thrown_away():
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect(listening.getsockname())
        ours, _ = listening.accept()
        with ours:
            transport = types.SimpleNamespace(get_write_buffer_size=lambda: 0, get_extra_info={"socket": ours}.get)
            connection = types.SimpleNamespace(transport=transport)
            assert BoundedProtocol._is_taken(connection)
            ours.setblocking(False)
            sent = ours.send(bytes(1 << 20))
            assert not BoundedProtocol._is_taken(connection)
            while sent:
                sent -= len(reader.recv(sent))
            until(lambda: BoundedProtocol._is_taken(connection))
            transport.get_write_buffer_size = lambda: 1
            assert not BoundedProtocol._is_taken(connection)


@pytest.mark.parametrize(("hard", "allowed", "said"), [(4096, 1256, ""), (600, 600, "600 open files are allowed here")])
def test_as_many_files_as_connections_need(hard, allowed, said):
    allow = """
import resource
from hfa.serving.server import allow_files
for connections in 1000, 10:  # the second takes nothing away
    allow_files(connections)
    print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    limits = f'ulimit -Sn 512 && ulimit -Hn {hard} && exec "$@"'
    words = ["sh", "-c", limits, "sh", sys.executable, "-c", allow]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == [f"{allowed} {hard}"] * 2
    assert said in done.stderr
    assert bool(said) == ("open files" in done.stderr)


def test_a_status_port_that_is_taken_is_no_reason_not_to_mine(settings, tmp_path, caplog):
    with caplog.at_level("INFO"), HFAMiner(settings()):
        port = re.search(r"Status page at http://127\.0\.0\.1:(\d+)", caplog.text)[1]
        others = ("wallet.name=second", f"statistics_path={tmp_path / 'second.json'}")
        with HFAMiner(settings(f"server.status_port={port}", *others)) as second:
            assert f"Port {port} is taken; the status page is on another" in caplog.text
            assert HTTP.get(second.url + "/health").status_code == 200


def test_every_metric_of_the_dashboard_is_exposed(start):
    running = start()
    with running.client() as client:
        client.generate("hello", max_tokens=2)
    HTTP.post(running.url + "/v1/generate")
    exposed = set(re.findall(r"^(hfa_\w+)", HTTP.get(running.url + "/metrics").text, re.M))
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    wanted = {name for expression in expressions for name in re.findall(r"\bhfa_\w+", expression)}
    assert wanted <= exposed
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"]) > 8
    assert {"hfa_metagraph_age_seconds", "hfa_registered"} <= exposed


def test_a_log_line_as_json_has_everything(caplog):
    record = logging.getLogger("hfa.x").makeRecord("hfa.x", 20, "f", 1, "said %s", ("\N{SNOWMAN}\n",), None)
    record.model = "hfa"
    assert json.loads(JSONFormatter().format(record)) | {"time": ""} == {
        "time": "",
        "level": "INFO",
        "logger": "hfa.x",
        "message": "said \N{SNOWMAN}\n",
        "model": "hfa",
    }
    try:
        raise ValueError("deep")
    except ValueError:
        record.exc_info = sys.exc_info()
    line = JSONFormatter().format(record)
    assert "\n" not in line
    assert "ValueError: deep" in json.loads(line)["exception"]


def test_the_unit_is_one_that_systemd_reads(tmp_path):
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read_string((DEPLOY / "hfa-miner.service").read_text().replace("\\\n", " "))
    command = unit["Service"]["ExecStart"]
    assert unit["Service"]["RestartPreventExitStatus"] == "1 2"
    words = [word for word in command.split() if "=" in word or word.startswith("--")]
    filled = [re.sub(r"<NETUID>", "1", re.sub(r"<[A-Z]+>", "203.0.113.7", word)) for word in words]
    composed = subprocess.run(
        [sys.executable, str(ROOT / "mine.py"), *filled, "--cfg", "job"], cwd=tmp_path, capture_output=True, text=True
    )
    assert composed.returncode == 0, composed.stderr
    assert "/var/lib/hfa/nonces" in composed.stdout


def test_what_passes_is_another_start_and_what_does_not_is_none():
    """The exit codes that the unit goes by."""
    script = """if True:
        import errno, mine
        from hfa.errors import ConfigError, PassingError
        from hfa.network.base import NotRegisteredError
        from hfa.network.member import ChainAwayError
        def fail(error):
            raise error
        failures = [ConfigError("a", 1, "2"), NotRegisteredError("."), PermissionError(errno.EACCES, "no", "f")]
        failures += [ChainAwayError("."), PassingError("."), OSError(errno.ENOSPC, "full", "f"), RuntimeError(".")]
        failures += [KeyboardInterrupt()]
        print([mine.run(lambda: fail(failure)) for failure in failures])"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[2, 1, 2, 75, 75, 75, 70, 130]\n", done.stderr
    assert done.stderr.count("Traceback") == 1, "our own fault shows where"


def test_the_kernels_compile_where_the_unit_lets_them(tmp_path):
    """As under ProtectSystem=strict and ProtectHome=yes: no folder of the source can be made, and none at home."""
    for source in (ROOT / "hfa").rglob("*.py"):
        copy = tmp_path / "source" / source.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(source.read_bytes())
        (copy.parent / "__pycache__").touch()  # a file: not even root makes a folder of it
    words = re.search(r"^Environment=(.*)$", (DEPLOY / "hfa-miner.service").read_text(), re.M)[1].split()
    unit = dict(word.replace("/var/lib/hfa", str(tmp_path / "state")).split("=", 1) for word in words)
    assert unit["HOME"] == str(tmp_path / "state")

    def imports(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        bare = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path / "source"), "HOME": "/dev/null"}
        command = [sys.executable, "-P", "-c", "import hfa.ops.fused.norm as norm; print(norm.__file__)"]
        done = subprocess.run(command, cwd=tmp_path, env=bare | environment, capture_output=True, text=True)
        assert done.returncode or str(tmp_path) in done.stdout
        return done

    assert "no locator available" in imports({}).stderr
    assert imports(unit).returncode == 0


def test_the_containers_health_is_asked_where_it_is(start):
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    _, _, script = json.loads(re.search(r"HEALTHCHECK .*?CMD (\[.*?\])$", text, re.M)[1])
    url = re.search(r"^ENV .*HEALTH_URL=(\S+)$", text, re.M)[1]
    assert f"{yaml.safe_load((ROOT / 'conf' / 'mine.yaml').read_text())['server']['port']}/health" in url

    def healthy(at: str) -> bool:
        environment = os.environ | {"HEALTH_URL": at, "NO_PROXY": "*"}
        return (
            subprocess.run([sys.executable, "-c", script], env=environment, stderr=subprocess.DEVNULL).returncode == 0
        )

    running = start()
    assert healthy(f"{running.url}/health")
    assert not healthy("http://127.0.0.1:1/health")


def test_what_the_container_runs_composes(tmp_path):
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    entry, command = (json.loads(re.search(rf"^{word} (\[.*\])", text, re.M)[1]) for word in ("ENTRYPOINT", "CMD"))
    for copied in re.findall(r"^COPY (.+) \S+$", text, re.M):
        assert all((ROOT / name).exists() for name in copied.split())
    words = [sys.executable, str(ROOT / "mine.py"), *entry[2:], *command, "--cfg", "job"]
    composed = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert composed.returncode == 0, composed.stderr
    assert "folder: /data/subnets" in composed.stdout


@pytest.mark.parametrize("style", ["miner", "miner_json"])
def test_both_kinds_of_logs_can_be_set_up(settings, style):
    assert settings(f"hydra/job_logging={style}").default == "hfa"


def test_a_folder_that_nobody_would_look_for_again_has_to_be_there(settings, tmp_path):
    with pytest.raises(ConfigError, match=r"checkpoint: .*with watch_s=60 it is waited for"):
        settings(f"checkpoint={tmp_path / 'nowhere'}")
    settings(f"checkpoint={tmp_path / 'nowhere'}", "watch_s=60")


def test_a_folder_that_cannot_be_served_ends_a_miner_that_would_not_look_again(start, runs, tmp_path, caplog):
    """One that looks for newer ones waits for its repair."""
    folder = tmp_path / "torn"
    shutil.copytree(runs / "hfa" / "checkpoints" / "last", folder)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="torn or was changed"):
        start(f"checkpoint={folder}")
    running = start(f"checkpoint={folder}", "watch_s=0.05")
    assert not running.miner.models
    weights.write_bytes(whole)
    until(lambda: HTTP.get(running.url + "/ready").status_code == 204)


def test_what_passes_ends_a_miner_as_what_passes(start, runs, monkeypatch):
    """So that systemd, which leaves alone what a user got wrong, starts it again."""

    def load(path):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(checkpoint, "load", load)
    with pytest.raises(OSError, match="Too many open files"):
        start(f"checkpoint={runs / 'hfa' / 'checkpoints' / 'last'}")


def test_two_miners_do_not_write_one_record(start, settings):
    start()
    with pytest.raises(ConfigError, match=r"statistics_path: .*a file of this miner's own"), HFAMiner(settings()):
        pass


def test_sigterm_while_it_starts_ends_what_was_begun(settings, monkeypatch):
    """As long as a chain takes to publish the endpoint, requests are answered already: they are drained."""
    stopped = []
    stop = Server.stop
    monkeypatch.setattr(Server, "start", lambda *args: signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr(Server, "stop", lambda *args: stopped.append(stop(*args)))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left, HFAMiner(settings()):
        pass
    assert left.value.code == 0
    assert stopped == [None]
    assert signal.getsignal(signal.SIGTERM) is before
