"""Sizes, defaults and what an impossible combination says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from hfa.config import from_node
from hfa.errors import ConfigError
from hfa.models import ModelConfig, architectures

CONF = Path(__file__).parents[3] / "conf" / "model"


def node(name: str) -> dict[str, Any]:
    values = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"), resolve=True)
    assert isinstance(values, dict)
    return values  # type: ignore[return-value]


def test_every_architecture_has_a_yaml_of_its_name_and_every_yaml_an_architecture() -> None:
    """Or a folder of YAMLs; the peers have both."""
    assert sorted(architectures()) == sorted({path.stem for path in CONF.iterdir()})
    for name, kind in architectures().items():
        if (CONF / name).is_dir():
            continue  # needs the package that the peers come from: tests/unit/models/test_hf.py
        assert isinstance(from_node(node(name), "model", ModelConfig), kind)


@pytest.mark.parametrize("name", ["hfa", "simplemind"])
def test_default_sizes_are_the_designs(name: str) -> None:
    sizes = from_node(node(name), "model", ModelConfig).to_dict()
    design = {"vocab_size": 50257, "d_model": 512, "num_layers": 6, "num_heads": 8, "d_ff": 2048}
    design |= {"dropout": 0.1, "max_seq_len": 100_000} | ({"num_channels": 64} if name == "simplemind" else {})
    assert {key: sizes[key] for key in design} == design


@pytest.mark.parametrize("name", ["hfa", "simplemind", "hybrid", "transformer"])
def test_no_parameter_is_a_scalar(name: str) -> None:
    """FSDP shards none."""
    with torch.device("meta"):
        model = from_node(node(name), "model", ModelConfig).build()
    assert all(parameter.ndim for parameter in model.parameters())


@pytest.mark.parametrize(("name", "mebibytes"), [("hfa", 256), ("simplemind", 4)])
def test_state_of_the_default_size_fits_its_budget(name: str, mebibytes: int) -> None:
    with torch.device("meta"):
        model = from_node(node(name), "model", ModelConfig).build()
    assert model.state_bytes(100_000) <= mebibytes << 20


@pytest.mark.parametrize(
    ("name", "change", "key"),
    [
        ("hfa", {"num_heads": 7}, r"model\.num_heads: got 7, expected a divisor of d_model=512"),
        ("hfa", {"num_layers": 2}, r"model\.pattern: .* 2 layers never come to anchor"),
        ("hfa", {"pattern": ["routed"]}, r"model\.pattern\.0: got 'routed', expected 'flow' or 'anchor'"),
        ("hfa", {"num_kv_heads": 3}, r"model\.num_kv_heads: got 3"),
        ("hfa", {"dropout": 1.0}, r"model\.dropout: got 1\.0, expected less than 1"),
        ("simplemind", {"active_channels": 64}, r"model\.active_channels: got 64, expected fewer than"),
        ("simplemind", {"chunk_size": 128}, r"model\.chunk_size: got 128, expected at most 66"),
        ("simplemind", {"router": "random"}, r"model\.router: got 'random', expected 'dynamic', 'soft' or 'hard'"),
        ("transformer", {"num_kv_heads": 5}, r"model\.num_kv_heads: got 5"),
        ("hybrid", {"pattern": []}, r"model\.pattern"),
    ],
)
def test_an_impossible_combination_is_one_sentence(name: str, change: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        from_node(node(name) | change, "model", ModelConfig)
