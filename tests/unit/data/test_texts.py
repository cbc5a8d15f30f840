from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest

from hfa.data.texts.files import FilesConfig
from hfa.data.texts.hub import HubConfig
from hfa.data.texts.stdlib import StdlibConfig
from hfa.data.tokenizers.byte import ByteTokenizer
from hfa.errors import ConfigError, DataError
from hfa.types import NOWHERE

Make = Callable[..., FilesConfig]


def test_windows_follow_one_another(tmp_path: Path, files_config: Make, tokenizer: ByteTokenizer) -> None:
    source = files_config().build(tokenizer, tmp_path)
    first, second = source.example(0, "train"), source.example(1, "train")
    assert first.tokens.dtype == first.labels.dtype == first.gold.dtype == np.int64
    assert first.labels[:-1].tolist() == first.tokens[1:].tolist()
    assert first.labels[-1] == second.tokens[0]
    assert set(first.gold) == {NOWHERE}
    assert source.parts() == {"text": source}
    assert (source.kind, source.vocab_size) == ("text", 257)


def test_train_goes_on_and_the_others_end(tmp_path: Path, files_config: Make, tokenizer: ByteTokenizer) -> None:
    source = files_config().build(tokenizer, tmp_path)
    assert len(source.example(10**9, "train").tokens) == 32
    count = source.num_examples("val")
    assert count > 0
    assert len(source.example(count - 1, "val").tokens) == 32
    with pytest.raises(IndexError, match=f"val has {count} examples"):
        source.example(count, "val")


def test_another_seed_shuffles_the_train_split_only(
    tmp_path: Path, files_config: Make, tokenizer: ByteTokenizer
) -> None:
    one, other = (files_config(seed=seed, val_fraction=0.4).build(tokenizer, tmp_path) for seed in (0, 1))
    assert not np.array_equal(one.example(0, "train").tokens, other.example(0, "train").tokens)
    for i in range(one.num_examples("val")):
        assert np.array_equal(one.example(i, "val").tokens, other.example(i, "val").tokens)
    assert set(files_config(seed=0).documents()) == set(files_config(seed=1).documents())
    assert set(files_config(split_seed=0).documents()) != set(files_config(split_seed=1).documents())


def test_at_length_reads_the_same_text(tmp_path: Path, files_config: Make, tokenizer: ByteTokenizer) -> None:
    source = files_config().build(tokenizer, tmp_path)
    long = source.at_length(64)
    assert long.seq_len == 64
    pieces = [source.example(i, "train").tokens for i in (0, 1)]
    assert np.array_equal(long.example(0, "train").tokens, np.concatenate(pieces))


def test_a_split_shorter_than_a_window(tmp_path: Path, files_config: Make, tokenizer: ByteTokenizer) -> None:
    source = files_config(seq_len=10**6).build(tokenizer, tmp_path)
    assert source.num_examples("test") == 0
    with pytest.raises(DataError, match=r"seq_len is 1000000 .* raise test_fraction"):
        source.example(0, "test")
    unheld = files_config(val_fraction=0.0).build(tokenizer, tmp_path)
    with pytest.raises(DataError, match="val split has no documents"):
        unheld.unbroken("val")


def test_documents_are_those_of_the_train_split(tmp_path: Path, files_config: Make, tokenizer: ByteTokenizer) -> None:
    settings = files_config()
    source, documents = settings.build(tokenizer, tmp_path), list(settings.documents())
    train = source.unbroken("train")
    assert tokenizer.decode(train.read(0, train.num_tokens)) == "".join(documents)
    assert len(documents) == 16


def test_which_files_are_taken(tmp_path: Path, files_config: Make) -> None:
    for name in ("b.txt", "a.txt", "c.bin", "skipped/d.txt", "kept/e.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "empty.txt").write_text("")
    settings = files_config(paths=(str(tmp_path),), exclude=("skipped",))
    assert list(settings.read()) == ["a.txt", "b.txt", "", "kept/e.txt"]
    named = files_config(paths=(str(tmp_path / "c.bin"), str(tmp_path / "kept"), str(tmp_path / "c.bin")))
    assert list(named.read()) == ["c.bin", "kept/e.txt"]


def test_long_files_become_several_documents(tmp_path: Path, files_config: Make) -> None:
    text = "".join(f"line {i}\n" for i in range(100))
    (tmp_path / "long.txt").write_text(text)
    pieces = list(files_config(paths=(str(tmp_path),), max_document_chars=50).read())
    assert "".join(pieces) == text
    assert all(len(piece) <= 50 and piece.endswith("\n") for piece in pieces)


def test_line_ends_are_kept_as_they_are(tmp_path: Path, files_config: Make) -> None:
    (tmp_path / "dos.txt").write_bytes(b"one\r\ntwo\r\n")
    assert list(files_config(paths=(str(tmp_path),)).read()) == ["one\r\ntwo\r\n"]


def test_a_changed_file_changes_the_fingerprint(tmp_path: Path, files_config: Make) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    settings = files_config(paths=(str(path),))
    before = settings.fingerprint()
    assert settings.fingerprint() == before
    path.write_text("two")
    os.utime(path, ns=(1, 1))
    assert settings.fingerprint() != before


def test_what_a_user_gets_wrong(tmp_path: Path, files_config: Make, tokenizer: ByteTokenizer) -> None:
    with pytest.raises(ConfigError, match="paths: got"):
        files_config(paths=())
    with pytest.raises(ConfigError, match="no/such/file"):
        files_config(paths=("no/such/file",))
    with pytest.raises(DataError, match=r"no file that ends with \.txt"):
        files_config(paths=(str(tmp_path),)).build(tokenizer, tmp_path)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 ")
    with pytest.raises(DataError, match=r"latin\.txt: not UTF-8 at byte 3"):
        files_config(paths=(str(tmp_path),)).build(tokenizer, tmp_path)


def test_the_standard_library_is_real_text(tmp_path: Path, tokenizer: ByteTokenizer) -> None:
    settings = StdlibConfig(
        name="stdlib",
        seed=0,
        seq_len=128,
        val_fraction=0.02,
        test_fraction=0.02,
        split_seed=0,
        exclude=("site-packages", "dist-packages", "test", "idlelib", "lib2to3", "encodings"),
    )
    this = (Path(sysconfig.get_path("stdlib")) / "textwrap.py").read_text(encoding="utf-8")
    assert this in list(settings.read())
    source = settings.build(tokenizer, tmp_path)
    assert source.num_examples("train") > 10_000
    assert source.num_examples("val") > 0
    assert source.num_examples("test") > 0
    assert "site-packages" not in settings.fingerprint()


def hub(name: object, **changes: object) -> HubConfig:
    values = {
        "name": str(name),
        "seed": 0,
        "seq_len": 16,
        "val_fraction": 0.1,
        "test_fraction": 0.1,
        "split_seed": 0,
        "subset": None,
        "revision": None,
        "split": "train",
        "column": "text",
        "streaming": True,
        "max_documents": None,
    }
    return HubConfig(**{**values, **changes})


ROWS = [f"row {i}, of some length" for i in range(12)]


def test_hub_reads_what_save_to_disk_wrote(tmp_path: Path, tokenizer: ByteTokenizer) -> None:
    saved = datasets.Dataset.from_dict({"text": ROWS, "label": list(range(12))})
    saved.save_to_disk(tmp_path / "alone")
    datasets.DatasetDict({"train": saved, "extra": saved.select([0])}).save_to_disk(tmp_path / "several")
    assert list(hub(tmp_path / "alone").read()) == ROWS
    assert list(hub(tmp_path / "several").read()) == ROWS
    assert list(hub(tmp_path / "several", split="extra").read()) == ROWS[:1]
    assert list(hub(tmp_path / "alone", max_documents=5).read()) == ROWS[:5]
    source = hub(tmp_path / "alone").build(tokenizer, tmp_path)
    assert len(source.example(0, "train").tokens) == 16
    assert hub(tmp_path / "alone").fingerprint() != hub(tmp_path / "several").fingerprint()


def test_hub_reads_a_folder_of_data_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.jsonl").write_text("".join(f'{{"text": "{row}"}}\n' for row in ROWS))
    assert list(hub(tmp_path / "rows").read()) == ROWS


def test_what_a_user_of_the_hub_gets_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"set data\.name"):
        hub("")
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"body": ROWS, "id": [1] * 12})}).save_to_disk(tmp_path)
    with pytest.raises(DataError, match="column 'text' holds no text; columns that do: body"):
        list(hub(tmp_path).read())
    with pytest.raises(DataError, match="its splits are train, not 'validation'"):
        list(hub(tmp_path, split="validation").read())
    with pytest.raises(DataError, match="cannot be read"):
        list(hub(tmp_path / "nothing" / "at" / "all").read())
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'hfa\[hub\]'"):
        list(hub(tmp_path).read())
