"""Configuration values: checked against annotations, and converted to plain Python.

Gin itself checks no types, and silently omits from its record what has no literal form.
"""

import ast
import inspect
import math
import types
import typing
from collections.abc import Callable
from typing import Any

from selfstudy import registry
from selfstudy.registry import REQUIRED
from util.errors import UserError


def convert(name: str, value: Any, hint: Any, default: Any, where: str) -> Any:
    """`value` converted to an annotated type.

    Args:
        name: gin name of the argument, for the message.
        value: as configured.
        hint: the argument's annotation.
        default: of the argument, for the message.
        where: location of the binding, such as file and line.

    Raises:
        UserError: the value does not fit; the message says what was expected.
    """
    try:
        fits, result = _fit(value, hint)
    except UserError as error:
        raise UserError(f"{where}: {error.text}") from None
    if not fits:
        shown = f'"{value}"' if isinstance(value, str) else repr(value)
        shown_default = "" if default in (inspect.Parameter.empty, REQUIRED) else (
            f"; the default is {default!r}")  # fmt: skip
        raise UserError(
            f"{where}: '{name}' takes {_describe(hint)}, not {shown} ({type(value).__name__})"
            f"{shown_default}"
        )
    return result


def _fit(value: Any, hint: Any) -> tuple[bool, Any]:
    """Whether `value` fits the annotation, and the value in that type (1e3 as int 1000)."""
    kind = typing.get_origin(hint) or hint
    if kind is Any:
        return True, value
    if kind in _FITS:
        return _FITS[kind](value, hint)
    return isinstance(value, kind), value


def _fit_annotated(value: Any, hint: Any) -> tuple[bool, Any]:
    """An annotated type; with `registry.Names` the value must be a registered name."""
    fits, value = _fit(value, hint.__origin__)
    if fits and value is not None:
        for mark in hint.__metadata__:
            if isinstance(mark, registry.Names):
                registry.get(mark.kind, value)
    return fits, value


def _fit_union(value: Any, hint: Any) -> tuple[bool, Any]:
    """The first option that fits; the value's own type goes first (True is no int here)."""
    options = sorted(typing.get_args(hint), key=lambda option: option is not type(value))
    for option in options:
        fits, result = _fit(value, option)
        if fits:
            return True, result
    return False, value


def _fit_literal(value: Any, hint: Any) -> tuple[bool, Any]:
    choices = typing.get_args(hint)
    return any(value == choice and type(value) is type(choice) for choice in choices), value


def _fit_int(value: Any, hint: Any) -> tuple[bool, Any]:
    """Integers, and floats without a fraction (gin reads 1e3 as a float); no booleans."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False, value
    fits = isinstance(value, int) or value.is_integer()
    return fits, int(value) if fits else value


def _fit_float(value: Any, hint: Any) -> tuple[bool, Any]:
    """Finite numbers: gin cannot parse the text that it writes for infinity."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    fits = number and math.isfinite(value)
    return fits, float(value) if fits else value


def _fit_sequence(value: Any, hint: Any) -> tuple[bool, Any]:
    """Lists and tuples, interchangeable since some searchers convert one to the other."""
    if not isinstance(value, (list, tuple)):
        return False, value
    args = [arg for arg in typing.get_args(hint) if arg is not Ellipsis]
    if (typing.get_origin(hint) or hint) is tuple and len(args) > 1:
        if len(args) != len(value):
            return False, value
        items = [_fit(item, arg) for item, arg in zip(value, args, strict=True)]
    else:
        items = [_fit(item, args[0] if args else Any) for item in value]
    return all(fits for fits, _ in items), [item for _, item in items]


# Kind of annotation -> (value, annotation) -> (fits, converted value); others: isinstance.
_FITS: dict[Any, Callable[[Any, Any], tuple[bool, Any]]] = {
    typing.Annotated: _fit_annotated,
    typing.Union: _fit_union,
    types.UnionType: _fit_union,
    typing.Literal: _fit_literal,
    int: _fit_int,
    float: _fit_float,
    list: _fit_sequence,
    tuple: _fit_sequence,
}


def _describe(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _describe(hint.__origin__)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(option) for option in typing.get_args(hint))
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(hint))
    if hint is type(None):
        return "None"
    return getattr(hint, "__name__", str(hint)) if origin is None else str(hint)


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Undo Ray's nesting by slashes: {'valid': {'dataloader.x': 1}} -> 'valid/dataloader.x'."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and "." not in str(key):
            flat.update(flatten(value, f"{prefix}{key}/"))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def literal(name: str, value: Any) -> Any:
    """A search's value as a Python literal; gin omits anything else from its record."""
    if isinstance(value, (list, tuple)):
        return [literal(name, item) for item in value]
    if isinstance(value, dict):
        return {key: literal(name, item) for key, item in value.items()}
    try:
        value = value.item() if hasattr(value, "item") else value
        same = ast.literal_eval(repr(value)) == value
    except (ValueError, SyntaxError):
        same = False
    if not same:
        raise UserError(f"ray config: '{name}' is {value!r}, which is no plain Python value")
    return value
