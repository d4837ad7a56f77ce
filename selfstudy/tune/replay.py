"""Earlier results for a fresh scheduler: ASHA and the median rule judge against all trials."""

from collections.abc import Callable
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule, TrialScheduler

from selfstudy.experiment.plan import Plan, Row
from selfstudy.tune.optuna_study import is_finite


class _EndedTrial:
    """A trial of an earlier run, with what schedulers read of Ray's trials."""

    status = "TERMINATED"

    def __init__(self, row: Row):
        self.trial_id, self.config = row.name, row.overrides

    @staticmethod
    def is_finished() -> bool:
        """True: it has ended."""
        return True

    @staticmethod
    def get_live_trials() -> list:
        """No trials; schedulers ask this of Ray's controller, which is not there yet."""
        return []


def replay(plan: Plan, scheduler: TrialScheduler, number_of: Callable[[Any], int]) -> None:
    """Show a fresh scheduler the results of an earlier run of the plan.

    Results of ended trials are shown at once, in the order of time; those of an unfinished
    trial when Ray adds it again. HyperBand and population based training begin anew.

    Args:
        plan: of the experiment.
        scheduler: fresh; one that does not stop trials one by one is left as it is.
        number_of: the row of one of Ray's trials.
    """
    if not isinstance(scheduler, (AsyncHyperBandScheduler, MedianStoppingRule)):
        return
    judge: Any = scheduler  # whose methods take the controller's place None
    unfinished = {row.name for row in plan.unfinished()}
    ended = [(row, _EndedTrial(row)) for row in plan.rows if row.name not in unfinished]
    for _, trial in ended:
        judge.on_trial_add(None, trial)
    lines = [(trial, line) for row, trial in ended for line in plan.results(row)]
    for trial, line in sorted(lines, key=lambda item: item[1]["time"]):
        _show(judge, trial, line)
    add_trial = judge.on_trial_add

    def on_trial_add(controller: Any, trial: Any) -> None:
        add_trial(controller, trial)
        for line in plan.results(plan.rows[number_of(trial)]):
            _show(judge, trial, line)

    judge.on_trial_add = on_trial_add


def _show(scheduler: Any, trial: Any, line: dict[str, Any]) -> None:
    """Let a scheduler record one result, without acting on it."""
    if not is_finite(line.get(scheduler._metric)):
        return
    if isinstance(scheduler, MedianStoppingRule):  # whose on_trial_result would judge, too
        scheduler.on_trial_complete(None, trial, dict(line))  # pyright: ignore[reportArgumentType]  # no controller yet
    else:
        scheduler.on_trial_result(None, trial, dict(line))
