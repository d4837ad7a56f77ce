"""The command line: plan trials, check them, and run them with Ray or without."""

import argparse
import os
import sys
import time
from typing import Any, NoReturn

# OpenMP's waiting threads spin by default, which cost a factor of three on two busy cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

from selfstudy import plan as plans
from selfstudy import summary
from selfstudy.configure import Spec, text_of
from selfstudy.interrupt import Interrupted, Interrupts
from selfstudy.plan import Plan
from util.environment import cpus
from util.errors import UserError, cause, reports_errors
from util.mirror import Mirror
from util.progress import Shown, Trials

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
        return plan, plans.stored_args(plan, accept_changes=bool(args.ray_config))
    spec = Spec(tuple(args.gin_config or DEFAULT_GIN), tuple(args.gin_param))
    name = (args.ray_config or "single_run").removesuffix(".py")
    given = plans.exp_args(name, args.settings)
    given["checkpoint_at_end"] |= args.checkpoint_at_end
    variants = None
    if plans.is_drawn(given["config"]) and not given["search_alg"]:
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
        ("--set", tuple(args.settings), plan.settings),
    ):
        if came and came != was:
            raise UserError(
                f"--resume: the stored plan of '{plan.exp_id}' has {flag} {was}, not {came}; "
                f"leave {flag} out, or choose another -e"
            )
    return plan


def checked(plan: Plan, given: dict[str, Any], prepare: bool) -> list:
    """Check every trial before anything starts, and the corners of what a search may try.

    Returns:
        What `trial.check` found, a row each; for a search the last one stands for the rest.
    """
    from selfstudy import trial

    def check(overrides: dict[str, Any]) -> Any:
        return trial.check(plan.spec, overrides, prepare=prepare)

    found = [check(row.overrides) for row in plan.rows]
    if given["search_alg"] or given["scheduler"]:
        from selfstudy import search

        others = search.corners(given["config"]) if given["search_alg"] else []
        base = others[0] if others else plan.rows[0].overrides if plan.rows else {}
        others += [base | few for few in search.mutated(search.scheduler(given))]
        rest = [check(overrides) for overrides in others]
        metrics = (found + rest)[0].metrics
        plan.exp_args |= {key: search.check(given, metrics or _ASSUMED)[key]
                          for key in ("metric", "mode")}  # fmt: skip
        found += rest[:1] if len(plan.rows) < plan.total else []
    return found


_ASSUMED = ("mean_accuracy", "valid_accuracy", "train_accuracy", "train_loss", "total_s")


def show_plan(plan: Plan, found: list, resources: dict[str, float], gpus: float) -> None:
    """Print the trials with what varies between them, and what each asks for."""
    from selfstudy import disk

    rounds = [item.rounds for item in found]
    if plan.rows:
        print(summary.plan_table(plan, rounds[: len(plan.rows)]))
    more = plan.total - len(plan.rows)
    if more:
        print(f"{more} trials that a search will choose ({plan.exp_args['search_alg']})")
    side = plans.at_once(resources, cpus(), gpus)
    print(f"{plan.total} trials, {plans.packing(resources, cpus(), gpus)}; "
          f"results in {plan.folder}")  # fmt: skip
    if found[0].bytes:
        print(disk.check_room(plan, disk.estimate(plan, found[0].bytes, rounds[0])))
    total = sum(rounds[: len(plan.rows)]) + more * rounds[-1]
    print(summary.duration(plan, total, side))


def shown(plan: Plan, found: list) -> dict[str, Shown]:
    """The trials as the progress shows them."""
    statuses, trials = plan.statuses(), {}
    for row, item in zip(plan.rows, found, strict=False):
        last = plan.last(row)
        status = statuses[row.name]
        status = status if status in ("done", "stopped", "diverged") else "planned"
        trials[row.name] = Shown(
            row.overrides, item.rounds, last.get("round", 0), status, last
        )  # fmt: skip
    return trials


def execute(plan: Plan, given: dict[str, Any], found: list, args: argparse.Namespace) -> int:
    """Run the unfinished trials; returns the exit code."""
    from selfstudy import trial

    start = time.monotonic()
    with plan.lock(), Interrupts(plan.folder) as interrupts:
        if not args.resume:
            refuse_existing(plan)
            data = {name: digest for item in found for name, digest in item.data.items()}
            plan.write(data, trial.devices())
        left = len(plan.unfinished()) + plan.total - len(plan.rows)
        if args.resume:
            print(f"resuming {plan.total} trials: {plan.total - left} done, {left} to run")
        plan.begin()
        runner = _local if args.local_mode else _ray
        failed: dict[str, str] = {}
        unsaved: dict[str, str] = {}
        if left:
            failed, unsaved = runner(plan, given, found, interrupts, args)
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


def _progress(plan: Plan, found: list, args: argparse.Namespace) -> Trials:
    metric, mode = plan.objectives[0]
    quiet = args.quiet or plan.exp_args["verbose"] == 0
    trials = shown(plan, found)
    return Trials(trials, total=plan.total, metric=metric, mode=mode, quiet=quiet)


def _local(plan, given, found, interrupts, args) -> tuple[dict, dict]:
    from selfstudy import solo, trial

    wanted = plan.exp_args["resources_per_trial"]
    resources, notes = plans.fit_resources(wanted, cpus(), trial.gpus())
    with _progress(plan, found, args) as progress:
        interrupts.say = progress.say
        for note in notes:
            progress.say(note)
        return solo.run(plan, progress, resources, interrupts)


def _ray(plan, given, found, interrupts, args) -> tuple[dict, dict]:
    from selfstudy import study

    try:
        have = study.start(args.address, args.quiet, plan.folder)
        interrupts.listen()
        resources, notes = plans.fit_resources(plan.exp_args["resources_per_trial"], *have)
        with _progress(plan, found, args) as progress:
            interrupts.say = progress.say
            for note in notes:
                progress.say(note)
            return study.run(plan, given, progress, resources, interrupts, args.quiet, have,
                             found[-1].rounds if found else 0)  # fmt: skip
    finally:
        study.stop()


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
    from selfstudy import trial  # torch takes seconds; a wrong flag is answered without it

    if args.print_config:
        overrides = plan.rows[0].overrides if plan.rows else {}
        print(text_of(trial.check(plan.spec, overrides, build=False).parts))
        return 0
    found = checked(plan, given, prepare=not args.dry_run)
    resources: dict[str, float] = plan.exp_args["resources_per_trial"]
    gpus = 0 if args.address else trial.gpus()
    if not args.address:
        resources, _ = plans.fit_resources(resources, cpus(), gpus)
    elif not args.dry_run:
        from selfstudy import study

        study.check_address(args.address)
    if args.dry_run:
        show_plan(plan, found, resources, gpus)
        return 0
    print(f"experiment {plan.exp_id}: {plan.total} trials, in {plan.folder}")
    if plan.total > 1:
        print(plans.packing(resources, cpus(), gpus))
    if found:
        from selfstudy import disk

        print(disk.check_room(plan, disk.estimate(plan, found[0].bytes, found[0].rounds)))
    try:
        return execute(plan, given, found, args)
    except (KeyboardInterrupt, Interrupted) as error:
        print(f"\n{_stopped(plan)}", file=sys.stderr)
        return getattr(error, "code", 130)


if __name__ == "__main__":
    main()
