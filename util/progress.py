"""Progress with an estimate of the time left: a table on a terminal, plain lines elsewhere."""

import collections
import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from util.errors import printable
from util.forecast import AT_WORK, ENDED, Forecast, TrialProgress
from util.text import clock, figure, finite, headings, setting, short_names, summary

if TYPE_CHECKING:  # rich is imported when there is something to draw
    from rich.console import RenderableType

    from util.live import Column

EVERY = 10.0  # seconds between two plain lines of results
HEARTBEAT = 60.0  # seconds until a plain line within a long round
REFRESH = 0.25  # seconds between two pictures; without news it is one a second
RECENT = 99  # rounds that the median pace is taken of

COLORS = {
    "running": "cyan", "retried": "yellow", "done": "green", "stopped": "blue",
    "failed": "red", "diverged": "red", "interrupted": "yellow",
}  # fmt: skip


class ProgressTable:
    """Shows how far the trials of an experiment are; use it as a context manager.

    Args:
        trials: name -> what is known of it, in the order of the plan.
        total: how many there will be in all; a search adds them one by one.
        metric: name of the result that they are ranked by.
        mode: "max" or "min".
        quiet: show nothing.
        slots: what is in use, such as "CPU 2/2 GPU 3.5/4"; may be set again.
        rung: result -> name of the scheduler's rung that it has reached.
    """

    def __init__(
        self,
        trials: dict[str, TrialProgress],
        *,
        total: int,
        metric: str,
        mode: str,
        quiet: bool,
        slots: str = "",
        rung: Callable[[dict[str, Any]], str] | None = None,
    ):
        self.trials, self.total = dict(trials), max(total, len(trials))
        self.metric, self.sign, self.quiet = metric, -1 if mode == "min" else 1, quiet
        self.slots, self.rung = slots, rung
        self.info = ""  # the last result in words
        self._paces: collections.deque[float] = collections.deque(maxlen=RECENT)
        self._peak = 1  # trials that ran side by side
        self._named: tuple[dict[str, str], dict[str, str]] | None = None
        self._screen = None
        self._paint: Callable[[str, str], str] = lambda text, style: text
        self._news, self._drawn, self._said = True, 0.0, time.monotonic()
        # The watching thread draws while the caller reports. Nothing is printed under the lock.
        self._lock, self._closed = threading.RLock(), threading.Event()
        self._watching: threading.Thread | None = None
        for trial in self.trials.values():
            if trial.status in AT_WORK:
                trial.status = "planned"  # it was so in another driver
            self._paces.extend(trial.paces)
            if trial.last:
                self._judge(trial)

    def __enter__(self) -> "ProgressTable":
        if not self.quiet:
            from util import live

            self._screen, self._paint = live.screen(), live.painter()
            if self._screen:
                self._screen.open()
            self._watching = threading.Thread(target=self._watch, daemon=True)
            self._watching.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        if self._watching:
            self._watching.join()
        if self._screen:
            self._screen.close()
            self._screen = None

    # What the caller reports.

    def add(self, name: str, values: dict[str, Any], rounds: float) -> None:
        """A search algorithm has suggested another trial."""
        with self._changes():
            self.trials[name] = TrialProgress(values, rounds)
            self.total = max(self.total, len(self.trials))
            self._named = None

    def start(self, name: str) -> None:
        """`name` begins, or continues, in a worker."""
        trial = self.trials[name]
        with self._changes():
            trial.begin(time.monotonic())
            at_work = sum(other.status in AT_WORK for other in self.trials.values())
            self._peak = max(self._peak, at_work)
        if self._plain and self.total > 1:
            after = f" after round {trial.round:g}" if trial.round else ""
            self.say(f"{name} started{after}")

    def round(self, name: str, result: dict[str, Any]) -> None:
        """`name` has done one more round, with this result."""
        trial = self.trials[name]
        with self._changes():
            first, ends = not trial.heard, result.get("done")
            pace = trial.take(result, time.monotonic())
            if pace is not None:
                self._paces.append(pace)
            self._judge(trial)
            self.info = (f"{name}  " if self.total > 1 else "") + summary(result)
        if result.get("weights"):
            self.say(f"{name}: {result['weights']}")
        due = first or time.monotonic() - self._said >= EVERY
        wanted = due or ends if self.total == 1 else due and not ends  # `end` reports those
        if self._plain and wanted:
            self.say(self._line(self.info))

    def partial(self, name: str, split: str, done: int, count: int) -> None:
        """`name` is within a round: `done` of `count` minibatches of `split`."""
        trial = self.trials[name]
        with self._changes():
            share = done / max(count, 1) if split == "train" else 1.0
            trial.within, trial.since = min(share, 1.0) * 0.999, time.monotonic()
            trial.where = f"{split} {done}/{count}"

    def end(self, name: str, status: str, why: str | None = None) -> None:
        """`name` runs no more: done, stopped, failed, diverged or interrupted."""
        trial = self.trials[name]
        with self._changes():
            trial.status, trial.within, trial.where = status, 0.0, ""
        because = f": {why}" if why else ""
        if self._screen and status in ("failed", "diverged"):
            self.say(f"{name} {status}{because}", status)
        elif self._plain and (self.total > 1 or status != "done"):
            self.say(f"{name} {status}{because}{self._outcome(trial)}", status)

    def retry(self, name: str, why: str) -> None:
        """The worker of `name` died; it continues in another."""
        trial = self.trials[name]
        with self._changes():
            trial.begin(time.monotonic())
            trial.status = "retried"
        self.say(f"{name}: {why}; it continues", "retried")

    def say(self, text: str, status: str = "") -> None:
        """A separate line, in the colour of a status."""
        if self.quiet:
            return
        self._said, color = time.monotonic(), COLORS.get(status, "")
        # The trials go on when the terminal is gone, and when a signal speaks within a word.
        with contextlib.suppress(OSError, RuntimeError):
            if self._screen:
                self._screen.say(text, color)
            else:
                print(self._paint(printable(text), color), file=sys.stderr, flush=True)

    # What follows from it.

    @property
    def share(self) -> float:
        """The share of the rounds to be expected that is done, 0 to 1."""
        with self._lock:
            return self._forecast().share()

    def eta(self) -> str:
        """The time that the rest will take, at the median pace of the last rounds."""
        with self._lock:
            seconds = self._forecast().seconds_left(self._peak, time.monotonic())
        return "--:--" if seconds is None else clock(seconds)

    def picture(self, width: int, height: int) -> "RenderableType":
        """What a terminal of this size shows now, as rich draws it."""
        from util import live

        with self._lock:
            if self.total == 1:
                return live.bar(self.share, f"ETA {self.eta()}  {self._only_trial()}", width)
            rows = self._select_rows(max(1, height - 4))
            columns = self._columns(rows)
            kept = live.fit(columns, width)
            notes = [self._more(rows, len(columns) - len(kept)), self._footer(width)]
            waits = [self.trials[name].status == "planned" for name in rows]
        return live.board(kept, waits, [note for note in notes if note])

    # Drawing and plain lines.

    @contextlib.contextmanager
    def _changes(self) -> Iterator[None]:
        with self._lock:
            yield
            self._news = True

    def _forecast(self) -> Forecast:
        return Forecast(self.trials.values(), self.total, self._paces)

    def _judge(self, trial: TrialProgress) -> None:
        """What its last result says: the rung it has reached, and whether it is its best."""
        if self.rung:
            trial.rung = self.rung(trial.last)
        value = finite(trial.last.get(self.metric))
        if value is not None and (trial.best is None or self.sign * (value - trial.best) > 0):
            trial.best = value

    @property
    def _plain(self) -> bool:
        """Whether events get lines of their own, for want of a table."""
        return not (self._screen or self.quiet)

    def _watch(self) -> None:
        with contextlib.suppress(OSError):  # the terminal is gone; the trials go on
            while not self._closed.wait(REFRESH):
                self._tick()

    def _tick(self) -> None:
        """Draw when there is news, or say after a long silence that all is well."""
        now = time.monotonic()
        if self._screen:
            if self._news or now - self._drawn >= 1:
                self._news, self._drawn = False, now
                self._screen.draw(self.picture)
        elif now - self._said >= HEARTBEAT:
            self.say(self._alive())

    # Texts.

    def _only_trial(self) -> str:
        """How far the only trial is."""
        trial = next(iter(self.trials.values()), TrialProgress({}, 1.0))
        at = self.info or f"round {trial.round:g}/{trial.rounds:g}"
        return f"{at}  {trial.where}" if trial.where and not self._screen else at

    def _line(self, info: str) -> str:
        ended = sum(trial.status in ENDED for trial in self.trials.values())
        trials = f"{ended}/{self.total} trials - " if self.total > 1 else ""
        return f"{trials}{info} - ETA {self.eta()}"

    def _alive(self) -> str:
        """The line of a heartbeat."""
        with self._lock:
            if self.total == 1:
                return self._line(self._only_trial())
            within = [
                f" - {name} {trial.where}" for name, trial in self.trials.items() if trial.where
            ]
            return self._footer() + "".join(within[:1])

    def _outcome(self, trial: TrialProgress) -> str:
        """What a trial that has ended reached, and what is left to the others."""
        text = ""
        if trial.last:
            last = figure(finite(trial.last.get(self.metric)))
            best = f" (best {figure(trial.best)})" if trial.best is not None else ""
            text = f" - round {trial.round:g}/{trial.rounds:g} - {self.metric} {last}{best}"
        return f"{text} - ETA {self.eta()}" if self.total > 1 else text

    def _footer(self, width: int | None = None) -> str:
        """Counts, the best so far, what is in use, the time left; in a width, what fits."""
        count = collections.Counter(trial.status for trial in self.trials.values())
        count["running"] += count.pop("retried", 0)
        first = [f"{count['done']}/{self.total} done"]
        first += [f"{count[status]} {status}" for status in COLORS
                  if count[status] and status != "done"]  # fmt: skip
        last = [f"ETA {self.eta()}"]
        best, slots = self._best(), [self.slots] if self.slots else []
        named = [f"best {self.metric} {best}"] if best else []
        short = [f"best {best}"] if best else []
        text = ""
        for middle in (named + slots, short + slots, short, []):
            text = " - ".join(first + middle + last)
            if width is None or len(text) <= width:
                break
        return text

    def _best(self) -> str:
        """The best value so far and whose it is, such as "0.9120 (0003)"."""
        scored = [name for name, trial in self.trials.items() if trial.best is not None]
        if not scored:
            return ""
        name = min(scored, key=lambda name: self._rank(self.trials[name]))
        return f"{figure(self.trials[name].best)} ({self._names()[0][name]})"

    # Table.

    def _select_rows(self, room: int) -> list[str]:
        """The names that are shown, best first; those at work are the last to be left out."""
        order = {name: (self._rank(trial), number)
                 for number, (name, trial) in enumerate(self.trials.items())}  # fmt: skip
        wanted = sorted(
            order, key=lambda name: (self.trials[name].status not in AT_WORK, order[name])
        )
        return sorted(wanted[:room], key=order.__getitem__)

    def _rank(self, trial: TrialProgress) -> tuple[int, float]:
        if trial.best is not None:
            return 0, -self.sign * trial.best
        return (1 if trial.status in AT_WORK else 2 if trial.status in ENDED else 3), 0.0

    def _more(self, rows: list[str], columns: int) -> str:
        """What the table leaves out."""
        hidden = collections.Counter(trial.status for trial in self.trials.values())
        hidden.subtract(self.trials[name].status for name in rows)
        hidden["planned"] += self.total - len(self.trials)
        kinds = [f"{count} {status}" for status, count in hidden.most_common() if count]
        left_out = [f"{self.total - len(rows)} more ({', '.join(kinds)})"] if kinds else []
        left_out += [f"{columns} columns left out"] if columns else []
        return "... " + ", ".join(left_out) if left_out else ""

    def _names(self) -> tuple[dict[str, str], dict[str, str]]:
        """Short names of the trials, and headings of the parameters that vary."""
        if self._named is None:
            self._named = (
                short_names(list(self.trials)),
                headings([trial.values for trial in self.trials.values()]),
            )
        return self._named

    def _columns(self, rows: list[str]) -> "list[Column]":
        """All columns; `spare` orders what a narrow terminal does without."""
        from util.live import Column

        names, heads = self._names()
        trials = [self.trials[name] for name in rows]
        colors = [COLORS.get(trial.status, "") for trial in trials]
        columns = [
            Column("trial", [names[name] for name in rows], shrinks=True),
            Column("status", [trial.status for trial in trials], spare=3, styles=colors),
        ]
        for number, (name, head) in enumerate(heads.items()):
            values = [trial.values.get(name) for trial in trials]
            cells = [
                setting(trial.values[name]) if name in trial.values else "" for trial in trials
            ]
            columns.append(Column(head, cells, _numbers(values), 10 + number, shrinks=True))
        numbers = [
            ("round", [_place(trial) for trial in trials], 1),
            ("last", [_value(trial.last.get(self.metric)) for trial in trials], 50),
            ("best", [_value(trial.best) for trial in trials], 2),
            ("rung", [trial.rung for trial in trials], 5),
            ("s/round", [_value(trial.last.get("round_s"), ".1f") for trial in trials], 60),
            ("ETA", self._times(trials), 4),
        ]
        return columns + [Column(head, cells, True, spare) for head, cells, spare in numbers
                          if head != "rung" or self.rung]  # fmt: skip

    def _times(self, trials: list[TrialProgress]) -> list[str]:
        """When each that is at work will have done all its rounds."""
        forecast, now = self._forecast(), time.monotonic()
        return [
            "" if trial.status not in AT_WORK else "--:--" if forecast.pace is None
            else clock(forecast.seconds(trial, trial.rounds - trial.at, now))
            for trial in trials
        ]  # fmt: skip


def _numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, (int, float)) for value in values)


def _place(trial: TrialProgress) -> str:
    at = f"{math.floor(trial.at * 10) / 10:.1f}" if trial.where else f"{trial.at:g}"
    return f"{at}/{trial.rounds:g}"


def _value(value: Any, form: str = "") -> str:
    number = finite(value)
    return "" if number is None else format(number, form) if form else figure(number)
