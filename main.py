"""The command line: plan trials, check them, and run them with Ray or without."""

import argparse
import os
import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn

# OpenMP's waiting threads spin by default, which cost a factor of three on two busy cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

from selfstudy import plan as plans
from selfstudy import rayconfig, shares, summary
from selfstudy.configure import INCLUDE, Spec, text_of
from selfstudy.interrupt import Interrupted, Interrupts
from selfstudy.plan import Plan
from util.environment import cpus
from util.errors import UserError, cause, reports_errors
from util.mirror import Mirror
from util.progress import Shown, Trials

if TYPE_CHECKING:  # it imports torch
    from selfstudy.preflight import Preflight

DEFAULT_GIN = ("digits/r9/classify",)


class _Flags(argparse.ArgumentParser):
    """Says what is wrong in one line, like every other mistake."""

    def error(self, message: str) -> NoReturn:
        """Argparse itself would print the usage before it."""
        raise UserError(f"{message}; see python main.py --help")


def parser() -> argparse.ArgumentParser:
    """The command line's flags; `-g` and `-p` add up when repeated."""
    flags = _Flags(
        prog="python main.py",
        description="Train, sweep and evaluate. Without arguments: a small network on digits.",
    )
    add = flags.add_argument
    add("-e", "--exp_id", help="name of the experiment, a folder below exp/ (default: made up)")
    add("-r", "--ray_config", help="file below config/ray (default: single_run)")
    many = {"nargs": "+", "action": "extend", "default": []}
    add("-g", "--gin_config", **many, metavar="FILE",
        help=f"files below config/gin, later ones win (default: {DEFAULT_GIN[0]})")  # fmt: skip
    add("-p", "--gin_param", **many, metavar="'NAME = VALUE'",
        help="gin bindings, which win over files")  # fmt: skip
    add("--set", **many, metavar="KEY=VALUE", dest="settings",
        help="entries of the ray config, as in num_samples=40")  # fmt: skip
    add("-l", "--local_mode", action="store_true",
        help="run in this process, one trial after another, without Ray")  # fmt: skip
    add("-a", "--address", help="address of a running Ray cluster (default: RAY_ADDRESS)")
    add("-q", "--quiet", action="store_true", help="no progress, no output of workers")
    add("-c", "--checkpoint_at_end", action="store_true", help="save each trial when it ends")
    add("--resume", action="store_true", help="complete an interrupted experiment (needs -e)")
    add("--dry-run", action="store_true", help="print the trials and their resources, run none")
    add("--print-config", action="store_true", help="print all bindings with their defaults")
    return flags


def planned(args: argparse.Namespace) -> tuple[Plan, dict[str, Any]]:
    """The plan, a new one from the flags or the stored one, and its ray config's entries."""
    if args.resume:
        plan = _stored(args)
        return plan, plan.given(accept_changes=bool(args.ray_config))
    name = (args.ray_config or "single_run").removesuffix(".py")
    given = rayconfig.exp_args(name, args.settings)
    default = () if INCLUDE in given["config"] else DEFAULT_GIN
    spec = Spec(tuple(args.gin_config or default), tuple(args.gin_param))
    given["checkpoint_at_end"] |= args.checkpoint_at_end
    variants = None
    if rayconfig.is_drawn(given["config"]) and not given["search_alg"]:
        from selfstudy.search import variants
    exp_id = args.exp_id or plans.fresh_id()
    plan = plans.make(exp_id, spec, name, given, variants, args.settings)
    if not (args.dry_run or args.print_config):
        refuse_existing(plan)
    return plan, given


def refuse_existing(plan: Plan) -> None:
    """An experiment is never mixed with another of the same name."""
    mirror = Mirror.from_environment()
    if plan.exists() or (mirror and mirror.has(plan.exp_id)):
        raise UserError(
            f"experiment '{plan.exp_id}' exists already: continue it with "
            f"python main.py -e {plan.exp_id} --resume, or choose another -e",
            4,
        )


def _stored(args: argparse.Namespace) -> Plan:
    if not args.exp_id:
        raise UserError("--resume needs the experiment: python main.py -e EXP_ID --resume")
    try:
        if (mirror := Mirror.from_environment()) and mirror.has(args.exp_id):
            print(f"{mirror.download(args.exp_id)} files from the mirror", file=sys.stderr)
    except OSError as error:
        raise UserError(f"the mirror cannot be read: {cause(error)}") from None
    plan = Plan.stored(args.exp_id)
    ray_config = args.ray_config and args.ray_config.removesuffix(".py")
    for flag, came, was in (
        ("-r", ray_config, plan.ray),
        ("-g", tuple(args.gin_config), plan.spec.gin),
        ("-p", tuple(args.gin_param), plan.spec.params),
    ):
        if came and came != was:
            raise UserError(
                f"--resume: the stored plan of '{plan.exp_id}' has {flag} {was}, not {came}; "
                f"leave {flag} out, or choose another -e"
            )
    if tuple(args.settings) != plan.settings:
        plan.change(args.settings)
    return plan


def show_plan(plan: Plan, found: "Preflight", resources: dict[str, float], gpus: float) -> None:
    """Print the trials with what varies between them, and what each asks for."""
    if plan.rows:
        print(summary.plan_table(plan, list(found.rounds.values())))
    more = plan.total - len(plan.rows)
    if more:
        print(f"{more} trials that a search will choose ({plan.exp_args['search_alg']})")
    side = shares.at_once(resources, cpus(), gpus)
    print(f"{plan.total} trials, {shares.packing(resources, cpus(), gpus)}; "
          f"results in {plan.folder}")  # fmt: skip
    show_room(plan, found)
    print(summary.duration(plan, found.total(plan), side))


def show_room(plan: Plan, found: "Preflight") -> None:
    """Print what checkpoints will take of the disk; refuse what cannot fit."""
    from selfstudy import disk

    needed = disk.estimate(plan, found.bytes, max([found.typical, *found.rounds.values()]))
    if needed:
        print(disk.check_room(plan, needed))


def shown(plan: Plan, found: "Preflight") -> dict[str, Shown]:
    """The trials as the progress shows them."""
    statuses, trials = plan.statuses(), {}
    for row in plan.rows:
        last, status = plan.last(row), statuses[row.name]
        status = status if status in ("done", "stopped", "diverged") else "planned"
        rounds = found.rounds[row.name]
        trials[row.name] = Shown(row.overrides, rounds, last.get("round", 0), status, last)
    return trials


def execute(
    plan: Plan, given: dict[str, Any], found: "Preflight", args: argparse.Namespace
) -> int:
    """Run the unfinished trials; returns the exit code."""
    from selfstudy import devices

    start = time.monotonic()
    with plan.lock(), Interrupts(plan.folder) as interrupts:
        if not args.resume:
            refuse_existing(plan)
            plan.write(found.data, devices.names())
        elif args.settings:
            plan.write_plan()
        left = len(plan.unfinished()) + plan.total - len(plan.rows)
        if args.resume:
            print(f"resuming {plan.total} trials: {plan.total - left} done, {left} to run")
        plan.begin()
        runner = _local if args.local_mode else _ray
        failed: dict[str, str] = {}
        unsaved: dict[str, str] = {}
        if left:
            try:
                failed, unsaved = runner(plan, given, found, interrupts, args)
            except UserError:  # such as a cluster that cannot be used
                plan.forget()
                raise
        elif given["search_alg"]:
            from selfstudy import search

            search.settle(plan, given)
        code = interrupts.code or (3 if failed or unsaved or _diverged(plan) else 0)
        plan.note("end", code=code)
        _upload(plan)
    print(f"\n{summary.results(plan, failed, time.monotonic() - start)}")
    if interrupts.code:
        print(f"\n{_stopped(plan)}", file=sys.stderr)
        return interrupts.code
    if interrupts.stopping:
        print(f"\nthe time budget is used; {_stopped(plan)}")
    if plan.total > 1 and (best := summary.best(plan)):
        print(f"\n{best}")
    for name, why in unsaved.items():
        print(f"{name}: its last checkpoint is missing: {why}")
    if not code and (lines := summary.next_commands(plan, DEFAULT_GIN)):
        print("\nnext:", *lines, sep="\n  ")
    return code


def _upload(plan: Plan) -> None:
    """Leave the mirror with everything that is here."""
    try:
        if mirror := Mirror.from_environment():
            mirror.upload(plan.folder)
    except (OSError, UserError) as error:
        print(f"the mirror is not up to date: {cause(error)}", file=sys.stderr)


def _diverged(plan: Plan) -> bool:
    return any(status == "diverged" for status in plan.statuses().values())


def _stopped(plan: Plan) -> str:
    return f"interrupted; continue with: python main.py -e {plan.exp_id} --resume"


def _progress(plan: Plan, found: "Preflight", args: argparse.Namespace) -> Trials:
    metric, mode = plan.objectives[0]
    quiet = args.quiet or plan.exp_args["verbose"] == 0
    trials = shown(plan, found)
    return Trials(trials, total=plan.total, metric=metric, mode=mode, quiet=quiet)


def _local(plan, given, found, interrupts, args) -> tuple[dict, dict]:
    from selfstudy import devices, solo

    wanted = plan.exp_args["resources_per_trial"]
    resources, notes = shares.fit(wanted, cpus(), devices.gpus())
    with _progress(plan, found, args) as progress:
        interrupts.say = progress.say
        for note in notes:
            progress.say(note)
        return solo.run(plan, progress, resources, interrupts)


def _ray(plan, given, found, interrupts, args) -> tuple[dict, dict]:
    from selfstudy import cluster, study

    try:
        have = cluster.start(args.address, args.quiet, plan.folder)
        interrupts.listen()
        resources, notes = shares.fit(plan.exp_args["resources_per_trial"], *have)
        if plan.total > 1:
            print(shares.packing(resources, *have), flush=True)
        with _progress(plan, found, args) as progress:
            interrupts.say = progress.say
            for note in notes:
                progress.say(note)
            return study.run(
                plan, given, progress, resources, interrupts, args.quiet, have, found.typical
            )
    finally:
        cluster.stop()


@reports_errors
def main() -> int:
    """Run the command line; returns the exit code."""
    args = parser().parse_args()
    if args.local_mode and args.address:
        raise UserError("-l runs without Ray and -a on a cluster: leave one of them out")
    if not args.local_mode:
        args.address = args.address or os.environ.get("RAY_ADDRESS")
    plan, given = planned(args)
    if args.local_mode and plan.is_ranked:
        raise UserError(
            f"-l runs one trial after another, and {plan.ray} compares trials as they run: "
            "leave -l out, or add --set scheduler=None search_alg=None"
        )
    if args.print_config:
        from selfstudy import rehearsal

        overrides = plan.rows[0].overrides if plan.rows else {}
        print(text_of(rehearsal.check(plan.spec, overrides, build=False).parts))
        return 0
    from selfstudy import devices, preflight

    found = preflight.check(plan, given, prepare=not args.dry_run, resumed=args.resume)
    resources: dict[str, float] = plan.exp_args["resources_per_trial"]
    gpus = 0 if args.address else devices.gpus()
    if not args.address:
        resources, _ = shares.fit(resources, cpus(), gpus)
    elif not args.dry_run:
        from selfstudy import cluster

        cluster.check_address(args.address)
    if args.dry_run:
        show_plan(plan, found, resources, gpus)
        return 0
    print(f"experiment {plan.exp_id}: {plan.total} trials, in {plan.folder}")
    show_room(plan, found)
    try:
        return execute(plan, given, found, args)
    except (KeyboardInterrupt, Interrupted) as error:
        print(f"\n{_stopped(plan)}", file=sys.stderr)
        return getattr(error, "code", 130)


if __name__ == "__main__":
    main()
