"""Checks of the targets in a data file against their declaration."""

import math
from collections.abc import Iterator

from torch import Tensor

from selfstudy.types import IGNORED, Target
from util.errors import UserError

BLOCK = 1000  # rows checked at a time


def check(name: str, kind: Target, values: Tensor, size: tuple[int, int]) -> str:
    """Compare all rows of a target with its declaration.

    Args:
        name: of the target, for messages.
        kind: its declaration.
        values: [N, ...] as stored.
        size: height and width of the images.

    Returns:
        A summary, such as '[100, 5] int8, 0 to 1, mean 0.26, 3 of 500 unknown'.

    Raises:
        UserError: a value is invalid; names its row.
    """
    low, high, added, known = math.inf, -math.inf, 0.0, 0
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK]
        for wrong, why in _faults(kind, block, size):
            if wrong.any():
                row = int(wrong.reshape(len(wrong), -1).any(1).nonzero()[0])
                held = ", ".join(
                    f"{v:g}" for v in block[row][wrong[row]].flatten()[:5].tolist()
                )
                raise UserError(f"target '{name}', row {start + row}: {why}, not {held}")
        there = block[~_unknown(kind, block)].double()
        known += len(there)
        if len(there):
            low, high = min(low, float(there.min())), max(high, float(there.max()))
            added += float(there.sum())
    numbers = f"{low:g} to {high:g}, mean {added / known:.4g}" if known else "nothing known"
    form = f"{list(values.shape)} {str(values.dtype).removeprefix('torch.')}"
    unit = (
        values.shape[-1] if kind.kind in ("points", "boxes") else 1
    )  # a point or box counts once
    total = values.numel() // unit
    return f"{form}, {numbers}, {total - known // unit} of {total} unknown"


def _unknown(kind: Target, values: Tensor) -> Tensor:
    return values == IGNORED if kind.discrete else values.isnan()


def _faults(
    kind: Target, values: Tensor, size: tuple[int, int]
) -> Iterator[tuple[Tensor, str]]:
    """Yield masks of invalid values, [n] or [n, ...] bool, each with what was expected."""
    unknown = _unknown(kind, values)
    if kind.discrete:
        top = 2 if kind.kind == "labels" else kind.classes
        wrong = ~unknown & ((values < 0) | (values >= top))
        yield wrong, f"expected 0 to {top - 1}, or {IGNORED} where it is unknown"
        return
    yield values.isinf(), "expected a finite value or NaN"
    if kind.kind not in ("points", "boxes"):
        return
    yield unknown.any(-1) != unknown.all(-1), "expected all of it to be known, or all NaN"
    places = values[..., :4] if kind.kind == "boxes" else values
    limits = values.new_tensor(size[::-1]).repeat(places.shape[-1] // 2)
    outside = ((places < 0) | (places > limits)).any(-1)
    yield outside, f"expected a place in the image, {size[1]} wide and {size[0]} high"
    if kind.kind == "boxes":
        left, top, right, bottom, label = values.unbind(-1)
        yield (right <= left) | (bottom <= top), "expected left < right and top < bottom"
        strange = (label != label.round()) | (label < 0) | (label >= max(1, kind.classes))
        yield strange & ~label.isnan(), f"expected a class of 0 to {max(1, kind.classes) - 1}"
