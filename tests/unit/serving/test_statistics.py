"""Statistics: what is counted, and that it survives whatever happens to the file."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfa.inference import Timing
from hfa.serving.statistics import Statistics, percentile


def end(statistics: Statistics, reason: str = "stop", seconds: float = 1.0, name: str = "hfa", error: str = "") -> None:
    timing = Timing(0.25 * seconds, 0.25 * seconds, 0.5 * seconds)
    statistics.end(name, reason, prompt_tokens=10, completion_tokens=4, timing=timing, error=error)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "statistics.json"


def test_each_ending_is_counted_as_what_it_is(path):
    statistics = Statistics(path)
    for reason in ("stop", "length", "error", "cancelled", "deadline", "shutdown"):
        end(statistics, reason, error="RuntimeError: x" if reason == "error" else "")
    report = statistics.report()["hfa"]
    counts = (report.requests, report.succeeded, report.failed, report.cancelled, report.expired)
    assert counts == (6, 2, 1, 1, 2)
    assert report.success_rate == pytest.approx(2 / 3)
    assert (report.prompt_tokens, report.completion_tokens) == (60, 24)
    assert report.prefill_tokens_per_s == pytest.approx(60 / 1.5)
    assert report.tokens_per_s == pytest.approx(18 / 3), "the first token of an answer is none of its seconds"
    assert report.last_error.error == "RuntimeError", "what it said is not for everybody"
    assert statistics.totals()["hfa"].error == "RuntimeError: x"


def test_only_answers_of_several_tokens_have_a_speed(path):
    statistics = Statistics(path)
    for tokens, seconds in ((1, 0.0), (5, 2.0), (100, 0.0)):  # the last was hung up on, and nobody knows its seconds
        timing = Timing(0.0, 0.1, seconds)
        statistics.end("hfa", "length", prompt_tokens=1, completion_tokens=tokens, timing=timing)
    assert statistics.report()["hfa"].tokens_per_s == pytest.approx(2.0)


def test_times_are_of_what_succeeded(path):
    statistics = Statistics(path)
    for seconds in range(1, 101):
        end(statistics, seconds=float(seconds))
    end(statistics, "error", seconds=1000.0)
    report = statistics.report()["hfa"]
    assert (report.mean_s, report.p50_s, report.p95_s, report.p99_s) == (50.5, 50.0, 95.0, 99.0)


def test_the_track_is_of_the_latest_requests(path):
    statistics = Statistics(path)
    assert statistics.track("hfa", 4).requests == 0
    for reason, seconds in (("error", 1.0), ("stop", 1.0), ("stop", 2.0), ("cancelled", 50.0), ("stop", 3.0)):
        end(statistics, reason, seconds)
    pace = 0.75 * 3.0 / (4 + 10 / 16)  # of the last, without its time in the queue
    assert statistics.track("hfa", 3)[:3] == (3, 1.0, pytest.approx(pace))
    assert statistics.track("hfa", 9)[:3] == (4, 0.75, pytest.approx(pace))
    assert statistics.track("hfa", 9).idle_s > 1e6, "nothing was begun"
    statistics.begin("hfa")
    assert statistics.track("hfa", 9).idle_s < 60


def test_long_answers_are_not_slow_ones(path):
    """What a model is judged by does not grow with what it is asked, nor with how many wait."""
    statistics = Statistics(path)
    for name, prompt, answered, seconds in (("short", 16, 9, 0.5), ("long", 64_000, 1_000, 250.0)):
        timing = Timing(queue_s=99.0, prefill_s=seconds / 2, decode_s=seconds / 2)
        statistics.end(name, "stop", prompt_tokens=prompt, completion_tokens=answered, timing=timing)
    assert statistics.track("short", 9).s_per_token == statistics.track("long", 9).s_per_token == 0.05


def test_everything_is_there_after_a_restart(path):
    statistics = Statistics(path)
    for reason in ("stop", "error", "cancelled"):
        end(statistics, reason, error="ValueError: y" if reason == "error" else "")
    end(statistics, name="simplemind")
    statistics.begin("hfa")
    end(statistics)
    statistics.save()
    again = Statistics(path)
    assert again.report() == statistics.report()
    assert again.totals() == statistics.totals()
    assert again.track("hfa", 20)[:3] == statistics.track("hfa", 20)[:3]


def test_nothing_is_written_when_nothing_changed(path):
    statistics = Statistics(path)
    statistics.save()
    assert not path.exists()
    end(statistics)
    statistics.save()
    written = path.stat().st_mtime_ns
    statistics.save()
    assert path.stat().st_mtime_ns == written
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_crash_while_writing_leaves_the_old_file(path, monkeypatch):
    """The new content is complete and on the disk before it takes the old one's name."""
    statistics = Statistics(path)
    end(statistics)
    statistics.save()
    end(statistics)
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(json.loads(fresh(path).read_text())))

    def power_cut(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", power_cut)
    with pytest.raises(KeyboardInterrupt):
        statistics.save()
    assert [content["architectures"]["hfa"]["requests"] for content in synced] == [2]
    assert Statistics(path).report()["hfa"].requests == 1


def fresh(path: Path) -> Path:
    return next(file for file in path.parent.iterdir() if file != path)


def test_a_disk_that_cannot_be_written_is_one_warning_and_nothing_is_lost(path, caplog):
    path.parent.parent.mkdir(exist_ok=True)
    path.parent.write_text("a file where the folder should be")
    statistics = Statistics(path)
    end(statistics)
    statistics.save()
    statistics.save()
    assert caplog.text.count("cannot be written") == 1
    path.parent.unlink()
    statistics.save()
    assert Statistics(path).report()["hfa"].requests == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"format": 1, "architectures": {"hfa": {"requests": 1',
        b"\x00" * 100,
        b"[]",
        b'{"format": 2, "architectures": {}}',
        b'{"format": 1, "architectures": {"hfa": {"requests": "many"}}}',
        b'{"format": 1, "architectures": {"hfa": {"requests": 1, "recent": "abc"}}}',
        b'{"train": true}',
        b"[" * 100_000,
    ],
)
def test_a_torn_or_foreign_file_is_set_aside(path, content, caplog):
    path.parent.mkdir()
    path.write_bytes(content)
    statistics = Statistics(path)
    assert statistics.report() == {}
    assert "set aside" in caplog.text
    kept = [file for file in path.parent.iterdir() if file != path]
    assert [file.read_bytes() for file in kept] == [content]
    end(statistics)
    statistics.save()
    assert Statistics(path).report()["hfa"].requests == 1


def test_counting_from_many_threads_loses_nothing(path):
    statistics = Statistics(path)

    def count():
        for _ in range(50):
            end(statistics)
            statistics.save()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statistics.save()
    assert Statistics(path).report()["hfa"].requests == 200


def test_memory_is_bounded(path):
    statistics = Statistics(path)
    for _ in range(3000):
        end(statistics)
    assert len(statistics.totals()["hfa"].recent) == 1000
    assert statistics.report()["hfa"].requests == 3000


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0, 1))
def test_a_percentile_is_one_of_the_values_and_enough_are_below(values, fraction):
    found = percentile(values, fraction)
    assert found in values
    assert sum(value <= found for value in values) >= fraction * len(values) - 1e-9


def test_a_percentile_of_nothing_is_nothing():
    assert percentile([], 0.5) is None
