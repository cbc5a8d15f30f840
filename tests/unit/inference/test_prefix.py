"""Checkpoints: what is read once is not read again, every miss has a reason, and a restart forgets nothing."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hfa.errors import ConfigError
from hfa.inference import Engine, FinishEvent, GenerationRequest, Sampling
from hfa.inference.disk import CheckpointFolder, Origin

NAMES = sorted(path.stem for path in (Path(__file__).parents[3] / "conf" / "model").glob("*.yaml") if path.stem != "hf")
EVERY = 64


def ask(tokens, max_tokens=4, **rest) -> GenerationRequest:
    return GenerationRequest(tokens=tuple(tokens), max_tokens=max_tokens, sampling=Sampling(), **rest)


def answer(engine: Engine, request: GenerationRequest) -> tuple[list[int], FinishEvent]:
    async def main():
        *tokens, end = [event async for event in engine.submit(request)]
        return [event.token for event in tokens], end

    return asyncio.run(asyncio.wait_for(main(), 60))


@pytest.fixture
def prompt() -> list[int]:
    return torch.randint(0, 257, (300,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.fixture
def kept(start):
    """``kept(model, **settings)``: an engine with checkpoints every 64 tokens."""
    return lambda model, **more: start(
        model, **{"prefill_chunk": 64, "checkpoint_every": EVERY, "state_budget_mib": 64, **more}
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_known_prefix_is_not_read_again_and_the_answer_is_the_same(kept, tiny, prompt, name):
    model = tiny(name)
    cold = answer(kept(model, checkpoint_every=0), ask(prompt))
    engine = kept(model)
    first, again = answer(engine, ask(prompt)), answer(engine, ask(prompt))
    assert cold[0] == first[0] == again[0]
    assert (cold[1].cached_tokens, cold[1].miss) == (0, "off")
    assert (first[1].cached_tokens, first[1].miss) == (0, "new")
    assert (again[1].cached_tokens, again[1].miss) == (256, "")
    other = answer(engine, ask([*prompt[:130], 5, *prompt[131:]]))
    assert (other[1].cached_tokens, other[1].miss) == (128, "new")
    assert other[0] == answer(kept(model, checkpoint_every=0), ask([*prompt[:130], 5, *prompt[131:]]))[0]


def test_a_prefix_of_whole_blocks_leaves_a_token_to_read(kept, tiny, prompt):
    engine = kept(tiny("hfa"))
    answer(engine, ask(prompt[:128]))
    assert answer(engine, ask(prompt[:128]))[1].cached_tokens == 64
    assert answer(engine, ask(prompt[:129]))[1].cached_tokens == 128


def test_a_short_prompt_says_so(kept, tiny, prompt):
    assert answer(kept(tiny("hfa")), ask(prompt[:EVERY]))[1].miss == "short"


def test_what_was_evicted_says_so(kept, tiny, prompt):
    model = tiny("hfa")
    engine = kept(model)
    answer(engine, ask(prompt))
    while engine._prefixes.evict():
        continue
    assert engine._prefixes.num_bytes == 0
    assert engine._pool.pages.num_free == engine._pool.pages.num_pages
    assert answer(engine, ask(prompt))[1].miss == "evicted"


def test_a_budget_is_kept_and_the_longest_unused_goes(kept, tiny, prompt):
    engine = kept(tiny("hfa"), checkpoint_budget_mib=1)
    size = max(1, engine._prefixes._budget // 40_000)
    for number in range(size):
        answer(engine, ask([number % 257, number // 257, *prompt[:70]], 1))
        assert engine._prefixes.num_bytes <= engine._prefixes._budget
    assert answer(engine, ask([(size - 1) % 257, (size - 1) // 257, *prompt[:70]]))[1].cached_tokens == 64


def test_another_salt_shares_nothing(kept, tiny, prompt):
    engine = kept(tiny("hfa"))
    answer(engine, ask(prompt, cache_salt="one"))
    assert answer(engine, ask(prompt, cache_salt="two"))[1].cached_tokens == 0
    assert answer(engine, ask(prompt, cache_salt="one"))[1].cached_tokens == 256


def test_a_folder_that_cannot_be_is_named(kept, tiny, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"checkpoint_dir: got .*file.*, expected a folder that can be written"):
        kept(tiny("hfa"), checkpoint_dir=str(tmp_path / "file"))


@pytest.mark.parametrize("name", NAMES)
def test_on_disk_a_checkpoint_survives_a_restart(kept, tiny, prompt, tmp_path, name):
    model = tiny(name)
    before = answer(kept(model, checkpoint_dir=str(tmp_path)), ask(prompt))
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 4
    after = answer(kept(model, checkpoint_dir=str(tmp_path)), ask(prompt))
    assert after[1].cached_tokens == 256
    assert after[0] == before[0]


def test_on_disk_another_model_s_and_another_tokenizer_s_are_told_apart(limits, tiny, prompt, tmp_path):
    from hfa.inference import EngineConfig

    more = {"prefill_chunk": 64, "checkpoint_every": EVERY, "state_budget_mib": 64, "checkpoint_dir": str(tmp_path)}
    model, other = tiny("hfa"), tiny("hfa")
    torch.nn.init.normal_(other.embedding.weight)
    said = []
    for one, vocabulary in ((model, "bytes"), (other, "bytes"), (model, "words")):
        engine = EngineConfig(**limits | more).build(one, "hfa", vocabulary)
        said.append(answer(engine, ask(prompt))[1].miss)
        engine.close()
    assert said == ["new", "other model", "other tokenizer"]
    engine = EngineConfig(**limits | more).build(model, "hfa", "bytes")
    assert answer(engine, ask(prompt))[1].cached_tokens == 256, "others have written beside it, not over it"
    engine.close()


def test_a_torn_file_is_removed_and_the_prompt_is_read(kept, tiny, prompt, tmp_path: Path):
    model = tiny("hfa")
    first = answer(kept(model, checkpoint_dir=str(tmp_path)), ask(prompt))
    for path in tmp_path.glob("*/*"):
        path.write_bytes(path.read_bytes()[:100])
    again = answer(kept(model, checkpoint_dir=str(tmp_path)), ask(prompt))
    assert again[0] == first[0]
    assert again[1].cached_tokens == 0


@pytest.mark.parametrize(
    ("name", "what"),
    [
        *itertools.product(("hfa", "simplemind"), ("left out", "narrower", "half as exact")),
        ("hfa", "no code"),
        ("hfa", "fewer pages"),
    ],
)
def test_a_file_of_another_layout_is_removed_and_the_prompt_is_read(kept, tiny, prompt, tmp_path: Path, name, what):
    """As after a change of what a layer carries: the weights are the same, and so is the folder."""
    model = tiny(name)
    first = answer(kept(model, checkpoint_dir=str(tmp_path)), ask(prompt))
    for path in tmp_path.glob("*/*"):
        tensors = load_file(path)
        if what == "left out":
            del tensors["recurrent.0"]
        elif what == "narrower":
            tensors["recurrent.0"] = tensors["recurrent.0"][..., :1].clone()
        elif what == "half as exact":
            tensors["recurrent.0"] = tensors["recurrent.0"].half()
        else:
            codes = next(key for key, tensor in tensors.items() if tensor.dtype == torch.uint8)
            tensors[codes] = tensors[codes][1:].clone() if what == "fewer pages" else tensors[codes] | 128
        save_file(tensors, path)
    again = answer(kept(model, checkpoint_dir=str(tmp_path)), ask(prompt))
    assert again[0] == first[0]
    assert again[1].cached_tokens == 0
    third = answer(kept(model, checkpoint_dir=str(tmp_path)), ask(prompt))
    assert third[0] == first[0]
    assert third[1].cached_tokens > 0, "the files that were written in their place"


def test_the_folder_keeps_its_budget(kept, tiny, prompt, tmp_path):
    engine = kept(tiny("hfa"), checkpoint_dir=str(tmp_path), checkpoint_disk_mib=1)
    for number in range(30):
        answer(engine, ask([number, *prompt], 1))
        assert sum(path.stat().st_size for path in tmp_path.glob("*/*")) <= 2**20


def test_a_disk_that_is_full_keeps_no_half_of_a_checkpoint(tmp_path, monkeypatch, caplog):
    folder = CheckpointFolder(tmp_path, Origin("a", "b"), 1 << 20)

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    folder.write(b"key", b"", 64, [torch.zeros(4)], [])
    assert not list(folder.path.iterdir())
    assert "could not be written" in caplog.text
    assert folder.num_bytes == 0


def test_a_stem_on_disk_outlives_what_stands_on_it(kept, tiny, prompt, tmp_path):
    """A prompt that all share is written once, and used from memory ever after."""
    model = tiny("hfa")
    engine = kept(model, checkpoint_dir=str(tmp_path), checkpoint_disk_mib=1)
    shared, written = prompt[:EVERY], set()
    for number in range(60):
        answer(engine, ask([*shared, *([number] * EVERY), 1], 1))
        written |= {path.name for path in tmp_path.glob("*/*")}
    assert len(written) > len(list(tmp_path.glob("*/*"))), "some had to go"
    engine.close()
    again = kept(model, checkpoint_dir=str(tmp_path))
    assert answer(again, ask([*shared, *([60] * EVERY), 1], 1))[1].cached_tokens == EVERY


def test_what_never_had_room_says_so(kept, tiny, prompt):
    engine = kept(tiny("hfa"), checkpoint_budget_mib=0)
    assert answer(engine, ask(prompt))[1].miss == "new"
    assert answer(engine, ask(prompt))[1].miss == "no room"


@pytest.mark.parametrize("name", ["hfa", "transformer", "simplemind"])
def test_a_state_that_is_not_finite_is_not_kept(kept, tiny, prompt, name, tmp_path):
    """The prompt fails on a fault that passes; who asks again afterwards is answered."""
    model = tiny(name)
    expected, _ = answer(kept(model, checkpoint_every=0), ask(prompt))
    engine = kept(model, checkpoint_dir=str(tmp_path))
    fault = model.embedding.register_forward_hook(lambda module, given, out: out * torch.nan)
    assert answer(engine, ask(prompt))[1].reason == "error"
    fault.remove()
    again, end = answer(engine, ask(prompt))
    assert (again, end.cached_tokens) == (expected, 0)


def test_a_checkpoint_that_makes_requests_fail_is_dropped(kept, tiny, prompt, tmp_path):
    """With all that come before and after it, on disk too; others stay."""
    model = tiny("hfa")
    engine = kept(model, checkpoint_dir=str(tmp_path))
    expected, _ = answer(engine, ask(prompt))
    answer(engine, ask(prompt[1:]))
    bad = next(node for node in engine._prefixes._nodes.values() if node.position == 128)
    bad.recurrent = [x * torch.nan for x in bad.recurrent]
    assert answer(engine, ask(prompt[:140]))[1].reason == "error"
    assert len(list(tmp_path.glob("*/*.safetensors"))) == len(engine._prefixes) == 4
    again, end = answer(engine, ask(prompt))
    assert (again, end.cached_tokens) == (expected, 0)
    assert answer(engine, ask(prompt[1:]))[1].cached_tokens == 256


def test_a_prompt_is_hashed_once(kept, tiny, prompt, monkeypatch):
    engine = kept(tiny("hfa"))
    hashed = []
    plain = hashlib.blake2b
    monkeypatch.setattr(hashlib, "blake2b", lambda *args, **more: hashed.append(1) or plain(*args, **more))
    answer(engine, ask(prompt))
    assert len(engine._prefixes) == 4
    assert len(hashed) == 5, "one of the salt, and one of each block"


def test_who_is_set_aside_keeps_its_state_when_the_next_one_reads_from_disk(kept, tiny, prompt, tmp_path):
    """The pages that one leaves are those that the other's checkpoints are read into."""
    model = tiny("hfa")
    answer(kept(model, checkpoint_dir=str(tmp_path)), ask(prompt))
    low, high = ask([(token + 1) % 257 for token in prompt], 200), ask(prompt, 4, priority=1)
    expected = [answer(kept(model, checkpoint_every=0), request)[0] for request in (low, high)]
    engine = kept(model, checkpoint_dir=str(tmp_path), max_concurrent=1)
    written = []
    stash, paste = engine._runner.stash, engine._pool.paste
    engine._pool.paste = lambda pages, contents: written.extend(pages) or paste(pages, contents)

    def unwritten(row):
        assert not set(row.pages) & set(written), "the pages still hold what they held"
        return stash(row)

    engine._runner.stash = unwritten

    async def main():
        first = engine.submit(low)
        stream = first.events()
        tokens = [(await anext(stream)).token]
        second = [event async for event in engine.submit(high)]
        *rest, end = [event async for event in stream]
        return [*tokens, *(event.token for event in rest)], end, second

    tokens, end, (*others, other_end) = asyncio.run(asyncio.wait_for(main(), 60))
    assert (end.reason, end.preemptions) == ("length", 1)
    assert other_end.cached_tokens == 256
    assert [tokens, [event.token for event in others]] == expected


def test_checkpoints_give_way_to_streams(kept, tiny, prompt):
    """The pages of checkpoints are free for the taking."""
    engine = kept(tiny("transformer"), state_budget_mib=1, max_concurrent=1)
    most = engine._pool.pages.num_pages * engine._pool.page_size
    answer(engine, ask(prompt[: min(300, most - 8)], 1))
    assert engine._pool.pages.num_idle
    long = (prompt * 20)[: most - 8]
    assert answer(engine, ask(long, 4))[1].reason == "length"
