"""Utilities of all benchmarks: interleaved timing, Markdown tables, machine description."""

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy
import torch


def interleave(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median CPU seconds of one call of each function, by name.

    The functions are interleaved (A B C, A B C, ...), so that other load slows all of them
    equally and ratios are preserved. CPU time includes all threads of this process.
    """
    for function in functions.values():
        function()  # warm-up, not timed
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.process_time()
            function()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """A Markdown table, its columns padded; floats show three significant digits."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def prepare() -> str:
    """Set torch to one thread; return a line with the machine and versions."""
    torch.set_num_threads(1)
    return (
        f"{_cpu()}, 1 thread; Python {platform.python_version()}, "
        f"torch {torch.__version__}, numpy {numpy.__version__}"
    )


def _cpu() -> str:
    """The processor's model name (Linux), else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())
