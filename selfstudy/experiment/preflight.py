"""What is found out before anything starts: every mistake, and how much there is to do."""

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
    """What the checks of a plan's trials have found.

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
    lasts = {row.name: plan.last(row) for row in plan.rows} if resumed else {}
    left = {row.name for row in plan.unfinished()} if resumed else None
    todo = [row for row in plan.rows if left is None or row.name in left]
    known: dict[str, rehearsal.Checked] = {}
    found: dict[str, rehearsal.Checked] = {}
    if len(todo) > MANY:
        print(f"checking {len(todo)} trials", file=sys.stderr)
    todo = [Row(row.name, _without(row.overrides, promised)) for row in todo]
    extreme = _extremes(todo)
    for row in todo:
        values = {key: item for key, item in row.overrides.items() if not _is_seed(key)}
        same = repr(values)
        if same not in known:
            build = row.name in extreme
            known[same] = rehearsal.check(plan.spec, row.overrides, build, prepare)
        found[row.name] = known[same]
    rest = _check_search(plan, ray_args, prepare, [*known.values()], search) if search else []
    some = [*found.values(), *rest]
    rounds = {
        row.name: found[row.name].rounds if row.name in found
        else lasts[row.name].get("rounds", 0) for row in plan.rows
    }  # fmt: skip
    data = {name: digest for item in some for name, digest in item.data.items()}
    first = rest[0] if rest else some[0] if some else None
    return Preflight(
        rounds,
        first.rounds if first else 0,
        max((item.bytes for item in some), default=0),
        data,
        all(item.leaves_weights for item in some),
    )


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
