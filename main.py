"""The command line: plan trials, check them, and run them with Ray or without."""

import argparse
import dataclasses
import os
import sys
from typing import NoReturn

# OpenMP's waiting threads spin by default, which cost a factor of three on two busy cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import paths
from selfstudy import extra, run, study
from selfstudy.configure import INCLUDE, Spec, text_of
from selfstudy.experiment import names, rayconfig, summary
from selfstudy.experiment import plan as plans
from selfstudy.experiment.plan import Plan
from selfstudy.experiment.rayconfig import RayArgs
from selfstudy.experiment.resources import fit_resources
from selfstudy.storage.mirror import Mirror
from util.environment import cpus
from util.errors import UserError, cause, reports_errors

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
    add("-r", "--ray_config", type=extra.ray_name,
        help="file below config/ray (default: single_run)")  # fmt: skip
    many = {"nargs": "+", "action": "extend", "default": []}
    add("-g", "--gin_config", **many, metavar="FILE", type=extra.gin_name,
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


def ray_config(args: argparse.Namespace) -> str:
    """The ray config that the flags name, or the one without them."""
    return args.ray_config or "single_run"


def planned(args: argparse.Namespace) -> tuple[Plan, RayArgs]:
    """The plan, a new one from the flags or the stored one, and its ray config's entries."""
    if args.resume:
        plan = _stored(args)
        return plan, plan.ray_args(accept_changes=bool(args.ray_config))
    name = ray_config(args)
    ray_args = rayconfig.exp_args(name, args.settings)
    default = () if INCLUDE in ray_args.config else DEFAULT_GIN
    spec = Spec(tuple(args.gin_config or default), tuple(args.gin_param))
    names.check(spec, ray_args.config)
    if args.checkpoint_at_end:
        ray_args = dataclasses.replace(ray_args, checkpoint_at_end=True)
    variants = None
    if rayconfig.has_variants(ray_args.config) and not ray_args.search_alg:
        from selfstudy.tune.search import variants
    exp_id = args.exp_id or plans.fresh_id()
    plan = plans.make(exp_id, spec, name, ray_args, variants, args.settings)
    if not (args.dry_run or args.print_config):
        run.refuse_existing(plan.exp_id, plan.exists())
    return plan, ray_args


def _fetch(exp_id: str | None) -> None:
    """Bring an experiment that is to be resumed here from the mirror."""
    if not exp_id:
        raise UserError("--resume needs the experiment: python main.py -e EXP_ID --resume")
    try:
        if (mirror := Mirror.from_environment()) and mirror.has(exp_id):
            print(f"{mirror.download(exp_id)} files from the mirror", file=sys.stderr)
    except OSError as error:
        raise UserError(f"the mirror cannot be read: {cause(error)}") from None


def _stored(args: argparse.Namespace) -> Plan:
    plan = Plan.stored(args.exp_id)
    stored_gin = tuple(map(extra.gin_name, plan.spec.gin))
    for flag, came, was in (
        ("-r", args.ray_config, plan.ray),
        ("-g", tuple(args.gin_config), stored_gin),
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


def follow_up(plan: Plan, result: run.RunResult, leaves_weights: bool) -> None:
    """Print what to type next."""
    if result.early:
        result.follow_up(plan.exp_id)
        return
    if plan.total > 1 and (best := summary.best(plan)):
        print(f"\n{best}")
    if not result.code and (lines := summary.next_commands(plan, DEFAULT_GIN, leaves_weights)):
        print("\nnext:", *lines, sep="\n  ")


def _announce(text: str) -> None:
    """Say what takes longer than a moment; where nobody watches, errors stay one line."""
    if sys.stderr.isatty():
        print(f"{text} ...", file=sys.stderr, flush=True)


def run_study(args: argparse.Namespace, name: str) -> int:
    """Run or continue a study, see `selfstudy.study`; returns the exit code."""
    if args.gin_config or args.print_config:
        raise UserError(f"{name} is a study, which names its own gin files: leave -g and "
                        "--print-config out")  # fmt: skip
    if args.resume:
        if args.settings or args.gin_param:
            raise UserError("--resume: a study's -p and --set are settled; choose another -e")
        planned_study = study.stored(args.exp_id, accept_changes=bool(args.ray_config))
    else:
        exp_id = args.exp_id or plans.fresh_id()
        planned_study = study.make(exp_id, name, tuple(args.settings), tuple(args.gin_param))
    options = run.RunOptions(args.local_mode, args.address, args.quiet)
    checked = study.check(planned_study, prepare=not args.dry_run, resumed=args.resume)
    study.show(planned_study, checked, options)
    return 0 if args.dry_run else study.run(planned_study, checked, options)


@reports_errors
def main() -> int:
    """Run the command line; returns the exit code."""
    if not paths.CONFIG_DIR.is_dir():  # a plain `pip install .`: it is no package
        raise UserError(
            f"{paths.CONFIG_DIR} is missing: selfstudy runs from its checkout; "
            "there type: pip install -e ."
        )
    args = parser().parse_args()
    if args.local_mode and args.address:
        raise UserError("-l runs without Ray and -a on a cluster: leave one of them out")
    if not args.local_mode:
        args.address = args.address or os.environ.get("RAY_ADDRESS")
    if args.resume:
        _fetch(args.exp_id)
    name = ray_config(args)
    if not args.resume:
        names.check(Spec(tuple(args.gin_config), tuple(args.gin_param)))
        rayconfig.ray_file(name)
    _announce(f"checking {args.exp_id or name}")
    if study.is_stored(args.exp_id) if args.resume else rayconfig.is_study(name):
        return run_study(args, name)
    plan, ray_args = planned(args)
    if args.local_mode and plan.is_ranked:
        raise UserError(
            f"-l runs one trial after another, and {plan.ray} compares trials as they run: "
            "leave -l out, or add --set scheduler=None search_alg=None"
        )
    if args.print_config:
        from selfstudy.experiment import rehearsal

        overrides = plan.rows[0].overrides if plan.rows else {}
        print(text_of(rehearsal.check(plan.spec, overrides, build=False).parts))
        return 0
    from selfstudy import devices

    checks = run.check(plan, ray_args, prepare=not args.dry_run, resumed=args.resume)
    resources: dict[str, float] = plan.exp_args["resources_per_trial"]
    gpus = 0 if args.address else devices.gpus()
    if not args.address:
        resources, _ = fit_resources(resources, cpus(), gpus)
    elif not args.dry_run:
        from selfstudy.tune import cluster

        cluster.check_address(args.address)
    if args.dry_run:
        run.show_plan(plan, checks, resources, gpus)
        return 0
    print(f"experiment {plan.exp_id}: {plan.total} trials, in {plan.folder}")
    run.show_room(plan, checks)
    options = run.RunOptions(args.local_mode, args.address, args.quiet)
    result = run.execute(plan, ray_args, checks, options, args.resume, bool(args.settings))
    follow_up(plan, result, checks.leaves_weights)
    return result.code


if __name__ == "__main__":
    main()
