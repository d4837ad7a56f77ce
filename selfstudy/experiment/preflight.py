"""What is found out before anything starts: every mistake, and how much there is to do."""

import dataclasses
import sys
from collections.abc import Collection, Sequence
from typing import Any

from selfstudy.experiment import rehearsal
from selfstudy.experiment.plan import Plan, Row

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


def check(
    plan: Plan,
    given: dict[str, Any],
    prepare: bool,
    resumed: bool = False,
    promised: Collection[str] = (),
) -> Preflight:
    """Check every trial, and the corners of what a search may try.

    Repeats that differ in their seed alone are checked once; of a resumed plan only the trials
    that are left. Names, types and choices are checked for all of them. Of trials that differ
    in single decimal numbers only, those with the smallest and the largest are rehearsed: such
    a number changes no shape. The plan gets the metric and mode of a scheduler with its own.

    Args:
        plan: what is to run.
        given: entries of its ray config, with scheduler and search algorithm.
        prepare: make data files that are missing.
        resumed: whether some trials may have ended.
        promised: snapshots that will be there when the plan runs; those that start from one
            are checked without it.

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
    rest = _check_search(plan, given, prepare, [*known.values()])
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
    plan: Plan, given: dict[str, Any], prepare: bool, found: Sequence[rehearsal.Checked]
) -> list[rehearsal.Checked]:
    """Check scheduler and search algorithm, and trials that stand for those to come."""
    if not (given["search_alg"] or given["scheduler"]):
        return []
    from selfstudy.tune import search

    corners = search.corners(given["config"]) if given["search_alg"] else []
    base = corners[0] if corners else plan.rows[0].overrides if plan.rows else {}
    changed = [base | few for few in search.mutated(search.scheduler(given))]
    rest = [rehearsal.check(plan.spec, values, prepare=prepare) for values in corners + changed]
    metrics = next((item.metrics for item in [*found, *rest] if item.metrics), ASSUMED)
    checked = search.check(given, metrics)
    plan.exp_args |= {key: checked[key] for key in ("metric", "mode")}
    return rest
