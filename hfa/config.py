"""Configs: frozen, keyword-only dataclasses that own names, types and constraints; YAML owns the values.

A config is declared beside the class it builds::

    @config
    class MLPConfig(Config):
        d_model: PositiveInt
        d_ff: PositiveInt

        def check(self) -> None:
            if self.d_ff < self.d_model:
                raise ConfigError("d_ff", self.d_ff, f"at least d_model={self.d_model}")

        def build(self) -> MLP: ...

and made from a YAML node, whose ``_target_`` names it, by :func:`from_node`.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, dataclass_transform

import annotated_types
import pydantic

from hfa.errors import ConfigError

Name = Annotated[str, annotated_types.MinLen(1)]
PositiveInt = Annotated[int, annotated_types.Gt(0)]
NonNegativeInt = Annotated[int, annotated_types.Ge(0)]
PositiveFloat = Annotated[float, annotated_types.Gt(0)]
NonNegativeFloat = Annotated[float, annotated_types.Ge(0)]
Fraction = Annotated[float, annotated_types.Ge(0), annotated_types.Le(1)]

MAX_SEED = 2**31 - 1  # of a run; numpy's generators take some more

_T = TypeVar("_T")
_C = TypeVar("_C", bound="Config")
_STRICT = pydantic.ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)


@dataclass_transform(kw_only_default=True, frozen_default=True)
def config(cls: type[_T]) -> type[_T]:
    """Make `cls` a frozen, keyword-only dataclass whose field types are checked on construction."""
    return pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=_STRICT)(cls)  # type: ignore[return-value]


@config
class Config:
    """Base of all configs."""

    @pydantic.model_validator(mode="after")
    def _checked(self: _C) -> _C:
        self.check()
        return self

    def check(self) -> None:
        """Constraints between fields. Raises ConfigError with the field's own name as key."""

    def to_dict(self) -> dict[str, Any]:
        """The field values as plain JSON-able data, without ``_target_``."""
        return dataclasses.asdict(self)


def from_mapping(cls: type[_C], values: Mapping[str, Any], key: str) -> _C:
    """Make a `cls` from plain data, naming `key` in what goes wrong.

    Args:
        cls: the config class.
        values: field name to value; lists become tuples, nested ``_target_`` nodes become configs.
        key: where `values` stands in the configuration, e.g. ``model``; empty for all of it.

    Raises:
        ConfigError: an unknown or missing field, a wrong type, a broken constraint.
    """
    fields = {name: _convert(value, f"{key}.{name}" if key else name) for name, value in values.items()}
    try:
        return cls(**fields)
    except ConfigError as error:
        raise error.under(key) from None
    except pydantic.ValidationError as error:
        raise _sentence(cls, error.errors()[0], key) from None


def from_node(node: Mapping[str, Any], key: str, kind: type[_C]) -> _C:
    """Make the config that a YAML node's ``_target_`` names.

    Args:
        node: plain data (no interpolations left) with a ``_target_`` inside this package.
        key: where the node stands in the configuration.
        kind: the class the config must be a subclass of.

    Raises:
        ConfigError: no such target, a target of another kind, or as :func:`from_mapping`.
    """
    values = dict(node)
    target = values.pop("_target_", None)
    module, _, name = str(target).rpartition(".")
    cls = None
    if module.split(".")[0] == "hfa":
        try:
            cls = getattr(importlib.import_module(module), name, None)
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("hfa"):
                raise
    if not (isinstance(cls, type) and issubclass(cls, kind)):
        raise ConfigError(f"{key}._target_", target, f"the dotted name of a {kind.__name__} inside hfa")
    return from_mapping(cls, values, key)


class _Nothing:
    """Stands for a missing value in a sentence."""

    def __repr__(self) -> str:
        return "nothing"


def _convert(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        if "_target_" in value:
            return from_node(value, key, Config)
        return {name: _convert(inner, f"{key}.{name}") for name, inner in value.items()}
    if isinstance(value, list):
        return tuple(_convert(inner, f"{key}[{i}]") for i, inner in enumerate(value))
    return value


_EXPECTED = {"tuple_type": "a list, e.g. [1,2]"}  # where pydantic's word is Python's and not YAML's


def _sentence(cls: type[Config], problem: Mapping[str, Any], key: str) -> ConfigError:
    path = ".".join([*filter(None, [key]), *(str(part) for part in problem["loc"])])
    names = [field.name for field in dataclasses.fields(cls)]
    if problem["type"] == "unexpected_keyword_argument":
        close = difflib.get_close_matches(str(problem["loc"][-1]), names, n=1)
        expected = f"no such key in {cls.__name__}"
        return ConfigError(
            path, problem["input"], expected, f"did you mean {close[0]}?" if close else f"keys are {', '.join(names)}"
        )
    if problem["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return ConfigError(path, _Nothing(), "a value", "set it in the YAML or on the command line")
    expected = _EXPECTED.get(problem["type"]) or problem["msg"].removeprefix("Input should be ")
    expected = expected.removeprefix("Value error, ").removeprefix("String should have ")
    return ConfigError(path, problem["input"], expected)
