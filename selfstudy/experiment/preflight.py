"""Checks before anything starts: mistakes in any trial, and how much there is to do."""

import dataclasses
import sys
from collections.abc import Collection, Sequence
from typing import Any, Protocol

from selfstudy.experiment import rehearsal
from selfstudy.experiment.plan import Plan, Row
from selfstudy.experiment.rayconfig import RayArgs

MANY = 30  # trials whose checks take so long that they are announced
ASSUMED = ("mean_accuracy", "valid_accuracy", "train_accuracy", "train_loss", "total_s")


@dataclasses.dataclass
class Preflight:
    """Results of the checks of a plan's trials.

    Attributes:
        rounds: how long each trial is, by its name.
        typical: how long one is that a search will add.
        bytes: size of one checkpoint; 0 where no data were at hand to build one.
        data: SHA-256 of the data files.
        leaves_weights: whether checkpoints hold networks that others may start from.
    """

    rounds: dict[str, float]
    typical: float
    bytes: int
    data: dict[str, str]
    leaves_weights: bool

    def total(self, plan: Plan) -> float:
        """Rounds of all trials together."""
        return sum(self.rounds.values()) + (plan.total - len(plan.rows)) * self.typical


class SearchChecks(Protocol):
    """What `selfstudy.tune.search` answers about schedulers and search algorithms."""

    def representatives(self, ray_args: RayArgs, base: dict[str, Any]) -> list[dict[str, Any]]:
        """Overrides of trials that stand for all that the search may try."""
        ...

    def check(self, ray_args: RayArgs, metrics: tuple[str, ...]) -> RayArgs:
        """The entries with the scheduler's own metric and mode; refuses what cannot work."""
        ...


def check(
    plan: Plan,
    ray_args: RayArgs,
    prepare: bool,
    resumed: bool = False,
    promised: Collection[str] = (),
    search: SearchChecks | None = None,
) -> Preflight:
    """Check every trial, and the corners of what a search may try.

    Repeats that differ in their seed alone are checked once; of a resumed plan only the trials
    that are left. Names, types and choices are checked for all of them. Of trials that differ
    in single decimal numbers only, those with the smallest and the largest are rehearsed: such
    a number changes no shape. The plan gets the metric and mode of a scheduler with its own.

    Args:
        plan: what is to run.
        ray_args: entries of its ray config, with scheduler and search algorithm.
        prepare: make data files that are missing.
        resumed: whether some trials may have ended.
        promised: snapshots that will exist when the plan runs; trials that start from one
            are checked without it.
        search: checks of the scheduler and the search algorithm; needed where there is one.

    Raises:
        UserError: whatever cannot work.
    """
    left = plan.unfinished() if resumed else plan.rows
    if len(left) > MANY:
        print(f"checking {len(left)} trials", file=sys.stderr)
    rows = [Row(row.name, _without(row.overrides, promised)) for row in left]
    trials = _check_trials(plan, rows, prepare)
    others = (
        _check_search(plan, ray_args, prepare, [*trials.values()], search) if search else []
    )
    checked = [*trials.values(), *others]
    return Preflight(
        rounds={row.name: trials[row.name].rounds if row.name in trials
                else plan.last(row).get("rounds", 0) for row in plan.rows},
        typical=(others or checked)[0].rounds if checked else 0,
        bytes=max((trial.bytes for trial in checked), default=0),
        data={name: digest for trial in checked for name, digest in trial.data.items()},
        leaves_weights=all(trial.leaves_weights for trial in checked),
    )  # fmt: skip


def _check_trials(
    plan: Plan, rows: Sequence[Row], prepare: bool
) -> dict[str, rehearsal.Checked]:
    """Row's name -> the check of its values; of repeats with other seeds one is checked."""
    rehearsed = _extremes(rows)
    by_values: dict[str, rehearsal.Checked] = {}
    checked = {}
    for row in rows:
        values = {key: item for key, item in row.overrides.items() if not _is_seed(key)}
        if repr(values) not in by_values:
            build = row.name in rehearsed
            by_values[repr(values)] = rehearsal.check(plan.spec, row.overrides, build, prepare)
        checked[row.name] = by_values[repr(values)]
    return checked


def _without(overrides: dict[str, Any], promised: Collection[str]) -> dict[str, Any]:
    return {key: item for key, item in overrides.items()
            if not (isinstance(item, str) and item in promised)}  # fmt: skip


def _is_seed(name: str) -> bool:
    return name.endswith((".seed", "_seed"))


def _extremes(rows: Sequence[Row]) -> set[str]:
    """Names of the rows that are to be rehearsed."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        rest = {key: item for key, item in row.overrides.items()
                if not isinstance(item, float) and not _is_seed(key)}  # fmt: skip
        groups.setdefault(repr((rest, sorted(row.overrides))), []).append(row)
    chosen = set()
    for group in groups.values():
        chosen.add(group[0].name)
        for key in (key for key, item in group[0].overrides.items() if isinstance(item, float)):
            numbers = [row.overrides[key] for row in group]
            chosen |= {group[numbers.index(pick(numbers))].name for pick in (min, max)}
    return chosen


def _check_search(
    plan: Plan,
    ray_args: RayArgs,
    prepare: bool,
    known: Sequence[rehearsal.Checked],
    search: SearchChecks,
) -> list[rehearsal.Checked]:
    """Check representative settings of the search; the plan gets the search's objective."""
    base = plan.rows[0].overrides if plan.rows else {}
    checked = [rehearsal.check(plan.spec, overrides, prepare=prepare)
               for overrides in search.representatives(ray_args, base)]  # fmt: skip
    metrics = next((item.metrics for item in [*known, *checked] if item.metrics), ASSUMED)
    settled = search.check(ray_args, metrics)
    plan.exp_args |= {"metric": settled.metric, "mode": settled.mode}
    return checked
