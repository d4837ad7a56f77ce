"""Ray's trial controller, mended: a worker that dies between two trials costs neither of them.

Ray gives a worker whose trial has ended the next trial by a call of `reset`. When the worker is
dead by then, that one death is reported twice. At the first report the next trial is put back
into the queue; at the second, while it waits there, Ray (2.60) ends it as failed whatever
`max_failures` allows, or would wait for its `reset` for ever.
"""

from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial

_fail = TuneController._trial_task_failure


def _trial_task_failure(self: TuneController, trial: Trial, exception: Exception) -> None:
    """Retry a trial whose worker's `reset` failed; pass over the second report of its death."""
    resetting = trial in self._resetting_trials
    self._resetting_trials.discard(trial)
    if trial.status == Trial.PENDING:
        if not resetting:  # it is in the queue again
            return
        # `reset` raised in a living worker: only a running trial is retried.
        self._set_trial_status(trial, Trial.RUNNING)
        self._unstage_trial_with_resources(trial)
    _fail(self, trial, exception)


def mend() -> None:
    """Let Ray's controller recover trials whose worker fails in `reset`."""
    TuneController._trial_task_failure = _trial_task_failure
