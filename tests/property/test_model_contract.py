"""The contract of every model under conf/model: causal, streaming, rows apart, states that are values."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from safetensors.torch import load, save

from hfa.config import from_node
from hfa.models import LanguageModel, ModelConfig
from hfa.models.rewind import mark, rewind
from hfa.models.state import flatten, num_bytes, select_rows, stack_rows, unflatten

CONF = Path(__file__).parents[2] / "conf" / "model"
SMALL = {
    "vocab_size": 61, "d_model": 32, "num_layers": 3, "num_heads": 2, "d_ff": 48, "dropout": 0.0, "num_kv_heads": 1,
    "window": 4, "block_size": 2, "num_retrieved": 4, "num_trees": 2, "beam": 2, "leaf_size": 3,
    "logn_length": 8, "read_all": 0, "num_channels": 16, "active_channels": 4, "chunk_size": 8,
}  # fmt: skip
NAMES = sorted(path.stem for path in CONF.glob("*.yaml") if path.stem != "hf")
VARIANTS = [
    f"simplemind:router={router}:aggregation={aggregation}"
    for router in ("dynamic", "soft", "hard")
    for aggregation in ("learnable", "mean", "sum")
]
VARIANTS += [f"simplemind:signed={signed}:shared_channel=true" for signed in ("true", "false")]
VARIANTS += ["hfa:num_retrieved=0"]


def build(name: str, **changes: object) -> LanguageModel:
    """A small model from its YAML: every value the file has and `SMALL` names is shrunk."""
    name, *variant = name.split(":")
    node = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"), resolve=True)
    assert isinstance(node, dict)
    node |= {key: value for key, value in SMALL.items() if key in node} | changes
    if name == "hybrid":
        node["pattern"] = ["routed", "anchor", "flow"]
    node = OmegaConf.to_container(OmegaConf.merge(node, OmegaConf.from_dotlist(variant)))
    torch.manual_seed(0)
    return from_node(node, "model", ModelConfig).build().eval()


def some_tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 61, (rows, length), generator=generator)


@pytest.fixture(params=[*NAMES, *VARIANTS], scope="module")
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return build(request.param)


@torch.no_grad()
def test_a_token_changes_no_logit_before_it(model: LanguageModel) -> None:
    tokens = some_tokens(1, 40)
    logits, _ = model(tokens)
    for t in (1, 7, 8, 23, 39):
        changed = tokens.clone()
        changed[0, t] = (changed[0, t] + 1) % 61
        other, _ = model(changed)
        assert torch.equal(other[:, :t], logits[:, :t]), t
        assert not torch.equal(other[:, t:], logits[:, t:]), t


@settings(max_examples=12)
@given(cuts=st.lists(st.integers(1, 44), max_size=6, unique=True).map(sorted))
def test_any_split_of_a_sequence_gives_the_same_logits(model: LanguageModel, cuts: list[int]) -> None:
    tokens = some_tokens(2, 45)
    with torch.no_grad():
        whole, _ = model(tokens)
        state, parts = model.init_state(2), []
        for first, last in zip([0, *cuts], [*cuts, 45], strict=True):
            logits, state = model(tokens[:, first:last], state)
            parts.append(logits)
    streamed = torch.cat(parts, 1)
    torch.testing.assert_close(streamed, whole, atol=1e-4, rtol=0)
    assert torch.equal(streamed.argmax(-1), whole.argmax(-1))


@settings(max_examples=12)
@given(before=st.integers(0, 20), length=st.integers(1, 40), last=st.integers(1, 40))
def test_what_is_not_asked_for_changes_nothing(model: LanguageModel, before: int, length: int, last: int) -> None:
    tokens, last = some_tokens(2, before + length + 1), min(last, length)
    with torch.no_grad():
        state = model.hidden(tokens[:, :before])[1] if before else None
        piece = tokens[:, before : before + length]
        whole, after_whole = model.hidden(piece, state)
        part, after_part = model.hidden(piece, state, last=last)
        torch.testing.assert_close(part, whole[:, -last:], atol=1e-5, rtol=0)
        for one, other in zip(flatten(after_part).values(), flatten(after_whole).values(), strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
        steps = [model.step(tokens[:, -1], after)[0] for after in (after_part, after_whole)]
        torch.testing.assert_close(*steps, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("last", [1, 100, 1500])
def test_the_last_features_of_a_long_text_are_those_of_all(model: LanguageModel, last: int) -> None:
    tokens = some_tokens(1, 2100)
    torch.testing.assert_close(
        model.hidden(tokens, last=last)[0], model.hidden(tokens)[0][:, -last:], atol=1e-4, rtol=0
    )


@torch.no_grad()
def test_stepping_gives_the_same_logits(model: LanguageModel) -> None:
    tokens = some_tokens(2, 30)
    whole, _ = model(tokens)
    state, steps = model.init_state(2), []
    for t in range(30):
        logits, state = model.step(tokens[:, t], state)
        steps.append(logits)
    torch.testing.assert_close(torch.stack(steps, 1), whole, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_chunk_size_is_invisible(name: str) -> None:
    tokens = some_tokens(2, 70)
    if "chunk_size" not in build(name).config.to_dict():
        chunked = [build(name)]
    else:
        chunked = [build(name, chunk_size=size) for size in (3, 16, 64)]
    first, *others = (model(tokens)[0] for model in chunked)
    for other in others:
        torch.testing.assert_close(other, first, atol=1e-4, rtol=0)


@torch.no_grad()
def test_rows_do_not_see_each_other(model: LanguageModel) -> None:
    lengths = [3, 17, 30]
    rows = [some_tokens(1, length, seed=length) for length in lengths]
    states = [model(row)[1] for row in rows]
    together = stack_rows(states)
    following = some_tokens(3, 6, seed=9)
    logits, together = model(following, together)
    for i, state in enumerate(states):
        alone, state = model(following[i : i + 1], state)
        torch.testing.assert_close(logits[i : i + 1], alone, atol=1e-4, rtol=0)
        stepped, _ = model.step(following[i : i + 1, 0], state)
        taken, _ = model.step(following[i : i + 1, 0], select_rows(together, [i]))
        torch.testing.assert_close(stepped, taken, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_saved_state_resumes_bitwise(model: LanguageModel) -> None:
    _, state = model(some_tokens(2, 21))
    following = some_tokens(2, 5, seed=1)
    expected, _ = model(following, state)
    loaded = unflatten(model.init_state(2), load(save(flatten(state))))
    assert torch.equal(model(following, loaded)[0], expected)


@torch.no_grad()
def test_a_state_can_be_continued_twice(model: LanguageModel) -> None:
    _, state = model(some_tokens(2, 11))
    one, two = some_tokens(2, 9, seed=1), some_tokens(2, 9, seed=2)
    expected = model(one, state)[0]
    _, fork = model.step(two[:, 0], state)
    model(two[:, 1:], fork)
    assert torch.equal(model(one, state)[0], expected)


@torch.no_grad()
@pytest.mark.parametrize("last", [None, 1])
@pytest.mark.parametrize("length", [1, 4, 20])
def test_a_state_with_room_to_spare_can_be_continued_twice(model: LanguageModel, length: int, last: int | None) -> None:
    """What the first continuation appended in place, to the memory and to the index, is not there for the second."""
    tokens, one, two = some_tokens(2, 12), some_tokens(2, 15, seed=1), some_tokens(2, 50, seed=2)
    expected = model.hidden(torch.cat([tokens, two], 1))[0]
    _, state = model(tokens[:, :10])
    _, state = model(tokens[:, 10:], state)
    model(one, state)
    _, state = model.hidden(two[:, :length], state, last=last)
    again = model.hidden(two[:, length:], state)[0]
    torch.testing.assert_close(again, expected[:, 12 + length :], atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_a_stream_can_be_rewound_to_any_mark(name: str) -> None:
    model, tokens, other = build(name), some_tokens(2, 40), some_tokens(2, 9, seed=1)
    state, marks = model.init_state(2), {}
    for first in range(0, 40, 4):  # two blocks at a time
        marks[first] = mark(state)
        _, state = model(tokens[:, first : first + 4], state)
    for first in (36, 8, 20, 0):
        expected, _ = model(torch.cat([tokens[:, :first], other], 1))
        again, rewound = model(other, rewind(state, marks[first]))
        torch.testing.assert_close(again, expected[:, first:], atol=1e-4, rtol=0)
        _, saved = model(other, unflatten(model.init_state(2), load(save(flatten(rewind(state, marks[first]))))))
        assert torch.equal(model(other, saved)[0], model(other, rewound)[0])
    assert torch.equal(model(other, state)[0], model(other, rewind(state, mark(state)))[0])


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_a_rewound_stream_takes_a_long_prompt(name: str) -> None:
    """Which is given its room at once: the index of what comes later in the stream is no part of that."""
    model, tokens, other = build(name), some_tokens(1, 3000), some_tokens(1, 1100, seed=1)
    _, state = model(tokens[:, :40])
    early = mark(state)
    _, state = model.hidden(tokens[:, 40:], state, last=1)
    before = model(other[:, :9], rewind(state, mark(state)))[0]
    expected = model.hidden(torch.cat([tokens[:, :40], other], 1))[0]
    again = model.hidden(other, rewind(state, early))[0]
    torch.testing.assert_close(again, expected[:, 40:], atol=1e-4, rtol=0)
    assert torch.equal(model(other[:, :9], state)[0], before)


@torch.no_grad()
def test_state_bytes_is_what_a_state_holds(model: LanguageModel) -> None:
    for length in (1, 33):
        _, state = model(some_tokens(1, length))
        assert model.state_bytes(length) == num_bytes(state)


@pytest.mark.parametrize("name", NAMES)
def test_training_mode_and_inference_agree_without_dropout(name: str) -> None:
    model, tokens = build(name), some_tokens(2, 33)
    trained = model.train()(tokens)[0]
    with torch.no_grad():  # rounding, in an order of sums that differs from processor to processor
        torch.testing.assert_close(model.eval()(tokens)[0], trained, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("length", "same_as"), [(32, {"window": 32}), (33, {"read_all": 0})])
def test_training_reads_all_of_a_short_example(length: int, same_as: dict[str, int]) -> None:
    model, same, tokens = build("hfa", read_all=32), build("hfa", **same_as), some_tokens(2, length)
    same.load_state_dict(model.state_dict())
    torch.testing.assert_close(model.train()(tokens)[0], same.train()(tokens)[0], atol=1e-6, rtol=0)


ALONE = {"pattern": ["anchor"], "num_layers": 1, "conv_width": 1, "read_all": 32, "logn_length": 1 << 20}


def test_in_training_the_examples_beside_one_stand_before_it() -> None:
    model, same = build("hfa", cross_batch=1, **ALONE), build("hfa", **ALONE | {"window": 64})
    same.load_state_dict(model.state_dict())
    tokens = some_tokens(3, 20)
    before = torch.cat([tokens.roll(1, 0), tokens], dim=1)
    torch.testing.assert_close(model.train()(tokens)[0], same(before)[0][:, 20:], atol=1e-5, rtol=0)
    with torch.no_grad():
        one = [model(row[None])[0][0] for row in tokens]
        torch.testing.assert_close(model(tokens)[0], torch.stack(one), atol=1e-5, rtol=0)


def test_an_example_by_itself_does_not_stand_before_itself() -> None:
    model, tokens = build("hfa", cross_batch=2, **ALONE).train(), some_tokens(1, 20)
    changed = tokens.clone()
    changed[:, 10:] = (changed[:, 10:] + 1) % 61
    assert torch.equal(model(tokens)[0][:, :10], model(changed)[0][:, :10])


@torch.no_grad()
@pytest.mark.parametrize("count", [0, 4])
def test_without_retrieval_an_anchor_layer_reads_its_window(count: int) -> None:
    model = build("hfa:conv_width=1", pattern=["anchor"], num_layers=1, num_retrieved=count)
    tokens = some_tokens(1, 40)
    changed = tokens.clone()
    changed[:, :32] = (changed[:, :32] + 1) % 61
    last, other = (model(x)[0][:, -1] for x in (tokens, changed))
    assert torch.equal(last, other) == (count == 0)


@pytest.mark.parametrize("name", NAMES)
def test_threads_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows may be worked on side by side, in training and after it."""
    model, tokens = build(name).train(), some_tokens(3, 40)
    one = model(tokens)[0]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    several = model(tokens)[0]
    several.sum().backward()
    torch.testing.assert_close(several, one, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_reading_on_leaves_a_pending_gradient_alone(name: str) -> None:
    model, tokens = build(name), some_tokens(2, 30)
    with torch.no_grad():
        _, state = model(tokens[:, :9])
        _, state = model(tokens[:, 9:10], state)  # which leaves room to spare
    logits, state = model(tokens[:, 10:20], state)
    with torch.no_grad():
        model(tokens[:, 20:], state)
    logits.sum().backward()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_flow_through_a_carried_state(name: str) -> None:
    """Backpropagating through two calls equals backpropagating through one, in float64."""
    model, tokens = build(name).double(), some_tokens(2, 20)
    model(tokens)[0].square().sum().backward()
    trained = [
        parameter for parameter in model.parameters() if parameter.grad is not None
    ]  # the index has its own loss
    whole = [parameter.grad.clone() for parameter in trained]
    model.zero_grad()
    first, state = model(tokens[:, :13])
    second, _ = model(tokens[:, 13:], state)
    (first.square().sum() + second.square().sum()).backward()
    for parameter, expected in zip(trained, whole, strict=True):
        torch.testing.assert_close(parameter.grad, expected, atol=1e-6, rtol=1e-6)


@pytest.fixture(params=["hfa", "simplemind", "hybrid", "transformer"])
def wide(request: pytest.FixtureRequest) -> LanguageModel:
    """A model that the kernels take."""
    anchors = {"window": 8, "block_size": 4} if request.param in ("hfa", "hybrid") else {}
    return build(request.param, d_model=64, **anchors)


@torch.no_grad()
def test_half_the_precision_on_a_processor(wide: LanguageModel) -> None:
    """Beyond the window and token by token, near to what it says in float32."""
    tokens = some_tokens(2, 60)
    exact, _ = wide(tokens)
    half = wide.to(torch.bfloat16)
    said, state = half(tokens[:, :50])
    for at in range(50, 60):
        logits, state = half.step(tokens[:, at], state)
        said = torch.cat([said, logits[:, None]], dim=1)
    assert said.dtype == torch.bfloat16
    errors = (said.float() - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert float(errors.median()) < 0.1, "some tokens read another block"


@torch.no_grad()
def test_read_under_autocast_and_continued_without(wide: LanguageModel) -> None:
    tokens = some_tokens(2, 40)
    exact, _ = wide(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        _, state = wide(tokens[:, :29])
    for at in range(29, 40):
        logits, state = wide.step(tokens[:, at], state)
    assert logits.dtype == torch.float32
    errors = (logits - exact[:, -1]).norm(dim=-1) / exact[:, -1].norm(dim=-1)
    assert float(errors.max()) < 0.2


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 3])
def test_other_rows_than_the_state_has_are_refused(wide: LanguageModel, rows: int) -> None:
    _, state = wide(some_tokens(2, 20))
    with pytest.raises(ValueError, match="cannot continue a state of 2 rows"):
        wide.step(some_tokens(rows, 1)[:, 0], state)


@torch.no_grad()
def test_rows_that_grow_apart_need_pages() -> None:
    model = build("hfa", d_model=64)
    _, state = model(some_tokens(2, 20))
    assert model.takes_varlen
    with pytest.raises(ValueError, match="no pages"):
        model.hidden_varlen(some_tokens(1, 5)[0], [4, 1], state)
    with pytest.raises(ValueError, match="at least 1 a row"):
        model.hidden_varlen(some_tokens(1, 5)[0], [5, 0], state)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_weight_that_is_not_a_number_is_seen_in_the_logits(wide: LanguageModel, dtype: torch.dtype) -> None:
    """Read at once, token by token, and in training: an engine and a training tell by it that something is broken."""
    tokens = some_tokens(2, 45)
    for name, parameter in wide.to(dtype).named_parameters():
        if ".index." in name or name == "embedding.weight":  # which tokens are read, and some of them alone
            continue
        whole = parameter.clone()
        parameter.view(-1)[0] = torch.nan
        _, state = wide(tokens[:, :30])
        steps = []
        for at in range(30, 45):
            logits, state = wide.step(tokens[:, at], state)
            steps.append(logits)
        found = {"at once": wide(tokens)[0], "in steps": torch.stack(steps, 1)}
        with torch.enable_grad():
            found["in training"] = wide.train()(tokens)[0].detach()
        wide.eval()
        parameter.copy_(whole)
        for how, logits in found.items():
            assert not logits.isfinite().flatten(1).all(1).any(), (name, how)  # of either row


def test_trained_under_autocast_with_a_softmax_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """As autocast has it on CUDA."""
    softmax = torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda x, dim: softmax(x.float(), dim))
    model = build("hfa", d_model=64).train()
    with torch.autocast("cpu", torch.bfloat16):
        model(some_tokens(2, 30))
        loss = model.auxiliary_loss()
    assert loss is not None
    loss.backward()
    gradients = [one.grad for name, one in model.named_parameters() if ".index." in name and one.requires_grad]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_a_model_can_be_copied_in_the_middle_of_a_step() -> None:
    model = build("hfa").train()
    model(some_tokens(2, 20))
    assert copy.deepcopy(model).auxiliary_loss() is None
    assert model.auxiliary_loss() is not None
