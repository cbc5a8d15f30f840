"""Peers from transformers behind our contract."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load, save

from hfa import checkpoint
from hfa.config import from_node
from hfa.data.tokenizers.byte import ByteTokenizer
from hfa.errors import CheckpointError, ConfigError
from hfa.models import LanguageModel, ModelConfig
from hfa.models.hf import _body
from hfa.models.state import flatten, num_bytes, select_rows, unflatten

pytest.importorskip("transformers")
CONF = Path(__file__).parents[3] / "conf" / "model" / "hf"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
SMALL = {"vocab_size": 61, "d_model": 32, "num_layers": 2, "num_heads": 2, "d_ff": 48, "max_seq_len": 256}


def build(name: str, **changes: Any) -> LanguageModel:
    node = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"), resolve=True)
    assert isinstance(node, dict)
    torch.manual_seed(0)
    changes = {"d_model": 128, **changes} if name == "xlstm" else changes
    return from_node({**node, **SMALL, **changes}, "model", ModelConfig).build().eval()  # type: ignore[dict-item, type-abstract]


def some_tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 61, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=NAMES, scope="module")
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return build(request.param)


@torch.no_grad()
def test_split_and_stepped_as_in_one_piece(model: LanguageModel) -> None:
    tokens = some_tokens(2, 24)
    whole, _ = model(tokens)
    state, parts = model.init_state(2), []
    for piece in tokens[:, :18].split(7, dim=1):
        logits, state = model(piece, state)
        parts.append(logits)
    for token in tokens[:, 18:].unbind(1):
        logits, state = model.step(token, state)
        parts.append(logits[:, None])
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=2e-4, rtol=0)


@torch.no_grad()
def test_a_state_is_a_value(model: LanguageModel) -> None:
    _, state = model(some_tokens(2, 11))
    following = some_tokens(2, 5, seed=1)
    expected, _ = model(following, state)
    model(some_tokens(2, 9, seed=2), state)
    torch.testing.assert_close(model(following, state)[0], expected)
    saved = unflatten(model.init_state(2), load(save(flatten(state))))
    torch.testing.assert_close(model(following, saved)[0], expected)
    alone, _ = model(following[1:], select_rows(state, [1]))
    torch.testing.assert_close(alone, expected[1:], atol=1e-4, rtol=0)


@torch.no_grad()
def test_state_bytes_is_what_a_state_holds(model: LanguageModel) -> None:
    for length in (1, 33):
        assert model.state_bytes(length) == num_bytes(model(some_tokens(1, length))[1])


def test_training_gives_every_weight_a_gradient(model: LanguageModel) -> None:
    fresh = model.train()
    logits, state = fresh(some_tokens(2, 20))
    logits.square().mean().backward()
    assert state is None
    assert all(parameter.grad is not None for parameter in fresh.parameters())
    fresh.zero_grad()
    with torch.no_grad():
        torch.testing.assert_close(fresh.eval()(some_tokens(2, 20))[0], logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_an_artifact_of_a_peer(name: str, tmp_path: Path) -> None:
    model, tokens = build(name, vocab_size=257), some_tokens(1, 12)
    checkpoint.save(tmp_path / "peer", model=model, tokenizer=ByteTokenizer(), provenance={})
    loaded = checkpoint.load(tmp_path / "peer").model
    with torch.no_grad():
        assert torch.equal(loaded(tokens)[0], model(tokens)[0])


def test_rows_of_other_lengths_are_refused() -> None:
    model = build("llama")
    _, state = model(some_tokens(2, 5))
    with pytest.raises(ValueError, match=r"rows of \[5, 4\] tokens"):
        model(some_tokens(2, 1), state._replace(length=torch.tensor([5, 4])))
    with pytest.raises(ValueError, match="cannot continue a state of 2 rows"):
        model(some_tokens(3, 1), state)


def test_what_the_package_does_not_have() -> None:
    with pytest.raises(ConfigError, match=r"architecture: got 'lama', expected a model_type of transformers"):
        build("llama", architecture="lama")
    with pytest.raises(ConfigError, match=r"settings: got 'hidden_sizes', expected values of LlamaConfig"):
        build("llama", settings={"hidden_sizes": 3})
    with pytest.raises(ConfigError, match=r"architecture: got 'llama', expected .* go together \(Padding_idx must be"):
        build("llama", settings={"pad_token_id": 10**6})
    with pytest.raises(ConfigError, match=r"dropout: got 0.1, expected 0 for a model of transformers"):
        build("llama", dropout=0.1)


OWN_HEADS: dict[str, tuple[dict[str, Any], str]] = {  # what is told beside sizes, and what turns the rest off
    "gemma2": ({"num_key_value_heads": 2, "head_dim": 16}, "final_logit_softcapping=30.0"),
    "granite": ({"logits_scaling": 8.0}, "logits_scaling=8.0"),
    "cohere": ({}, "logit_scale=0.0625"),
    "phi": ({}, "it has no values for that"),  # a bias
}


@pytest.mark.parametrize("name", OWN_HEADS)
def test_a_head_that_does_more_than_ours_is_refused(name: str) -> None:
    settings, remedy = OWN_HEADS[name]
    with pytest.raises(ConfigError, match="without cap, scale or bias") as refused:
        build("../hf", architecture=name, settings=settings)
    assert remedy in str(refused.value)
    key, _, value = remedy.partition("=")
    if value:
        off = {"final_logit_softcapping": None, "logits_scaling": 1.0, "logit_scale": 1.0}[key]
        build("../hf", architecture=name, settings={**settings, key: off})


def test_what_training_would_leave_out_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"settings.tie_word_embeddings: got False, expected true: .*; leave it out"):
        build("llama", settings={"tie_word_embeddings": False})
    with pytest.raises(ConfigError, match=r"settings.output_router_logits: got True, expected false: "):
        build("minimax", settings={"output_router_logits": True})
    with pytest.raises(ConfigError, match=r"architecture: got 'qwen3', expected sizes that fit .*num_key_value_heads"):
        build("../hf", architecture="qwen3")


def test_the_check_of_the_head_draws_no_random_numbers() -> None:
    """Weights are those of the seed, whatever was looked at."""
    model = build("llama")
    after = torch.rand(1)
    torch.manual_seed(0)
    body = _body(model.config)  # type: ignore[arg-type]
    assert torch.equal(body.layers[1].mlp.up_proj.weight, model.body.layers[1].mlp.up_proj.weight)  # type: ignore[attr-defined]
    assert torch.equal(torch.rand(1), after)


@pytest.mark.parametrize("key", ["auto_map", "quantization_config", "_attn_implementation", "dtype"])
def test_an_artifact_cannot_reach_beyond_the_package(key: str, tmp_path: Path) -> None:
    """What makes transformers fetch or run other code is no value of a model's own config."""
    folder = checkpoint.save(
        tmp_path / "peer", model=build("llama", vocab_size=257), tokenizer=ByteTokenizer(), provenance={}
    )
    description = json.loads((folder / "config.json").read_text())
    description["model"]["settings"] = {key: "x"}
    (folder / "config.json").write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match=rf"settings: got '{key}'"):
        checkpoint.load(folder)


OTHERS: dict[str, dict[str, Any]] = {  # what their configs are told beside sizes, and sizes they do not have
    "gpt2": {},
    "olmo2": {},
    "mistral": {"num_key_value_heads": 1, "sliding_window": 8},
    "mamba": {},
    "bamba": {
        "num_key_value_heads": 2,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "attn_layer_indices": [1],
    },
}
MISSING = {
    "gpt2": ("intermediate_size",),
    "mamba": ("intermediate_size", "num_attention_heads", "max_position_embeddings"),
}


@pytest.mark.parametrize("name", OTHERS)
@torch.no_grad()
def test_any_causal_model_by_its_config(name: str) -> None:
    node = OmegaConf.load(CONF.parent / "hf.yaml")
    sizes = {key: value for key, value in node.sizes.items() if key not in MISSING.get(name, ())}
    model = build("../hf", architecture=name, sizes=sizes, settings=OTHERS[name])
    tokens = some_tokens(2, 40)
    whole, _ = model(tokens)
    state, parts = model.init_state(2), []
    for piece in tokens.split(13, dim=1):
        logits, state = model(piece, state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=2e-4, rtol=0)
    assert model._one_by_one == (name == "mamba")  # type: ignore[attr-defined]


@torch.no_grad()
def test_a_context_beyond_a_table_of_positions_is_refused() -> None:
    node = OmegaConf.load(CONF.parent / "hf.yaml")
    sizes = {key: value for key, value in node.sizes.items() if key not in MISSING["gpt2"]}
    model = build("../hf", architecture="gpt2", sizes=sizes, max_seq_len=8)
    _, state = model(some_tokens(1, 8))
    refused = pytest.raises(ConfigError, match=r"model.max_seq_len: got 8, expected at least 9, the tokens of this")
    with refused:
        model(some_tokens(1, 9))
    with refused:
        model(some_tokens(1, 1), state)
    with refused, torch.enable_grad():
        model.train()(some_tokens(1, 9))
    shorter = {**OTHERS["gpt2"], "max_position_embeddings": 8}
    sizes = {key: value for key, value in sizes.items() if key != "max_position_embeddings"}
    with refused:
        build("../hf", architecture="gpt2", sizes=sizes, settings=shorter)(some_tokens(1, 9))
    rotary = build("llama", max_seq_len=8)
    assert rotary(some_tokens(1, 9))[0].shape == (1, 9, 61)
