"""What a token costs does not grow with what came before: counted in operations and bytes, not in seconds."""

from __future__ import annotations

import time

import pytest
import torch
from omegaconf import OmegaConf

from experiments.complexity.subjects import CONF, our_config
from experiments.complexity.tally import Tally, per_token
from hfa.models import LanguageModel
from hfa.models.audit import audit

SMALL = {
    "vocab_size": 61, "d_model": 32, "num_layers": 3, "num_heads": 2, "d_ff": 48, "num_kv_heads": 1,
    "window": 8, "block_size": 4, "num_retrieved": 4, "read_all": 64,
    "num_channels": 16, "active_channels": 4, "chunk_size": 16,
}  # fmt: skip
RECURRENT, QUADRATIC, PEERS = ["simplemind"], ["transformer"], ["hf"]
NAMES = sorted(path.stem for path in CONF.glob("*.yaml") if path.stem not in [*QUADRATIC, *PEERS])
SHORT, LONG = 256, 2048
GROWTH = 1.05  # what the window's edges and padded chunks may come to
STATE_BYTES_OF_100_000_TOKENS = 256 * 2**20

# Our kernels are one torch operator each: what they return is counted here, and what they do inside is not. What the
# index looks at is bounded by the audit's count of candidates; for all else the processor's own time has to do, which
# sees a cost that grows with the length, and not one that doubles.
INSIDE = 2.0  # times as long a token, in a sequence eight times as long


def build(name: str) -> LanguageModel:
    known = OmegaConf.load(CONF / f"{name}.yaml")
    torch.manual_seed(0)
    return our_config(name, **{key: value for key, value in SMALL.items() if key in known}).build()


def forward_growth(name: str) -> tuple[float, float]:
    """Bytes and operations of a token of a long sequence over those of a token of a short one."""
    model = build(name).eval()
    with torch.inference_mode():
        short, long = (per_token(model.hidden, length, 61) for length in (SHORT, LONG))
    return long[0] / short[0], long[1] / short[1]


def step_cost(name: str, length: int) -> tuple[float, float]:
    """Bytes and operations of a step, over as many steps as it takes a memory's buffer to grow once by an eighth."""
    model, count = build(name).eval(), length // 8 + 1
    tokens = torch.randint(0, 61, (1, length + count), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        _, state = model.hidden(tokens[:, :length])
        with Tally() as counted:
            for token in tokens[:, length:].unbind(1):
                _, state = model.step(token, state)
    return counted.allocated_bytes / count, counted.flops / count


@pytest.mark.parametrize("name", NAMES)
def test_a_token_costs_the_same_in_a_long_sequence(name: str) -> None:
    allocated, operations = forward_growth(name)
    assert allocated < GROWTH
    assert operations < GROWTH


@pytest.mark.parametrize("name", NAMES)
def test_a_token_of_training_costs_the_same_in_a_long_sequence(name: str) -> None:
    model = build(name).train()
    short, long = (
        per_token(lambda tokens: model(tokens)[0].sum().backward(), length, 61) for length in (LONG // 2, 2 * LONG)
    )
    assert long[0] / short[0] < GROWTH
    assert long[1] / short[1] < GROWTH


def time_growth(name: str, *, training: bool) -> float:
    """The processor's time of a token in a sequence of 8,192, over that in one of 1,024: the least of three."""
    model, least = build(name).train(training), []
    for length in (1024, 8192):
        tokens = torch.randint(0, 61, (1, length), generator=torch.Generator().manual_seed(0))
        seconds = []
        for _ in range(4):  # the first one compiles
            began = time.process_time()
            with torch.set_grad_enabled(training):
                features, _ = model.hidden(tokens)
                if training:
                    features.sum().backward()
            seconds.append(time.process_time() - began)
        least.append(min(seconds[1:]) / length)
    return least[1] / least[0]


@pytest.mark.parametrize("training", [False, True], ids=["prefill", "training"])
@pytest.mark.parametrize("name", NAMES)
def test_what_kernels_do_inside_does_not_grow(name: str, training: bool) -> None:
    assert time_growth(name, training=training) < INSIDE


def test_the_clock_sees_attention_grow() -> None:
    assert time_growth("transformer", training=True) > INSIDE


@pytest.mark.parametrize("name", NAMES)
def test_a_step_costs_the_same_after_a_long_context(name: str) -> None:
    short, long = step_cost(name, LONG), step_cost(name, 2 * LONG)
    assert long[0] / short[0] < GROWTH
    assert long[1] <= GROWTH * short[1]
    if name in RECURRENT:
        assert long == short == step_cost(name, 64)


@pytest.mark.parametrize("stepped", [False, True], ids=["prefill", "decode"])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in RECURRENT])
def test_a_token_looks_at_no_more_of_a_longer_memory(name: str, stepped: bool) -> None:
    """What the index does inside its operator: the tokens it looks at are bounded, whatever came before."""
    model = build(name).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(), audit(model) as trail:
        _, state = model.hidden(torch.randint(0, 61, (1, LONG), generator=generator))
        if stepped:
            trail.clear()
            for token in torch.randint(0, 61, (32, 1), generator=generator):
                _, state = model.step(token, state)
    most = model.config.num_trees * model.config.beam * model.config.leaf_size  # type: ignore[attr-defined]
    touched = torch.cat([read.touched.flatten() for read in trail.reads])
    assert 0 < int(touched.max()) <= most


def test_the_count_sees_attention_grow() -> None:
    """The control: where every token looks at all before it, the count says so, in decoding too."""
    _, operations = forward_growth("transformer")
    assert operations > 2
    assert step_cost("transformer", LONG)[1] > 2 * step_cost("transformer", SHORT)[1]


@pytest.mark.parametrize("name", NAMES)
def test_state_is_linear_in_the_length(name: str) -> None:
    with torch.device("meta"):
        model = our_config(name).build()
    at = [model.state_bytes(length) for length in (50_000, 100_000, 150_000)]
    assert at[2] - at[1] == at[1] - at[0]
    if name in RECURRENT:
        assert at[0] == at[2]
    assert at[1] <= STATE_BYTES_OF_100_000_TOKENS
