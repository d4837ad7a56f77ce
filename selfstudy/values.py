"""Values of a configuration: do they fit the annotation, are they plain Python?

Gin itself checks no types, and silently leaves out of its record what it cannot write down.
"""

import ast
import inspect
import math
import types
import typing
from typing import Any

from selfstudy import registry
from selfstudy.registry import REQUIRED
from util.errors import UserError


def checked(name: str, value: Any, hint: Any, default: Any, where: str) -> Any:
    """`value` in the type that `hint` asks for; a `UserError` says what was expected."""
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
    origin = typing.get_origin(hint)
    if hint is Any:
        return True, value
    if origin is typing.Annotated:
        fits, value = _fit(value, hint.__origin__)
        for mark in hint.__metadata__:
            if fits and value is not None and isinstance(mark, registry.Names):
                registry.get(mark.kind, value)
        return fits, value
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        exact = [option for option in options if option is type(value)]
        for option in exact + [option for option in options if option not in exact]:
            fits, result = _fit(value, option)
            if fits:
                return True, result
        return False, value
    if origin is typing.Literal:
        return any(value == choice and type(value) is type(choice)
                   for choice in typing.get_args(hint)), value  # fmt: skip
    if hint is type(None):
        return value is None, value
    if hint is bool:
        return isinstance(value, bool), value
    if hint is int:
        integral = isinstance(value, float) and value.is_integer()
        fits = not isinstance(value, bool) and (isinstance(value, int) or integral)
        return fits, int(value) if fits else value
    if hint is float:
        number = not isinstance(value, bool) and isinstance(value, (int, float))
        fits = number and math.isfinite(value)  # gin's text of infinity does not parse
        return fits, float(value) if fits else value
    if origin in (list, tuple) or hint in (list, tuple):
        return _fit_sequence(value, hint)
    if origin is dict or hint is dict:
        return isinstance(value, dict), value
    return isinstance(value, hint), value


def _fit_sequence(value: Any, hint: Any) -> tuple[bool, Any]:
    """Lists and tuples are interchangeable, since some searchers turn one into the other."""
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
    """Undo Ray's nesting at slashes: {'valid': {'dataloader.x': 1}} -> 'valid/dataloader.x'."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and "." not in str(key):
            flat.update(flatten(value, f"{prefix}{key}/"))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def literal(name: str, value: Any) -> Any:
    """A search's value as a Python literal; gin drops anything else from its record."""
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
