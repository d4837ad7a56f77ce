"""Numbers, tables and names as short text, for a terminal or a page."""

import collections
import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

from util.errors import printable

# Column headings of the progress table (`util.progress`); no parameter may share one.
HEADS = ("trial", "status", "round", "last", "best", "rung", "s/round", "ETA")


def clock(seconds: float) -> str:
    """Seconds as 12:34 or 1:02:03."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


def table(rows: list[list[Any]], header: list[str]) -> str:
    """Rows as aligned text; numbers to the right, nothing that could drive a terminal."""
    cells = [[printable(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    numeric = [all(isinstance(row[i], (int, float)) or _number(row[i]) for row in rows)
               for i in range(len(header))]  # fmt: skip
    lines = []
    for row in cells:
        parts = [cell.rjust(width) if right else cell.ljust(width)
                 for cell, width, right in zip(row, widths, numeric, strict=True)]  # fmt: skip
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def _number(cell: Any) -> bool:
    return isinstance(cell, str) and cell.replace(".", "", 1).replace("-", "", 1).isdigit()


def summary(result: dict[str, Any]) -> str:
    """A round's result in a few words: round, accuracies, seconds."""
    words = [f"round {result['round']:g}/{result['rounds']:g}"]
    for name in ("train_loss", "train_accuracy", "valid_accuracy", "test_accuracy"):
        if isinstance(result.get(name), float):
            words.append(f"{name} {result[name]:.4f}")
    if finite(result.get("round_s")) is not None:
        words.append(f"{result['round_s']:.1f} s/round")
    return "  ".join(words)


def finite(value: Any) -> float | None:
    """A number that can be compared, else None."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None


def figure(value: float | None) -> str:
    """A metric or a pace in few digits."""
    if value is None:
        return "-"
    if value == 0 or 1e-3 <= abs(value) < 100:
        return f"{value:.4f}"
    return f"{value:.4g}" if abs(value) >= 100 else f"{value:.2g}"


def setting(value: Any) -> str:
    """A parameter's value in few digits, as long as a table could ever want it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(setting(item) for item in itertools.islice(value, 20)) + "]"
    return printable(str(value)[:100])


def short_names(names: Sequence[str]) -> dict[str, str]:
    """The number at the end of a trial's name, where it has one."""
    ends = {name: (re.search(r"\d+$", name) or [name])[0] for name in names}
    count = collections.Counter(ends.values())
    return {name: end if count[end] == 1 else name for name, end in ends.items()}


def headings(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The names whose values differ between rows, by their last part where that is clear."""
    names = dict.fromkeys(name for row in rows for name in row)
    vary = [name for name in names if len({repr(row.get(name)) for row in rows}) > 1]
    leaves = collections.Counter([*HEADS, *(name.rpartition(".")[2] for name in vary)])
    return {name: leaf if leaves[leaf := name.rpartition(".")[2]] == 1 else name
            for name in vary}  # fmt: skip
