"""Which trial was at work when, read from the journals of experiments."""

import dataclasses
from typing import TYPE_CHECKING

from selfstudy.analysis.results import number

if TYPE_CHECKING:
    from selfstudy.analysis.results import Experiment

LATEST = 1e11  # seconds since 1970 that a clock can have shown


@dataclasses.dataclass
class Bar:
    """A trial's time in a slot.

    Attributes:
        exp, trial: whose.
        start, end: seconds since 1970.
        status: how it ended.
        retries: when its worker had died and it went on in another.
        slot: the row that it is drawn in.
    """

    exp: str
    trial: str
    start: float
    end: float
    status: str = "running"
    retries: tuple[float, ...] = ()
    slot: int = 0


def bars(experiment: "Experiment") -> tuple[list[Bar], list[tuple[float, float]]]:
    """What ran when, by an experiment's journal.

    Returns:
        A bar for each time that a trial was at work, and the times (start, end) at which a
        driver was.
    """
    events = [event for event in experiment.manifest.events if 0 < event["time"] < LATEST]
    heard = [line["time"] for trial in experiment.trials for line in trial.rounds
             if 0 < (number(line, "time") or 0) < LATEST]  # fmt: skip
    last = max([event["time"] for event in events] + heard, default=0.0)
    found: list[Bar] = []
    spans: list[list[float]] = []
    at_work: dict[str, Bar] = {}
    for event in events:
        now, name = event["time"], event.get("name")
        if event["event"] == "begin":
            before = max([at for at in heard if at < now] + [s[1] for s in spans], default=now)
            _close(at_work, min(before, now))
            spans.append([now, now])
        elif event["event"] == "trial" and event["status"] == "started":
            at_work[name] = Bar(experiment.name, name, now, now)
            found.append(at_work[name])
        elif event["event"] == "trial" and event["status"] == "retried":
            if name in at_work:
                at_work[name].retries += (now,)
        elif event["event"] == "trial" and name in at_work:
            one = at_work.pop(name)
            one.end, one.status = max(now, one.start), event["status"]
        elif event["event"] == "end":
            _close(at_work, now)
        if spans:
            spans[-1][1] = max(spans[-1][1], now)
    if at_work:
        running = experiment.manifest.held
        _close(at_work, last, "running" if running else "interrupted")
        spans[-1:] = [[spans[-1][0], max(spans[-1][1], last)]] if spans else []
    return found, [(start, end) for start, end in spans if end > start]


def _close(at_work: dict[str, Bar], now: float, status: str = "interrupted") -> None:
    for one in at_work.values():
        one.end, one.status = max(now, one.start), status
    at_work.clear()


def packed(found: list[Bar]) -> int:
    """Give each bar the first slot that is free; the number of slots."""
    free: list[float] = []
    for one in sorted(found, key=lambda one: (one.start, one.end)):
        fits = [slot for slot, end in enumerate(free) if end <= one.start]
        one.slot = fits[0] if fits else len(free)
        free[one.slot : one.slot + 1] = [one.end]
    return len(free)


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
