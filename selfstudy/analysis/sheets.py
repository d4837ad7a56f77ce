"""Frames as CSV and Parquet: texts cleaned, and escaped so that no spreadsheet runs them."""

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from util import files

if TYPE_CHECKING:
    import pandas

_FORMULA = ("=", "+", "-", "@")


def clean(value: Any) -> Any:
    """A text without control characters and broken Unicode; other values as they are."""
    if not isinstance(value, str):
        return value
    return "".join(c if c.isprintable() or c in "\t\n" else " " for c in value)


def escape_formula(value: Any) -> Any:
    """A text escaped against formula evaluation by spreadsheets; numbers unchanged."""
    formula = isinstance(value, str) and value.lstrip().startswith(_FORMULA)
    return f"'{value}" if formula else value


def flatten(frame: "pandas.DataFrame") -> "pandas.DataFrame":
    """`frame` with clean texts, and one kind of value in each column.

    Lists become JSON text, and so do all values of a column that holds numbers and texts.
    """
    frame = frame.map(clean)
    frame.columns = _number_repeats([clean(name) for name in frame.columns])
    for name in [name for name in frame.columns if frame[name].dtype == "object"]:
        values = [None if value is None or value != value else value for value in frame[name]]
        kinds = {type(value) for value in values if value is not None}
        if kinds not in ({str}, {bool}):
            values = [value if value is None or isinstance(value, str)
                      else json.dumps(files.plain(value)) for value in values]  # fmt: skip
        frame[name] = values
    return frame


def _number_repeats(names: list[Any]) -> list[Any]:
    """Names of columns, with a number where cleaning has made two the same."""
    often = Counter()
    for at, name in enumerate(names):
        often[name] += 1
        names[at] = name if often[name] == 1 else f"{name} ({often[name]})"
    return names


def csv(frame: "pandas.DataFrame") -> str:
    """`frame` as the text of a CSV file."""
    return flatten(frame).rename(columns=escape_formula).map(escape_formula).to_csv(index=False)
