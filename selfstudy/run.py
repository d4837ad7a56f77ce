"""Runs the unfinished trials of a plan, with Ray or without, and says what came of them."""

import contextlib
import dataclasses
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from selfstudy.experiment import summary
from selfstudy.experiment.interrupts import CODES, Interrupts
from selfstudy.experiment.plan import Plan
from selfstudy.experiment.rayconfig import RayArgs
from selfstudy.experiment.resources import fit_resources, packing, trials_at_once
from selfstudy.storage.mirror import Mirror
from util.environment import cpus
from util.errors import UserError, cause
from util.forecast import TrialProgress
from util.progress import ProgressTable

if TYPE_CHECKING:  # it imports torch
    from selfstudy.experiment.preflight import Preflight

GO_ON = "continue with: python main.py -e {} --resume"
Outcome = tuple[dict[str, str], dict[str, str]]  # trial -> why it failed, and was not saved


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How a plan is run.

    Attributes:
        local: in this process, one trial after another, without Ray.
        address: of a running Ray cluster; None is this machine.
        quiet: no progress, no output of workers.
    """

    local: bool = False
    address: str | None = None
    quiet: bool = False


@dataclasses.dataclass(frozen=True)
class RunResult:
    """How a run has ended.

    Attributes:
        code: the exit code: 0, 3 where trials failed, or that of the interrupt.
        early: why it has stopped before its end, in words; '' at its end.
    """

    code: int
    early: str = ""

    def follow_up(self, exp_id: str) -> None:
        """Print how to go on after an early end."""
        stream = sys.stdout if self.code in (0, 3) else sys.stderr
        print(f"\n{self.early}; {GO_ON.format(exp_id)}", file=stream)


def refuse_existing(exp_id: str, exists: bool) -> None:
    """An experiment is never mixed with another of the same name."""
    mirror = Mirror.from_environment()
    if exists or (mirror and mirror.has(exp_id)):
        raise UserError(
            f"experiment '{exp_id}' exists already: continue it with "
            f"python main.py -e {exp_id} --resume, or choose another -e",
            4,
        )


def check(plan: Plan, ray_args: RayArgs, prepare: bool, resumed: bool) -> "Preflight":
    """Check every trial before anything starts, with Ray's part where the plan has one.

    Args:
        plan: what is to run.
        ray_args: entries of its ray config, with scheduler and search algorithm.
        prepare: make data files that are missing.
        resumed: whether some trials may have ended.

    Raises:
        UserError: whatever cannot work.
    """
    from selfstudy.experiment import preflight

    search = None
    if ray_args.scheduler or ray_args.search_alg:
        from selfstudy.tune import search
    return preflight.check(plan, ray_args, prepare, resumed, search=search)


def show_plan(
    plan: Plan, checks: "Preflight", resources: dict[str, float], gpus: float
) -> None:
    """Print the trials with what varies between them, and what each asks for."""
    if plan.rows:
        print(summary.plan_table(plan, list(checks.rounds.values())))
    more = plan.total - len(plan.rows)
    if more:
        print(f"{more} trials that a search will choose ({plan.exp_args['search_alg']})")
    side = trials_at_once(resources, cpus(), gpus)
    print(f"{plan.total} trials, {packing(resources, cpus(), gpus)}; "
          f"results in {plan.folder}")  # fmt: skip
    show_room(plan, checks)
    print(summary.duration(plan, checks.total(plan), side))


def show_room(plan: Plan, checks: "Preflight") -> None:
    """Print what checkpoints will take of the disk; refuse what cannot fit."""
    from selfstudy.experiment import disk

    needed = disk.estimate(plan, checks.bytes, max([checks.typical, *checks.rounds.values()]))
    if needed:
        print(disk.check_room(plan, needed))


def initial_progress(plan: Plan, checks: "Preflight") -> dict[str, TrialProgress]:
    """The trials as the progress shows them."""
    statuses, trials = plan.statuses(), {}
    for row in plan.rows:
        last, status = plan.last(row), statuses[row.name]
        status = status if status in ("done", "stopped", "diverged") else "planned"
        rounds = checks.rounds[row.name]
        trials[row.name] = TrialProgress(
            row.overrides, rounds, last.get("round", 0), status, last
        )
    return trials


def execute(
    plan: Plan,
    ray_args: RayArgs,
    checks: "Preflight",
    options: RunOptions,
    resumed: bool = False,
    changed: bool = False,
) -> RunResult:
    """Run the unfinished trials and print their results.

    Args:
        plan: what to run; it is written down first.
        ray_args: the entries of its ray config, with Ray's objects.
        checks: of its trials, from `check`.
        options: with Ray or without.
        resumed: the plan is on the disk already.
        changed: ... and differs from the one there by `--set`.
    """
    try:
        return _executed(plan, ray_args, checks, options, resumed, changed)
    except KeyboardInterrupt as error:  # the second one, which waits for nothing
        return RunResult(getattr(error, "code", CODES[signal.SIGINT]), "interrupted")


def _executed(plan, ray_args, checks, options, resumed, changed) -> RunResult:
    from selfstudy import devices

    start = time.monotonic()
    with plan.lock(), Interrupts(plan.folder) as interrupts:
        if not resumed:
            refuse_existing(plan.exp_id, plan.exists())
            plan.write(checks.data, devices.names())
        elif changed:
            plan.write_plan()
        left = len(plan.unfinished()) + plan.total - len(plan.rows)
        if resumed:
            print(f"resuming {plan.total} trials: {plan.total - left} done, {left} to run")
        plan.begin()
        failed: dict[str, str] = {}
        unsaved: dict[str, str] = {}
        if left:
            try:
                failed, unsaved = _run(plan, ray_args, checks, interrupts, options)
            except UserError:  # such as a cluster that cannot be used
                plan.forget()
                raise
        elif ray_args.search_alg:
            from selfstudy.tune import search

            search.settle(plan, ray_args)
        code = interrupts.code or (3 if failed or unsaved or diverged(plan) else 0)
        plan.note("end", code=code)
        upload(plan.folder)
    print(f"\n{summary.results(plan, failed, time.monotonic() - start)}")
    for name, why in unsaved.items():
        print(f"{name}: its last checkpoint is missing: {why}")
    early = "interrupted" if interrupts.code or interrupts.stopping else ""
    if early and not interrupts.code:
        early = f"the time budget is used; {early}"
    return RunResult(code, early)


def upload(folder: Path) -> None:
    """Leave the mirror with everything that is in an experiment's folder."""
    try:
        if mirror := Mirror.from_environment():
            mirror.upload(folder)
    except (OSError, UserError) as error:
        print(f"the mirror is not up to date: {cause(error)}", file=sys.stderr)


def _run(
    plan: Plan,
    ray_args: RayArgs,
    checks: "Preflight",
    interrupts: Interrupts,
    options: RunOptions,
) -> Outcome:
    from selfstudy import devices

    if options.local:
        wanted = plan.exp_args["resources_per_trial"]
        resources, notes = fit_resources(wanted, cpus(), devices.gpus())
        with _progress(plan, checks, options, notes, interrupts) as progress:
            from selfstudy.experiment import local

            return local.run(plan, progress, resources, interrupts)
    from selfstudy.tune import cluster, runner

    try:
        have = cluster.start(options.address, options.quiet, plan.folder)
        interrupts.listen()
        resources, notes = fit_resources(plan.exp_args["resources_per_trial"], *have)
        if plan.total > 1:
            print(packing(resources, *have), flush=True)
        with _progress(plan, checks, options, notes, interrupts) as progress:
            return runner.run(
                plan,
                ray_args,
                progress,
                resources,
                interrupts,
                options.quiet,
                have,
                checks.typical,
            )
    finally:
        cluster.stop()


def diverged(plan: Plan) -> bool:
    """Whether some trial's loss was no number any more."""
    return any(status == "diverged" for status in plan.statuses().values())


@contextlib.contextmanager
def _progress(
    plan: Plan,
    checks: "Preflight",
    options: RunOptions,
    notes: list[str],
    interrupts: Interrupts,
) -> Iterator[ProgressTable]:
    metric, mode = plan.objectives[0]
    quiet = options.quiet or plan.exp_args["verbose"] == 0
    trials = initial_progress(plan, checks)
    with ProgressTable(
        trials, total=plan.total, metric=metric, mode=mode, quiet=quiet
    ) as progress:
        interrupts.say = progress.say
        for note in notes:
            progress.say(note)
        yield progress
