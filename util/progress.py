"""Progress with an estimate of the time left: a bar on a terminal, plain lines elsewhere."""

import math
import sys
import time
from typing import Any

from util.errors import printable

EVERY = 10.0  # seconds between two plain lines of results
HEARTBEAT = 60.0  # seconds until a plain line within a long round


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
    return "  ".join([*words, f"{result['round_s']:.1f} s/round"])


class Progress:
    """Shows how far several trials are; use it as a context manager.

    Args:
        trials: how many there are in all.
        rounds: rounds that are left to do, of all trials together.
        quiet: show nothing.
    """

    def __init__(self, trials: int, rounds: float, quiet: bool = False):
        self.trials, self.rounds, self.quiet = trials, max(rounds, 1e-9), quiet
        self.at: dict[str, float] = {}  # trial -> rounds done since the start
        self.ended = 0
        self.info = ""
        self.start = self.said = time.monotonic()
        self.bar = None if quiet or not sys.stderr.isatty() else _Bar()

    def __enter__(self) -> "Progress":
        if self.bar:
            self.bar.open()
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar:
            self.bar.close()

    def step(self, trial: str, rounds: float, info: str = "") -> None:
        """`trial` has done so many (fractional) rounds since the start."""
        self.at[trial] = rounds
        if self.bar:
            self.bar.show(self.share, self._line(info or self.info))

    def round(self, trial: str, result: dict[str, Any]) -> None:
        """`trial` has done one more round, with this result."""
        if result.get("weights"):
            self.say(f"{trial}: {result['weights']}")
        self.info = (f"{trial}  " if self.trials > 1 else "") + summary(result)
        self.step(trial, math.floor(self.at.get(trial, 0.0)) + 1)
        now = time.monotonic()
        if not self.bar and (
            now - self.said >= EVERY or result["round"] == 1 or result["done"]
        ):
            self.say(self._line(self.info))
            self.said = now

    def partial(self, trial: str, split: str, done: int, count: int) -> None:
        """`trial` is within a round: `done` of `count` minibatches of `split`."""
        whole = math.floor(self.at.get(trial, 0.0))
        share = done / max(count, 1) if split == "train" else 1.0
        self.step(trial, whole + min(share, 1.0) * 0.999)
        if not self.bar and time.monotonic() - self.said >= HEARTBEAT:
            self.say(self._line(f"{self.info}  {split} {done}/{count}".strip()))
            self.said = time.monotonic()

    def end(self, trial: str, error: str | None = None) -> None:
        """`trial` has ended, or failed with the first line of `error`."""
        self.ended += 1
        if error:
            self.say(f"{trial} failed: {printable(error)}")

    def say(self, text: str) -> None:
        """One line of its own."""
        if self.quiet:
            return
        if self.bar:
            self.bar.say(text)
        else:
            print(printable(text), file=sys.stderr, flush=True)

    @property
    def share(self) -> float:
        """The share of the work that is done, 0 to 1."""
        return min(1.0, sum(self.at.values()) / self.rounds)

    def eta(self) -> str:
        """The time that the rest will take at the pace so far."""
        if self.share <= 0:
            return "--:--"
        return clock((time.monotonic() - self.start) * (1 / self.share - 1))

    def _line(self, info: str) -> str:
        trials = f"{self.ended}/{self.trials} trials  " if self.trials > 1 else ""
        return f"{trials}{info}  ETA {self.eta()}"


class _Bar:
    """A bar of rich on stderr; names are printed as they are, without markup."""

    def __init__(self):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        self.console = Console(stderr=True)
        self.progress = Progress(
            BarColumn(30), TaskProgressColumn(), TextColumn("{task.description}", markup=False),
            console=self.console, transient=True,
        )  # fmt: skip
        self.task = self.progress.add_task("", total=1.0)

    def open(self) -> None:
        self.progress.start()

    def close(self) -> None:
        self.progress.stop()

    def show(self, share: float, text: str) -> None:
        self.progress.update(self.task, completed=share, description=printable(text))

    def say(self, text: str) -> None:
        self.console.print(printable(text), markup=False, highlight=False)
