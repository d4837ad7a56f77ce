"""How far trials are, and how long the rest will take."""

import bisect
import collections
import dataclasses
import itertools
import statistics
from collections.abc import Iterable
from typing import Any

from util.text import finite

ENDED = ("done", "stopped", "failed", "diverged")
AT_WORK = ("running", "retried")


@dataclasses.dataclass
class TrialProgress:
    """Progress of one trial, for the display.

    Attributes:
        values: gin name -> value that it overrides.
        rounds: its limit.
        round: rounds done so far.
        status: "planned" or "interrupted" while it is still to run, else how it ended.
        last: its last result.
        best: the best value of the metric so far; if None, that of `last`.
    """

    values: dict[str, Any]
    rounds: float
    round: float = 0.0
    status: str = "planned"
    last: dict[str, Any] = dataclasses.field(default_factory=dict)
    best: float | None = None

    def __post_init__(self):
        self.within = 0.0  # share of the current round
        self.where = ""  # such as "train 3/40"
        self.rung = ""
        self.heard = False  # whether a result has come since it started
        self.began = self.since = 0.0  # when this round began, when we last heard of it
        self.paces = collections.deque(maxlen=9)  # seconds of its last rounds
        pace = finite(self.last.get("round_s"))
        if pace is not None:
            self.paces.append(pace)

    @property
    def at(self) -> float:
        """Rounds done, with the share of the current one."""
        return min(self.round + self.within, max(self.rounds, self.round))

    @property
    def share(self) -> float:
        """Of its rounds, 0 to 1."""
        return min(1.0, self.at / self.rounds) if self.rounds > 0 else 1.0

    def begin(self, now: float) -> None:
        """It starts running; the start-up time is not counted as part of a round."""
        self.status, self.heard, self.within, self.where = "running", False, 0.0, ""
        self.began = self.since = now

    def take(self, result: dict[str, Any], now: float) -> float | None:
        """Add a result; returns the seconds of its round, saving and waiting included."""
        own = finite(result.get("round_s"))
        pace = max(now - self.began, own or 0.0) if self.heard else own
        self.last, self.round = result, result["round"]
        self.rounds = finite(result.get("rounds")) or self.rounds
        self.status, self.heard, self.within = "running", True, 0.0
        self.began = self.since = now
        if pace is not None:
            self.paces.append(pace)
        return pace


class Forecast:
    """Estimate of the rounds and the time that remain, from the trials so far.

    A scheduler ends most trials early. So a trial is expected to use the mean share of its
    rounds that the ended ones used; one that is beyond some of them, that of the others.
    """

    def __init__(self, trials: Iterable[TrialProgress], total: int, paces: Iterable[float]):
        self.trials = list(trials)
        self.used = sorted(trial.share for trial in self.trials
                           if trial.status in ("done", "stopped", "diverged"))  # fmt: skip
        self.sums = [0.0, *itertools.accumulate(self.used)]
        # Within the first round of all, its finished share gives the pace.
        self.pace = _median(paces) or _median(
            (trial.since - trial.began) / trial.within for trial in self.trials if trial.within
        )
        unknown = total - len(self.trials)  # a search will suggest them
        mean = statistics.fmean(trial.rounds for trial in self.trials) if self.trials else 1.0
        self.unknown, self.later = unknown, unknown * mean * self._end(0.0)

    def _end(self, share: float) -> float:
        """The share of its rounds at which a trial that has come so far will end."""
        first = bisect.bisect_right(self.used, share)
        beyond = len(self.used) - first
        return (self.sums[-1] - self.sums[first]) / beyond if beyond else 1.0

    def rounds_left(self, trial: TrialProgress) -> float:
        """Rounds that a trial will still do."""
        ended = trial.status in ENDED
        return 0.0 if ended else max(0.0, self._end(trial.share) - trial.share) * trial.rounds

    def share(self) -> float:
        """The share of all rounds that is done."""
        done = sum(trial.at for trial in self.trials)
        left = sum(map(self.rounds_left, self.trials)) + self.later
        return done / (done + left) if left else 1.0

    def seconds(self, trial: TrialProgress, rounds: float, now: float) -> float:
        """Seconds that a number of rounds of a trial take, minus the time already spent."""
        pace = _median(trial.paces) or self.pace or 0.0
        passed = now - trial.since if trial.status in AT_WORK else 0.0
        return max(0.0, pace * rounds - min(passed, pace))

    def seconds_left(self, side: int, now: float) -> float | None:
        """Time until all have ended, `side` of them in parallel; None when no pace is known."""
        times = {id(trial): self.seconds(trial, self.rounds_left(trial), now)
                 for trial in self.trials if trial.status not in ENDED}  # fmt: skip
        count = len(times) + self.unknown
        if count and self.pace is None:
            return None
        slowest = max((times[id(trial)] for trial in self.trials if trial.status in AT_WORK),
                      default=0.0)  # fmt: skip
        work = sum(times.values()) + self.later * (self.pace or 0.0)
        return max(work / max(1, min(side, count)), slowest)


def _median(values: Iterable[float]) -> float | None:
    values = list(values)
    return statistics.median(values) if values else None
