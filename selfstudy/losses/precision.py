"""Losses in float32: sums of exponentials overflow or lose precision in 16 bits."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run `function` outside autocast, its 16-bit arguments (also in lists) as float32."""
    call: Callable[..., R] = function

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        values: Any = [_to_float32(item) for item in args]
        named: Any = {name: _to_float32(item) for name, item in kwargs.items()}
        device = next(_tensors([*values, *named.values()])).device.type
        if device == "meta":  # of rehearsals; autocast does not support it
            return call(*values, **named)
        with torch.autocast(device, enabled=False):
            return call(*values, **named)

    return run


def _to_float32(item: Any) -> Any:
    """A 16-bit tensor, or those in a list, as float32; anything else as it is."""
    if isinstance(item, (list, tuple)):
        return [_to_float32(part) for part in item]
    narrow = isinstance(item, Tensor) and item.dtype in (torch.float16, torch.bfloat16)
    return item.float() if narrow else item


def _tensors(items: list) -> Iterator[Tensor]:
    for item in items:
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, list):
            yield from _tensors(item)
