"""Results that are appended by processes which may be killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.lines import append_line, read_lines


@pytest.mark.parametrize("rest", ["", '{"a": ', '{"a": "' + "x" * 200_000])
@pytest.mark.parametrize("whole", [0, 1, 3])
def test_a_line_that_was_left_unfinished_is_none(whole: int, rest: str, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.jsonl"
    assert list(read_lines(path)) == []
    records = [{"a": i, "long": "y" * 70_000 * i} for i in range(whole)]
    for record in records:
        append_line(path, record)
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(rest)
    assert list(read_lines(path)) == records
    append_line(path, {"a": -1})
    assert list(read_lines(path)) == [*records, {"a": -1}]
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == whole + 1


def test_a_whole_line_without_an_end_is_one(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}')
    assert list(read_lines(path)) == [{"a": 1}, {"a": 2}]
    append_line(path, {"a": 3})
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n{"a": 3}\n'


def test_a_number_that_json_lacks_is_refused_before_it_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        append_line(tmp_path / "results.jsonl", {"a": float("nan")})
    assert not (tmp_path / "results.jsonl").exists()
