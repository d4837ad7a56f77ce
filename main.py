"""The command line: plan trials, check them, and run them with Ray or without."""

import argparse
import os
import shlex
import sys
import time
from typing import NoReturn

# OpenMP's waiting threads spin by default, which cost a factor of three on two busy cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

from selfstudy import plan as plans
from selfstudy.configure import Spec, text_of
from selfstudy.plan import Plan
from util.environment import cpus
from util.errors import UserError, printable, reports_errors
from util.progress import Progress, clock, table

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
    add("-l", "--local_mode", action="store_true",
        help="run in this process, one trial after another, without Ray")  # fmt: skip
    add("-a", "--address", help="address of a running Ray cluster")
    add("-q", "--quiet", action="store_true", help="no progress, no output of workers")
    add("-c", "--checkpoint_at_end", action="store_true", help="save each trial when it ends")
    add("--resume", action="store_true", help="complete an interrupted experiment (needs -e)")
    add("--dry-run", action="store_true", help="print the trials and their resources, run none")
    add("--print-config", action="store_true", help="print all bindings with their defaults")
    return flags


def planned(args: argparse.Namespace) -> Plan:
    """The plan: a new one from the flags, or the stored one of an experiment."""
    if args.resume:
        return _stored(args)
    spec = Spec(tuple(args.gin_config or DEFAULT_GIN), tuple(args.gin_param))
    name = args.ray_config or "single_run"
    given = plans.exp_args(name)
    given["checkpoint_at_end"] |= args.checkpoint_at_end
    variants = None
    if plans.is_drawn(given["config"]):
        from selfstudy.study import variants
    plan = plans.make(args.exp_id or plans.fresh_id(), spec, name, given, variants)
    if not (args.dry_run or args.print_config):
        refuse_existing(plan)
    return plan


def refuse_existing(plan: Plan) -> None:
    """An experiment is never mixed with another of the same name."""
    if plan.exists():
        raise UserError(
            f"experiment '{plan.exp_id}' exists already: continue it with "
            f"python main.py -e {plan.exp_id} --resume, or choose another -e",
            4,
        )


def _stored(args: argparse.Namespace) -> Plan:
    if not args.exp_id:
        raise UserError("--resume needs the experiment: python main.py -e EXP_ID --resume")
    plan = Plan.stored(args.exp_id)
    for flag, came, was in (
        ("-r", args.ray_config, plan.ray),
        ("-g", tuple(args.gin_config), plan.spec.gin),
        ("-p", tuple(args.gin_param), plan.spec.params),
    ):
        if came and came != was:
            raise UserError(
                f"--resume: the stored plan of '{plan.exp_id}' has {flag} {was}, not {came}; "
                f"leave {flag} out, or choose another -e"
            )
    return plan


def checked(plan: Plan, build: bool) -> tuple[list[float], dict[str, str]]:
    """Check every trial before anything starts; returns the rounds of each, and data hashes."""
    from selfstudy import trial

    parts = [trial.check(plan.spec, row.overrides, build) for row in plan.rows]
    data = {name: digest for part in parts for name, digest in part.get("data", {}).items()}
    return [part["scheduler"]["milestones"][-1] for part in parts], data


def show_plan(
    plan: Plan, rounds: list[float], resources: dict[str, float], gpus: float
) -> None:
    """Print the trials with what varies between them, and what each asks for."""
    names = plan.varying() or sorted({name for row in plan.rows for name in row.overrides})
    rows = [[row.name, *(row.overrides.get(name, "") for name in names), f"{count:g}"]
            for row, count in zip(plan.rows, rounds, strict=True)]  # fmt: skip
    print(table(rows, ["trial", *names, "rounds"]))
    asked = ", ".join(f"{name} {amount:g}" for name, amount in resources.items())
    side = plans.at_once(resources, cpus(), gpus)
    print(f"{len(plan.rows)} trials, each {asked}; {side} at once; results in {plan.folder}")


def show_results(plan: Plan, failed: dict[str, str], seconds: float) -> None:
    """The final table: accuracies and folders."""
    names = plan.varying()
    metrics = ["train_accuracy", "valid_accuracy", "test_accuracy"]
    rows = []
    for row in plan.rows:
        last = plan.last(row)
        shown = [f"{last[name]:.4f}" if last.get(name) is not None else "-" for name in metrics]
        state = "failed" if row.name in failed else "done" if last.get("done") else "unfinished"
        rows.append([row.name, *(row.overrides.get(name, "") for name in names),
                     f"{last.get('round', 0):g}", *shown, state])  # fmt: skip
    print()
    print(table(rows, ["trial", *names, "rounds", "train", "valid", "test", "state"]))
    print(f"\n{clock(seconds)} in all; trial folders below {plan.folder}")
    for name, why in failed.items():
        print(f"{name} failed: {printable(why)} (see {name}/error.txt)")


def next_commands(plan: Plan) -> list[str]:
    """Command lines that follow naturally."""
    many, saved = len(plan.rows) > 1, plan.exp_args["checkpoint_at_end"]
    lines = []
    if saved:
        names = "-".join(f"{{cfg[{name}]}}" for name in plan.varying())
        template = f" -p '{names}'" if many else ""
        lines.append(f"python misc/move_snapshots.py -e {plan.exp_id}{template} -m")
    if saved and not many:
        # The experiment's name stands for its only snapshot, moved or not.
        files = "" if plan.spec.gin == DEFAULT_GIN else f" -g {shlex.join(plan.spec.gin)}"
        weights = f'Wrapper.pretrained = "{plan.exp_id}"'
        lines.append(f"python main.py{files} -p {shlex.join([*plan.spec.params, weights])}")
    if not many:
        lines += [
            "python main.py -e grid -r grid_search -g digits/r9/classify",
            "python main.py -g fashion/r9/classify",
            "python main.py -g cifar/r9/classify -p 'dataloader.batch_size=128'",
        ]
    return lines


def execute(
    plan: Plan, rounds: list[float], data: dict[str, str], args: argparse.Namespace
) -> int:
    """Run the unfinished trials; returns the exit code."""
    from selfstudy import trial

    wanted = plan.exp_args["resources_per_trial"]
    start = time.monotonic()
    with plan.lock():
        if not args.resume:
            refuse_existing(plan)
            plan.write(data, trial.devices())
        left = {row.name for row in plan.unfinished()}
        todo = sum(
            count - plan.last(row).get("round", 0)
            for row, count in zip(plan.rows, rounds, strict=True)
            if row.name in left
        )
        if args.resume:
            print(f"resuming {len(plan.rows)} trials: {len(plan.rows) - len(left)} done, "
                  f"{len(left)} to run")  # fmt: skip
        runner = _local if args.local_mode else _ray
        quiet = args.quiet or plan.exp_args["verbose"] == 0
        with Progress(len(left), todo, quiet) as progress:
            failed = runner(plan, progress, wanted, args) if left else {}
    show_results(plan, failed, time.monotonic() - start)
    if failed:
        return 3
    if lines := next_commands(plan):
        print("\nnext:", *lines, sep="\n  ")
    return 0


def _local(plan: Plan, progress: Progress, wanted: dict, args: argparse.Namespace) -> dict:
    from selfstudy import solo, trial

    resources, notes = plans.fit_resources(wanted, cpus(), trial.gpus())
    for note in notes:
        progress.say(note)
    return solo.run(plan, progress, resources)


def _ray(plan: Plan, progress: Progress, wanted: dict, args: argparse.Namespace) -> dict:
    from selfstudy import study

    try:
        resources, notes = plans.fit_resources(wanted, *study.start(args.address, args.quiet))
        for note in notes:
            progress.say(note)
        return study.run(plan, progress, resources, args.quiet)
    finally:
        study.stop()


@reports_errors
def main() -> int:
    """Run the command line; returns the exit code."""
    args = parser().parse_args()
    if args.local_mode and args.address:
        raise UserError("-l runs without Ray and -a on a cluster: leave one of them out")
    plan = planned(args)
    from selfstudy import trial  # torch takes seconds; a wrong flag is answered without it

    if args.print_config:
        print(text_of(trial.check(plan.spec, plan.rows[0].overrides, build=False)))
        return 0
    rounds, data = checked(plan, build=not args.dry_run)
    resources: dict[str, float] = plan.exp_args["resources_per_trial"]
    if not args.address:
        resources, _ = plans.fit_resources(resources, cpus(), trial.gpus())
    elif not args.dry_run:
        from selfstudy import study

        study.check_address(args.address)
    if args.dry_run:
        show_plan(plan, rounds, resources, 0 if args.address else trial.gpus())
        return 0
    print(f"experiment {plan.exp_id}: {len(plan.rows)} trials, in {plan.folder}")
    try:
        return execute(plan, rounds, data, args)
    except KeyboardInterrupt:
        print(f"\ninterrupted; continue with: python main.py -e {plan.exp_id} --resume",
              file=sys.stderr)  # fmt: skip
        return 130


if __name__ == "__main__":
    main()
