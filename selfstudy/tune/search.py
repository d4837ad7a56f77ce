"""Search spaces, search algorithms and schedulers: what Ray offers, under our manifest.

A search algorithm suggests, the manifest remembers: each suggestion is a row of the plan
before it starts. After a restart the unfinished rows come first, Optuna goes on from its own
file in the experiment's folder, and ASHA and the median rule are told again what they had seen.
"""

import contextlib
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

# ruff: isort: off
from selfstudy.experiment import rayenv  # noqa: F401  (before Ray)
# ruff: isort: on

import numpy as np
from ray import tune
from ray.tune.error import TuneError
from ray.tune.schedulers import (
    SCHEDULER_IMPORT,
    AsyncHyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import SEARCH_ALG_IMPORT, Searcher
from ray.tune.search.sample import Categorical, Domain, Float, Function, Integer
from ray.tune.search.variant_generator import generate_variants

from selfstudy import values
from selfstudy.experiment.plan import Plan, Row
from util.errors import UserError, cause, nearest

OPTUNA = "optuna.journal"
ALIASES = {"asha": "async_hyperband", "median_stopping": "median_stopping_rule"}


def variants(config: dict[str, Any], samples: int, seed: int = 0) -> list[dict[str, Any]]:
    """All trials of a search space: the grid, `samples` times, with its random values drawn."""
    random = np.random.RandomState(seed)
    return [
        drawn
        for _ in range(samples)
        for _, drawn in generate_variants(config, random_state=random)
    ]


def corners(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Few trials that stand for a whole search space: its bounds, and each of its choices."""
    domains = {key: item for key, item in config.items() if isinstance(item, Domain)}
    for key, item in config.items():
        if isinstance(item, dict) and "grid_search" in item:
            raise UserError(
                f"ray config: '{key}' is a tune.grid_search, which a search algorithm cannot "
                "take: write tune.choice, or leave search_alg out"
            )
    ends = {key: _ends(item) for key, item in domains.items() if not isinstance(item, Function)}
    count = max([2, *map(len, ends.values())]) if ends else 1
    fixed = [config | {key: some[number % len(some)] for key, some in ends.items()}
             for number in range(count)]  # fmt: skip
    return [values.flatten(drawn) for one in fixed for drawn in variants(one, 1)]


def _ends(domain: Domain) -> list[Any]:
    if isinstance(domain, Categorical):
        return list(domain.categories)
    if isinstance(domain, Integer):
        return [domain.lower, domain.upper - 1]
    if (
        isinstance(domain, Float)
        and math.isfinite(domain.lower)
        and math.isfinite(domain.upper)
    ):
        step = getattr(domain.sampler, "q", None)
        return [domain.lower, domain.upper if step is None else domain.lower]
    return [domain.sample(), domain.sample()]


def mutations(scheduler: TrialScheduler | None) -> dict[str, Any]:
    """Name -> values of what a population based scheduler changes on the way."""
    found = getattr(scheduler, "_hyperparam_mutations", None) or {}
    return dict(found) or dict(getattr(scheduler, "_hyperparam_bounds", None) or {})


def mutated(scheduler: TrialScheduler | None) -> list[dict[str, Any]]:
    """Representative settings for checking the mutation space."""
    few = []
    for name, space in mutations(scheduler).items():
        if isinstance(space, Domain):
            some = _ends(space)
        elif isinstance(space, (list, tuple)):
            some = list(space)
        else:
            some = [space()]
        few += [{name: value} for value in some]
    return few


def representatives(given: dict[str, Any], base: dict[str, Any]) -> list[dict[str, Any]]:
    """Overrides of few trials that stand for all that a search may try.

    Args:
        given: entries of the ray config.
        base: a trial's values, in which a scheduler changes some; unused where the search
            algorithm chooses all values.
    """
    settings = corners(given["config"]) if given["search_alg"] else []
    base = settings[0] if settings else base
    return settings + [base | changed for changed in mutated(scheduler(given))]


def scheduler(given: dict[str, Any]) -> TrialScheduler | None:
    """The scheduler of a ray config: an object of Ray, a name, or {'name': ..., arguments}.

    Raises:
        UserError: no scheduler of the name, or arguments that it does not take.
    """
    wanted = given["scheduler"]
    if wanted is None or isinstance(wanted, TrialScheduler):
        return wanted
    return _made("scheduler", wanted, SCHEDULER_IMPORT, tune.create_scheduler)


def searcher(given: dict[str, Any]) -> Searcher | None:
    """The search algorithm of a ray config, in the same forms.

    Raises:
        UserError: none of the name, or its package is not installed.
    """
    wanted = given["search_alg"]
    if wanted is None or isinstance(wanted, Searcher):
        return wanted
    known = {name: item for name, item in SEARCH_ALG_IMPORT.items() if "variant" not in name}
    return _made("search_alg", wanted, known, tune.create_searcher)


def _made(kind: str, wanted: Any, known: dict, create: Callable) -> Any:
    arguments = dict(wanted) if isinstance(wanted, dict) else {"name": wanted}
    name = arguments.pop("name", None)
    if not isinstance(name, str):
        raise UserError(
            f"ray config: '{kind}' takes an object of Ray, a name or a dict with one"
        )
    names = [*known, *(alias for alias, own in ALIASES.items() if own in known)]
    name = ALIASES.get(name, name)
    if name not in known:
        raise UserError(f"ray config: no {kind} is called '{name}'{nearest(name, names)}")
    try:
        cls = known[name]() if inspect.isfunction(known[name]) else known[name]
        taken = list(inspect.signature(cls.__init__).parameters)[1:]
        for key in arguments:
            if key not in taken:
                raise UserError(f"ray config: {name} takes no '{key}'{nearest(key, taken)}")
        return create(name, **arguments)
    except UserError:
        raise
    except (ImportError, AssertionError) as error:
        raise UserError(f"ray config: {kind} '{name}': {missing(error)}") from None
    except (TypeError, ValueError, TuneError) as error:
        raise UserError(f"ray config: {kind} '{name}': {cause(error)}") from None


def missing(error: Exception) -> str:
    """What is absent, and what to type; Ray asserts where Python would raise an ImportError."""
    if isinstance(error, ImportError) and error.name:
        return f"{error.name} is not installed: pip install {error.name}"
    return cause(error)


def rung(scheduler: TrialScheduler | None) -> Callable[[dict[str, Any]], str] | None:
    """How to tell the last of ASHA's rungs that a result has passed; None for the others."""
    if not isinstance(scheduler, AsyncHyperBandScheduler):
        return None
    name = scheduler._time_attr
    rungs = sorted({at for bracket in scheduler._brackets for at, _ in bracket._rungs})

    def passed(result: dict[str, Any]) -> str:
        below = [at for at in rungs if at <= result.get(name, 0)]
        return f"{below[-1]:g}" if below else ""

    return passed


def check(given: dict[str, Any], metrics: tuple[str, ...]) -> dict[str, Any]:
    """Find what cannot work together before Ray starts.

    Args:
        given: entries of the ray config.
        metrics: what trials report.

    Returns:
        The entries, with the metric and mode of the scheduler where it has its own.

    Raises:
        UserError: a metric that no trial reports, or parts that exclude each other.
    """
    plans, search = scheduler(given), searcher(given)
    if isinstance(plans, PopulationBasedTraining) and search:
        raise UserError(
            "ray config: population based training draws its own values: leave search_alg out"
        )
    for part in (plans, search):
        own = getattr(part, "_metric", None), getattr(part, "_mode", None)
        if own[0] and own[1]:
            given = given | {"metric": own[0], "mode": own[1]}
    several = isinstance(given["metric"], list)
    if several and (plans or not search):
        raise UserError(
            "ray config: several metrics need a search_alg, and a scheduler takes one metric"
        )
    for metric in given["metric"] if several else [given["metric"]]:
        if metric not in metrics:
            raise UserError(f"ray config: no metric '{metric}'{nearest(metric, metrics)}")
    time_attr = getattr(plans, "_time_attr", None) or "training_iteration"
    if time_attr not in ("training_iteration", "round", "total_s"):
        raise UserError(
            f"ray config: time_attr = '{time_attr}': expected training_iteration or total_s"
        )
    return given


class Search(Searcher):
    """Suggests the rows of a plan: first the unfinished, then what the algorithm comes up with.

    Args:
        plan: of the experiment; new rows are added to it.
        inner: Ray's search algorithm.
        space: the search space.
        todo: numbers of the unfinished rows.
        limit: how many trials may run at a time.
        added: told of each new row.
        stopping: whether to suggest nothing more.
    """

    def __init__(
        self,
        plan: Plan,
        inner: Searcher,
        space: dict[str, Any],
        todo: list[int],
        limit: int,
        added: Callable[[Row], None],
        stopping: Callable[[], bool],
    ):
        names, modes = zip(*plan.objectives, strict=True)
        several = len(names) > 1
        super().__init__(names[0], modes[0])
        self.plan, self.inner, self.todo = plan, inner, list(todo)
        self.limit, self.added, self.stopping = limit, added, stopping
        self.numbers: dict[str, int] = {}  # Ray's id of a running trial -> its row
        self.unknown: set[str] = set()  # ids that the algorithm has not suggested itself
        self.names = names
        self.fixed = {key: item for key, item in space.items() if isinstance(item, Function)
                      or not isinstance(item, Domain)}  # fmt: skip
        drawn = {key: item for key, item in space.items() if key not in self.fixed}
        self.study = _Study.of(plan, inner)
        metric = list(names) if several else names[0]
        inner.set_search_properties(metric, list(modes) if several else modes[0], drawn)
        if self.study:
            self.study.settle(plan, names)

    def __getstate__(self) -> dict:
        return {}  # Ray stores its searchers; this one lives in the manifest

    def set_search_properties(self, metric, mode, config, **spec) -> bool:
        """Everything is set already."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The number of the row to run next."""
        if self.stopping():
            return Searcher.FINISHED
        if len(self.numbers) >= self.limit:
            return None
        if self.todo:
            number = self.todo.pop(0)
            known = self.study and self.study.attach(trial_id, self.plan, number)
            if not known:
                self.unknown.add(trial_id)
        elif len(self.plan.rows) >= self.plan.total:
            return Searcher.FINISHED
        else:
            found = self.inner.suggest(trial_id)
            if found is None or found == Searcher.FINISHED:
                return found
            number = len(self.plan.rows)
            about = {"suggestion": self.study.number(trial_id)} if self.study else {}
            self.added(self.plan.add(self._overrides(found), **about))
        self.numbers[trial_id] = number
        return {"number": number}

    def _overrides(self, found: dict[str, Any]) -> dict[str, Any]:
        """A suggestion with the values that are fixed or depend on it."""
        flat = values.flatten(found)
        (drawn,) = variants(self.fixed | flat, 1, seed=len(self.plan.rows))
        flat = values.flatten(drawn)
        return {name: values.literal(name, value) for name, value in flat.items()}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass a finite result on."""
        again = result.get("interrupted")  # the last round's, told while the trial stops
        if not again and trial_id not in self.unknown and self._scored(result):
            self.inner.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error=False) -> None:
        """Pass the end on; a trial that diverged or failed is a failure without a value."""
        self.numbers.pop(trial_id, None)
        result = result or {}
        if trial_id in self.unknown or result.get("interrupted"):
            return
        failed = error or result.get("failed") or result.get("diverged")
        if failed or not self._scored(result):
            self.inner.on_trial_complete(trial_id, None, error=True)
        else:
            self.inner.on_trial_complete(trial_id, result)

    def _scored(self, result: dict[str, Any]) -> bool:
        return all(_finite(result.get(name)) for name in self.names)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the manifest and Optuna's file hold everything."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see `save`."""


def settle(plan: Plan, given: dict[str, Any]) -> None:
    """Tell the search algorithm what had ended, when nothing is left to run.

    A kill may have come after the last trial's last line, and before anybody had read it.
    """
    Search(plan, searcher(given), given["config"], [], 0, lambda row: None, lambda: True)


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


class _Study:
    """Optuna's study in the experiment's folder, which optuna-dashboard can open."""

    def __init__(self, inner: Any):
        self.inner = inner

    @classmethod
    def of(cls, plan: Plan, inner: Searcher) -> "_Study | None":
        """Point an OptunaSearch without a storage of its own to the experiment's file."""
        while hasattr(inner, "searcher"):
            inner = inner.searcher
        if type(inner).__name__ != "OptunaSearch" or inner._storage is not None:
            return None
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        file = plan.folder / OPTUNA
        if file.is_symlink():
            raise UserError(f"{file} is a link: a study is a file of its experiment")
        _cut_torn_line(file)
        lock = JournalFileOpenLock(str(file))
        storage = JournalStorage(JournalFileBackend(str(file), lock_obj=lock))
        names = optuna.get_all_study_names(storage)
        inner._storage = storage
        inner._study_name = names[0] if names else plan.exp_id  # the folder may have moved
        return cls(inner)

    def number(self, trial_id: str) -> int:
        """Optuna's number of a trial that it has suggested."""
        return self.inner._ot_trials[trial_id].number

    def attach(self, trial_id: str, plan: Plan, number: int) -> bool:
        """Let Optuna's trial of a row go on under a new id."""
        from optuna.trial import Trial

        study, own = self.inner._ot_study, self._of_rows(plan).get(plan.rows[number].name)
        found = {trial.number: trial for trial in study.get_trials(deepcopy=False)}.get(own)
        if found is None or found.state.is_finished():
            return False
        self.inner._ot_trials[trial_id] = Trial(study, found._trial_id)
        return True

    def settle(self, plan: Plan, names: tuple[str, ...]) -> None:
        """Tell Optuna what ended unnoticed: before a kill, or without a row ever written."""
        from optuna.trial import TrialState

        study = self.inner._ot_study
        if plan.rows:  # the seed of the ray config would draw the first suggestions again
            study.sampler.reseed_rng()
        manifest, rows = plan.manifest(), {row.name: row for row in plan.rows}
        by_number = {number: name for name, number in self._of_rows(plan).items()}
        for trial in study.get_trials(deepcopy=False):
            if trial.state.is_finished() or trial.state == TrialState.WAITING:
                continue
            name = by_number.get(trial.number)
            last = plan.last(rows[name]) if name in rows else {}
            status = manifest.status(name, last) if name in rows else "lost"
            scores = [last.get(metric) for metric in names]
            if status in ("done", "stopped") and all(map(_finite, scores)):
                study.tell(trial.number, scores if len(scores) > 1 else scores[0])
            elif status in ("done", "stopped", "diverged", "lost"):
                study.tell(trial.number, state=TrialState.FAIL)

    @staticmethod
    def _of_rows(plan: Plan) -> dict[str, int]:
        events = plan.manifest().events
        return {event["name"]: event["suggestion"] for event in events
                if event["event"] == "row" and "suggestion" in event}  # fmt: skip


def _cut_torn_line(file: Path) -> None:
    """Drop what a killed writer left of its last line; the next would be glued to it."""
    with contextlib.suppress(FileNotFoundError), open(file, "r+b") as journal:
        content = journal.read()
        journal.truncate(content.rfind(b"\n") + 1)


class _Past:
    """Stands in for a trial of Ray's that ended in an earlier run."""

    status = "TERMINATED"

    def __init__(self, row: Row):
        self.trial_id, self.config = row.name, row.overrides

    @staticmethod
    def is_finished() -> bool:
        """It has."""
        return True

    @staticmethod
    def get_live_trials() -> list:
        """Asked of the controller, whom it stands in for, too: there are none."""
        return []


def remember(plan: Plan, scheduler: TrialScheduler, number_of: Callable[[Any], int]) -> None:
    """Tell a fresh scheduler what an earlier run of the plan has seen.

    ASHA and the median rule compare a trial with all that came before: finished trials are
    shown to them at once, each unfinished one when Ray begins it again. HyperBand and
    population based training begin anew over the unfinished trials.

    Args:
        plan: of the experiment.
        scheduler: of a type that stops trials one by one.
        number_of: the row of one of Ray's trials.
    """
    if not isinstance(scheduler, (AsyncHyperBandScheduler, MedianStoppingRule)):
        return
    unfinished = {row.name for row in plan.unfinished()}
    ended = [(row, _Past(row)) for row in plan.rows if row.name not in unfinished]
    lines = [(line["time"], past, line) for row, past in ended for line in plan.results(row)]

    def show(trial: Any, line: dict[str, Any]) -> None:
        if not _finite(line.get(scheduler._metric)):
            return
        if isinstance(scheduler, MedianStoppingRule):  # only notes; a result is also judged
            scheduler.on_trial_complete(None, trial, dict(line))
        else:
            scheduler.on_trial_result(None, trial, dict(line))

    for _, past in ended:
        scheduler.on_trial_add(None, past)
    for _, past, line in sorted(lines, key=lambda item: item[0]):
        show(past, line)
    before = scheduler.on_trial_add

    def on_trial_add(controller: Any, trial: Any) -> None:
        before(controller, trial)
        for line in plan.results(plan.rows[number_of(trial)]):
            show(trial, line)

    scheduler.on_trial_add = on_trial_add
