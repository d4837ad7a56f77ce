"""Search spaces, search algorithms and schedulers: what Ray offers, under our manifest.

A search algorithm suggests, the manifest remembers: each suggestion is a row of the plan
before it starts. After a restart the unfinished rows come first, Optuna goes on from its own
file in the experiment's folder, and ASHA and the median rule get the earlier results again
(`replay.py`).
"""

import dataclasses
import inspect
import math
from collections.abc import Callable
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
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import SEARCH_ALG_IMPORT, Searcher
from ray.tune.search.sample import Categorical, Domain, Float, Function, Integer
from ray.tune.search.variant_generator import generate_variants

from selfstudy import values
from selfstudy.experiment.plan import Plan, Row
from selfstudy.experiment.rayconfig import RayArgs
from selfstudy.tune.optuna_study import OptunaStudy, is_finite
from util.errors import UserError, cause, nearest

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
    mutations = getattr(scheduler, "_hyperparam_mutations", None) or {}
    return dict(mutations) or dict(getattr(scheduler, "_hyperparam_bounds", None) or {})


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


def representatives(ray_args: RayArgs, base: dict[str, Any]) -> list[dict[str, Any]]:
    """Overrides of few trials that stand for all that a search may try.

    Args:
        ray_args: entries of the ray config.
        base: a trial's values, in which a scheduler changes some; unused where the search
            algorithm chooses all values.
    """
    settings = corners(ray_args.config) if ray_args.search_alg else []
    base = settings[0] if settings else base
    return settings + [base | changed for changed in mutated(scheduler(ray_args))]


def scheduler(ray_args: RayArgs) -> TrialScheduler | None:
    """The scheduler of a ray config: an object of Ray, a name, or {'name': ..., arguments}.

    Raises:
        UserError: no scheduler of the name, or arguments that it does not take.
    """
    wanted = ray_args.scheduler
    if wanted is None or isinstance(wanted, TrialScheduler):
        return wanted
    return _made("scheduler", wanted, SCHEDULER_IMPORT, tune.create_scheduler)


def searcher(ray_args: RayArgs) -> Searcher | None:
    """The search algorithm of a ray config, in the same forms.

    Raises:
        UserError: none of the name, or its package is not installed.
    """
    wanted = ray_args.search_alg
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


def check(ray_args: RayArgs, metrics: tuple[str, ...]) -> RayArgs:
    """Find what cannot work together before Ray starts.

    Args:
        ray_args: entries of the ray config.
        metrics: what trials report.

    Returns:
        The entries, with the metric and mode of the scheduler where it has its own.

    Raises:
        UserError: a metric that no trial reports, or parts that exclude each other.
    """
    plans, search = scheduler(ray_args), searcher(ray_args)
    if isinstance(plans, PopulationBasedTraining) and search:
        raise UserError(
            "ray config: population based training draws its own values: leave search_alg out"
        )
    for part in (plans, search):
        own = getattr(part, "_metric", None), getattr(part, "_mode", None)
        if own[0] and own[1]:
            ray_args = dataclasses.replace(ray_args, metric=own[0], mode=own[1])
    several = isinstance(ray_args.metric, list)
    if several and (plans or not search):
        raise UserError(
            "ray config: several metrics need a search_alg, and a scheduler takes one metric"
        )
    metrics_asked: Any = ray_args.metric if several else [ray_args.metric]
    for metric in metrics_asked:
        if metric not in metrics:
            raise UserError(f"ray config: no metric '{metric}'{nearest(metric, metrics)}")
    time_attr = getattr(plans, "_time_attr", None) or "training_iteration"
    if time_attr not in ("training_iteration", "round", "total_s"):
        raise UserError(
            f"ray config: time_attr = '{time_attr}': expected training_iteration or total_s"
        )
    return ray_args


class Search(Searcher):
    """Suggests the rows of a plan: first the unfinished, then what the algorithm comes up with.

    Args:
        plan: of the experiment; new rows are added to it.
        inner: Ray's search algorithm.
        space: the search space.
        todo: numbers of the unfinished rows.
        limit: how many trials may run at a time.
        added: called with each new row.
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
        names: tuple[str, ...] = tuple(metric for metric, _ in plan.objectives)
        modes = [mode for _, mode in plan.objectives]
        several = len(names) > 1
        super().__init__(names[0], modes[0])
        self.plan, self.inner, self.todo = plan, inner, list(todo)
        self.limit, self.added, self.stopping = limit, added, stopping
        self.numbers: dict[str, int] = {}  # Ray's id of a running trial -> its row
        self.unknown: set[str] = set()  # ids that the algorithm has not suggested itself
        self.names = names
        self.fixed = {key: item for key, item in space.items() if isinstance(item, Function)
                      or not isinstance(item, Domain)}  # fmt: skip
        free = {key: item for key, item in space.items() if key not in self.fixed}
        self.study = OptunaStudy.of(plan, inner)
        metric: Any = list(names)
        mode: Any = modes
        if not several:
            ((metric, mode),) = plan.objectives
        inner.set_search_properties(metric, mode, free)
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
            suggestion: Any = self.inner.suggest(trial_id)
            if suggestion is None or suggestion == Searcher.FINISHED:
                return suggestion
            number = len(self.plan.rows)
            about = {"suggestion": self.study.number(trial_id)} if self.study else {}
            self.added(self.plan.add(self._overrides(suggestion), **about))
        self.numbers[trial_id] = number
        return {"number": number}

    def _overrides(self, suggestion: dict[str, Any]) -> dict[str, Any]:
        """A suggestion with the values that are fixed or depend on it."""
        flat = values.flatten(suggestion)
        (trial,) = variants(self.fixed | flat, 1, seed=len(self.plan.rows))
        flat = values.flatten(trial)
        return {name: values.literal(name, value) for name, value in flat.items()}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass a finite result on."""
        repeated = result.get("interrupted")  # the last round's result once more
        if not repeated and trial_id not in self.unknown and self._scored(result):
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
        return all(is_finite(result.get(name)) for name in self.names)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the manifest and Optuna's file hold everything."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see `save`."""


def settle(plan: Plan, ray_args: RayArgs) -> None:
    """Report ended trials to the search algorithm, when nothing is left to run.

    The driver may have been killed after the last result was written and before it was read.
    """
    algorithm = searcher(ray_args)
    assert algorithm is not None
    Search(plan, algorithm, ray_args.config, [], 0, lambda row: None, lambda: True)
