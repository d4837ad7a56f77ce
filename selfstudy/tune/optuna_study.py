"""Optuna's study in the experiment's folder, and how it learns of trials after a restart."""

import contextlib
import math
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import Trial, TrialState

from selfstudy.experiment.plan import Plan
from util.errors import UserError

OPTUNA = "optuna.journal"


def is_finite(value: Any) -> bool:
    """Whether a result's entry is a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)


class OptunaStudy:
    """Optuna's study in the experiment's folder, which optuna-dashboard can open."""

    def __init__(self, inner: Any):
        self.inner = inner

    @classmethod
    def of(cls, plan: Plan, inner: Any) -> "OptunaStudy | None":
        """The study of an OptunaSearch, whose storage becomes the experiment's file.

        None for another algorithm, or one with a storage of its own. To be called before the
        search space is set, since OptunaSearch creates its study then.
        """
        algorithm = inner
        while hasattr(algorithm, "searcher"):  # a ConcurrencyLimiter or the like
            algorithm = algorithm.searcher
        if type(algorithm).__name__ != "OptunaSearch" or algorithm._storage is not None:
            return None
        algorithm._storage = _open_storage(plan.folder / OPTUNA)
        names = optuna.get_all_study_names(algorithm._storage)
        algorithm._study_name = names[0] if names else plan.exp_id  # the folder may have moved
        return cls(algorithm)

    def number(self, trial_id: str) -> int:
        """Optuna's number of a trial that it has suggested."""
        return self.inner._ot_trials[trial_id].number

    def attach(self, trial_id: str, plan: Plan, number: int) -> bool:
        """Continue Optuna's trial of row `number` under Ray's new id; False if it has ended."""
        study, own = self.inner._ot_study, self._suggestions(plan).get(plan.rows[number].name)
        trial = {trial.number: trial for trial in study.get_trials(deepcopy=False)}.get(own)
        if trial is None or trial.state.is_finished():
            return False
        self.inner._ot_trials[trial_id] = Trial(study, trial._trial_id)
        return True

    def settle(self, plan: Plan, names: tuple[str, ...]) -> None:
        """Report to Optuna the trials that ended while no driver ran.

        A trial whose row was never written, since the driver was killed, counts as failed.
        """
        study = self.inner._ot_study
        if plan.rows:  # otherwise the ray config's seed would repeat the first suggestions
            study.sampler.reseed_rng()
        manifest, rows = plan.manifest(), {row.name: row for row in plan.rows}
        by_number = {number: name for name, number in self._suggestions(plan).items()}
        for trial in study.get_trials(deepcopy=False):
            if trial.state.is_finished() or trial.state == TrialState.WAITING:
                continue
            name = by_number.get(trial.number, "")
            last = plan.last(rows[name]) if name in rows else {}
            status = manifest.status(name, last) if name in rows else "lost"
            scores = [last.get(metric) for metric in names]
            if status in ("done", "stopped") and all(map(is_finite, scores)):
                study.tell(trial.number, scores if len(scores) > 1 else scores[0])
            elif status in ("done", "stopped", "diverged", "lost"):
                study.tell(trial.number, state=TrialState.FAIL)

    @staticmethod
    def _suggestions(plan: Plan) -> dict[str, int]:
        """Trial's name -> Optuna's number of it."""
        events = plan.manifest().events
        return {event["name"]: event["suggestion"] for event in events
                if event["event"] == "row" and "suggestion" in event}  # fmt: skip


def _open_storage(file: Path) -> JournalStorage:
    """Optuna's journal of an experiment, without a line that a kill has cut."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if file.is_symlink():
        raise UserError(f"{file} is a link: a study is a file of its experiment")
    _cut_torn_line(file)
    lock = JournalFileOpenLock(str(file))
    return JournalStorage(JournalFileBackend(str(file), lock_obj=lock))


def _cut_torn_line(file: Path) -> None:
    """Drop the unfinished last line of a killed writer, to which the next would be appended."""
    with contextlib.suppress(FileNotFoundError), open(file, "r+b") as journal:
        content = journal.read()
        journal.truncate(content.rfind(b"\n") + 1)
