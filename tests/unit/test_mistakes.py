"""What a user got wrong, in one sentence."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from hfa.errors import ConfigError
from hfa.mistakes import no_such_flag, sentence

CONF = Path(__file__).parents[2] / "conf"

MISTAKES = {
    "model=hfaa": "model: no option 'hfaa'; did you mean hfa? choose one of hf, hfa, hybrid, simplemind, transformer.",
    "modell=hfa": "modell: there is no such key; did you mean model?",
    "model.d_modle=64": "model.d_modle: there is no such key; did you mean model.d_model?",
    "zzzzz=1": "zzzzz: there is no such key; python train.py --cfg job shows all there are.",
    "seed=???": "seed: no value yet, and it must have one; set it on the command line.",
    "seed": "'seed' is not understood (error parsing override 'seed'); write key=value, in quotes if a shell may "
    "change it.",
    "seed=1,2": "seed: got several values, 1,2; add -m to run one job for each, or write [1,2] for a list.",
    "seed=${nothing}": "seed: Interpolation key 'nothing' not found.",
    "+seed=1": "Could not append to config. An item is already at 'seed'. Either remove + prefix: 'seed=1' Or add a "
    "second + to add or override 'seed': '++seed=1'.",
    "hydra/sweeper=optunaa": "hydra/sweeper: no option 'optunaa'; choose one of basic.",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_sentence(override: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"), pytest.raises(Exception) as caught:  # noqa: PT011
        OmegaConf.to_container(compose("train", ["name=x", override]), resolve=True, throw_on_missing=True)
    assert sentence(caught.value, CONF / "train.yaml") == MISTAKES[override]


def test_our_own_errors_are_sentences_already() -> None:
    error = ConfigError("model.num_heads", 3, "a divisor of d_model=32")
    assert sentence(error) == "model.num_heads: got 3, expected a divisor of d_model=32."


def test_a_full_disk_is_no_matter_of_permissions() -> None:
    said = sentence(OSError(errno.ENOSPC, "No space left on device", "outputs/a/metrics.csv"))
    assert said == "outputs/a/metrics.csv: No space left on device; see to that on this machine, and start again."
    assert sentence(OSError(errno.ENOSPC, "No space left on device")) is not None


def test_what_is_not_the_users_mistake() -> None:
    assert sentence(RuntimeError("out of luck")) is None
    with pytest.raises(Exception) as caught:  # noqa: PT011
        instantiate({"_target_": "nowhere.at.all"})
    assert sentence(caught.value) is None


@pytest.mark.parametrize(
    ("flag", "example"),
    [("--optimizer.lr=0.1", "optimizer.lr=0.1"), ("--batch-size", "batch_size=VALUE"), ("-x", "x=VALUE")],
)
def test_flags_that_are_none(flag: str, example: str) -> None:
    expected = f"{flag}: there is no such flag; values are set without dashes, as in {example}."
    assert str(no_such_flag(flag)) == expected
