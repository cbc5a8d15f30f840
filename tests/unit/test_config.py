"""What a wrong value says: the key as the user types it, what came, what was expected."""

from __future__ import annotations

from typing import Any

import pytest

from hfa.config import Config, Fraction, PositiveInt, config, from_mapping, from_node
from hfa.errors import ConfigError
from hfa.models import ModelConfig


@config
class Sizes(Config):
    width: PositiveInt
    rate: Fraction
    spans: tuple[int, ...]

    def check(self) -> None:
        if self.width == 7:
            raise ConfigError("width", 7, "not seven")


GOOD = {"width": 4, "rate": 0.5, "spans": [1, 2]}


def test_lists_become_tuples_and_values_come_back() -> None:
    sizes = from_mapping(Sizes, GOOD, "model")
    assert sizes.to_dict() == {"width": 4, "rate": 0.5, "spans": (1, 2)}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"width": 0}, "model.width: got 0, expected greater than 0."),
        ({"width": 7}, "model.width: got 7, expected not seven."),
        ({"width": "abc"}, "model.width: got 'abc', expected a valid integer."),
        ({"width": True}, "model.width: got True, expected a valid integer."),
        ({"width": 2.5}, "model.width: got 2.5, expected a valid integer."),
        ({"rate": 1.5}, "model.rate: got 1.5, expected less than or equal to 1."),
        ({"spans": [1, "x"]}, "model.spans.1: got 'x', expected a valid integer."),
        ({"widht": 3}, "model.widht: got 3, expected no such key in Sizes; did you mean width?."),
    ],
)
def test_one_sentence_names_the_key(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_mapping(Sizes, GOOD | change, "model")
    assert str(caught.value) == sentence


def test_a_missing_value_is_named() -> None:
    with pytest.raises(ConfigError, match=r"model\.rate: got nothing, expected a value"):
        from_mapping(Sizes, {"width": 1, "spans": []}, "model")


def test_keys_of_the_whole_configuration_have_no_prefix() -> None:
    with pytest.raises(ConfigError, match=r"^width: got 7"):
        from_mapping(Sizes, GOOD | {"width": 7}, "")
    with pytest.raises(ConfigError, match=r"^rate: got 2"):
        from_mapping(Sizes, GOOD | {"rate": 2}, "")


@pytest.mark.parametrize(
    "target", ["os.system", "hfa.models.flow.Flow", "hfa.nowhere.X", "hfa.models.hfa.NoSuchConfig", "", None]
)
def test_a_target_outside_the_package_or_of_another_kind_is_refused(target: str | None) -> None:
    with pytest.raises(ConfigError, match=r"model\._target_"):
        from_node({"_target_": target}, "model", ModelConfig)


def test_configs_do_not_change() -> None:
    with pytest.raises(AttributeError):
        from_mapping(Sizes, GOOD, "model").width = 3  # type: ignore[misc]
