"""An audit says what was read, and how it was found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from hfa.config import from_node
from hfa.metrics.plot_read import plot_reads
from hfa.models import LanguageModel, ModelConfig
from hfa.models.audit import Explanation, audit

CONF = Path(__file__).parents[3] / "conf" / "model" / "hfa.yaml"
SMALL = {
    "vocab_size": 61, "d_model": 32, "num_layers": 3, "num_heads": 2, "num_kv_heads": 1, "d_ff": 48, "dropout": 0.0,
    "window": 4, "block_size": 2, "num_retrieved": 4, "num_trees": 2, "beam": 2, "leaf_size": 3, "logn_length": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    node = OmegaConf.to_container(OmegaConf.load(CONF), resolve=True)
    assert isinstance(node, dict)
    torch.manual_seed(0)
    return from_node(node | SMALL, "model", ModelConfig).build().eval()


@pytest.fixture(scope="module")
def explained(model: LanguageModel) -> Explanation:
    """The last of 80 tokens, the first 50 of which came before."""
    tokens = torch.randint(0, 61, (2, 80), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, state = model.hidden(tokens[:, :50])
        with audit(model) as trail:
            model.hidden(tokens[:, 50:], state)
    (read,) = trail.reads  # one anchor layer, one call
    assert read.layer == 2
    explanation = read.explain(1, 29)
    assert explanation.positions[: (read.chosen[1, 0, 29] >= 0).sum()].tolist() == [
        position for position in read.chosen[1, 0, 29].tolist() if position >= 0
    ]
    return explanation


def test_an_explanation_is_of_the_window_and_of_what_was_retrieved(explained: Explanation) -> None:
    assert explained.position == 79
    assert explained.stored == 80
    assert explained.near_from == 74
    assert explained.positions.tolist()[-6:] == list(range(74, 80))
    assert explained.weights.shape == (2, len(explained.positions))
    torch.testing.assert_close(explained.weights.sum(-1), torch.ones(2))


def test_whatever_was_retrieved_stands_in_a_leaf_that_was_reached(explained: Explanation) -> None:
    reached = {position for leaf in explained.leaves for position in leaf.positions}
    assert set(explained.positions[explained.positions < explained.near_from].tolist()) <= reached
    for leaf in explained.leaves:
        assert leaf.path
        assert leaf.regret >= 0
        assert len(leaf.positions) == min(leaf.size, 3)


def test_the_verdict_names_the_step_that_lost_the_evidence(explained: Explanation) -> None:
    reached = {position for leaf in explained.leaves for position in leaf.positions}
    lost = next(position for position in range(74) if position not in reached)
    assert explained.verdict(80).startswith("storage: the memory holds 80 tokens")
    assert explained.verdict(76).startswith("read in the window, with weight 0.")
    assert explained.verdict(lost) == "selection: in no leaf that the query came to"
    assert "read with weight" in explained.verdict(int(explained.positions[0]))
    assert explained.weight(lost) == 0


def test_nothing_is_recorded_after_an_audit(model: LanguageModel) -> None:
    with audit(model) as trail:
        pass
    model(torch.zeros(1, 9, dtype=torch.long))
    assert not trail.reads


def test_while_all_is_in_the_window_there_are_no_leaves(model: LanguageModel, tmp_path: Path) -> None:
    with audit(model) as trail:
        model(torch.zeros(1, 4, dtype=torch.long))
    explanation = trail.reads[0].explain(0, 3)
    assert explanation.leaves == []
    picture = plot_reads([explanation.to_json()], 1, {1: "a [b] c"}, tmp_path / "audit.png", "title")
    assert picture.stat().st_size > 10_000
