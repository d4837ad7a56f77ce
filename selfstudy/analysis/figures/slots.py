"""When each trial ran, read from the journals of experiments."""

import dataclasses
from typing import TYPE_CHECKING, Any

from selfstudy.analysis.results import number

if TYPE_CHECKING:
    from selfstudy.analysis.results import Experiment

LATEST = 1e11  # seconds since 1970; a later time is a damaged entry


@dataclasses.dataclass
class Bar:
    """A trial's time in a slot.

    Attributes:
        exp, trial: whose.
        start, end: seconds since 1970.
        status: how it ended.
        retries: times at which its worker had died and another one continued.
        slot: row of the figure.
    """

    exp: str
    trial: str
    start: float
    end: float
    status: str = "running"
    retries: tuple[float, ...] = ()
    slot: int = 0

    def close(self, now: float, status: str) -> None:
        """It ends, not before it has started (clocks of two machines may differ)."""
        self.end, self.status = max(now, self.start), status


def bars(experiment: "Experiment") -> tuple[list[Bar], list[tuple[float, float]]]:
    """What ran when, by an experiment's journal.

    Returns:
        A bar for each time that a trial ran, and (start, end) of each driver that did
        something, seconds since 1970.
    """
    events = [event for event in experiment.manifest.events if 0 < event["time"] < LATEST]
    results = [line["time"] for trial in experiment.trials for line in trial.rounds
               if 0 < (number(line, "time") or 0) < LATEST]  # fmt: skip
    history = _History(experiment.name, results)
    for event in events:
        history.take(event)
    last = max([event["time"] for event in events] + results, default=0.0)
    history.finish(last, experiment.manifest.is_running)
    return history.bars, [(start, end) for start, end in history.spans if end > start]


class _History:
    """Bars of trials and spans of drivers, built from a journal event by event.

    Args:
        exp: the experiment.
        results: times of all result lines, seconds since 1970.

    Attributes:
        bars: of all trials that have started.
        spans: [start, end] of each driver; the last one is extended by every event.
        running: trial -> its open bar.
    """

    def __init__(self, exp: str, results: list[float]):
        self.exp, self.results = exp, results
        self.bars: list[Bar] = []
        self.spans: list[list[float]] = []
        self.running: dict[str, Bar] = {}

    def take(self, event: dict[str, Any]) -> None:
        """The journal's next event."""
        now = event["time"]
        if event["event"] == "begin":
            self._begin(now)
        elif event["event"] == "end":
            self._close_all(now, "interrupted")
        elif event["event"] == "trial":
            self._change(event["name"], event["status"], now)
        self._extend(now)

    def finish(self, last: float, is_running: bool) -> None:
        """Close what is still open at the last sign of life; `is_running`: of a live driver."""
        if self.running:
            self._close_all(last, "running" if is_running else "interrupted")
            self._extend(last)

    def _begin(self, now: float) -> None:
        """A driver starts; one that was killed before it ended at its last sign of life."""
        signs = [time for time in self.results if time < now]
        signs += [end for _, end in self.spans]
        self._close_all(min(max(signs, default=now), now), "interrupted")
        self.spans.append([now, now])

    def _change(self, name: str, status: str, now: float) -> None:
        """A trial starts, is retried, or ends."""
        if status == "started":
            self.running[name] = Bar(self.exp, name, now, now)
            self.bars.append(self.running[name])
        elif name not in self.running:
            return
        elif status == "retried":
            self.running[name].retries += (now,)
        else:
            self.running.pop(name).close(now, status)

    def _close_all(self, now: float, status: str) -> None:
        for bar in self.running.values():
            bar.close(now, status)
        self.running.clear()

    def _extend(self, now: float) -> None:
        if self.spans:
            self.spans[-1][1] = max(self.spans[-1][1], now)


def assign_slots(trial_bars: list[Bar]) -> int:
    """Give each bar the first slot that is free at its start; returns the number of slots."""
    ends: list[float] = []  # of the last bar in each slot
    for bar in sorted(trial_bars, key=lambda bar: (bar.start, bar.end)):
        free = [slot for slot, end in enumerate(ends) if end <= bar.start]
        bar.slot = free[0] if free else len(ends)
        ends[bar.slot : bar.slot + 1] = [bar.end]
    return len(ends)


class Elapsed:
    """Seconds that a driver was at work; the time between two drivers doesn't count."""

    def __init__(self, spans: list[tuple[float, float]]):
        self.spans: list[list[float]] = []
        for start, end in sorted(spans):
            if self.spans and start <= self.spans[-1][1]:
                self.spans[-1][1] = max(self.spans[-1][1], end)
            else:
                self.spans.append([start, end])

    def __call__(self, when: float) -> float:
        """How many of them lie before `when`."""
        return sum(max(0.0, min(when, end) - start) for start, end in self.spans)
