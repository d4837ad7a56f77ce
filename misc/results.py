"""Results of experiments: list, show, rank, compare and export their trials.

    python misc/results.py ls grid
    python misc/results.py best grid -k 3 --metric valid_accuracy
    python misc/results.py export grid --csv grid.csv
    python misc/results.py plot timeline grid -o timeline
    python misc/results.py report grid -o grid.html

Reads plain JSON and text only, so a stranger's experiment is safe to look at.
"""

import argparse
import contextlib
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

# A file of the user's folder that is named like one of our modules must not win.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import paths  # noqa: E402
from selfstudy.analysis import compare, results, sheets  # noqa: E402
from selfstudy.analysis.compare import command  # noqa: E402
from selfstudy.analysis.listing import (  # noqa: E402
    alternatives,
    at,
    cell,
    quantity,
    record,
    trial_table,
    varying,
)
from selfstudy.analysis.results import Experiment, TrialRecord  # noqa: E402
from selfstudy.storage.manifest import STATUSES  # noqa: E402
from util import files  # noqa: E402
from util.errors import UserError, nearest, printable, reports_errors  # noqa: E402
from util.text import clock, table  # noqa: E402

SCHEMA = 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Results of experiments.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, does: str, as_json: bool = True) -> argparse.ArgumentParser:
        command = actions.add_parser(name, help=does, description=does)
        if as_json:
            command.add_argument("--json", action="store_true", help="strict JSON, not a table")
        return command

    ls = action("ls", "list the trials of experiments, or all experiments")
    ls.add_argument("experiments", nargs="*", metavar="EXP")
    show = action("show", "print a trial's results, configuration and how to repeat it")
    show.add_argument("trial", metavar="EXP/TRIAL")
    best = action("best", "rank trials by their last round")
    best.add_argument("experiments", nargs="+", metavar="EXP")
    best.add_argument("-k", type=int, default=5, help="how many (default: 5)")
    best.add_argument("--metric", help="such as valid_accuracy (default: the search's)")
    best.add_argument(
        "--mode", choices=("max", "min"), help="default: the search's, or min for a loss"
    )
    diff = action("diff", "how the configurations of two trials or experiments differ")
    for name in "ab":
        diff.add_argument(name, metavar=name.upper(), help="EXP or EXP/TRIAL")
    export = action("export", "write a row per trial to a file", as_json=False)
    export.add_argument("experiments", nargs="+", metavar="EXP")
    target = export.add_mutually_exclusive_group(required=True)
    target.add_argument("--csv", metavar="FILE", help="'-' is stdout")
    target.add_argument("--parquet", metavar="FILE")
    report = action("report", "make one page of the results", as_json=False)
    report.add_argument("experiments", nargs="+", metavar="EXP")
    report.add_argument("-o", "--output", default="report.html", metavar="FILE",
                        help="the page (default: report.html)")  # fmt: skip
    report.add_argument("--watch", type=float, metavar="SECONDS",
                        help="again whenever results change, until all have ended")  # fmt: skip
    plot = action("plot", "draw a figure as SVG, PNG and CSV", as_json=False)
    plot.add_argument("figure", metavar="FIGURE", help="such as utility, slices or timeline")
    plot.add_argument("experiments", nargs="+", metavar="EXP")
    plot.add_argument("-o", "--output", required=True, metavar="NAME", help="without suffix")
    plot.add_argument("--metric", help="default: the search's")
    return parser.parse_args()


def note(text: str) -> None:
    """One line that is no data."""
    print(printable(text), file=sys.stderr)


def note_faults(unreadable: list[str], torn: int) -> None:
    """Say what could not be read."""
    for line in unreadable:
        note(f"unreadable: {line}")
    if torn:
        note(f"{quantity(torn, 'damaged line')} left out")


def print_json(content: dict[str, Any]) -> None:
    """`content` with the schema's version; other programs read it."""
    print(json.dumps(files.plain({"schema": SCHEMA, **content}), indent=1, allow_nan=False))


# ---- ls and best ----------------------------------------------------------------------------


def list_experiments(as_json: bool) -> None:
    """All experiments with the number of their trials by status."""
    rows = []
    for name in results.experiments():
        try:
            experiment = results.read(name)
        except UserError as error:
            note(f"unreadable: {error.text}")
            continue
        note_faults(experiment.unreadable, experiment.torn)
        counts = Counter(trial.status for trial in experiment.trials)
        rows.append({"exp": name, "trials": len(experiment.trials), "counts": counts})
    if as_json:
        print_json({"experiments": rows})
        return
    if not rows:
        note(f"no experiments in {paths.EXP_DIR}")
        return
    used = [status for status in STATUSES if any(row["counts"][status] for row in rows)]
    cells = [[row["exp"], row["trials"], *(row["counts"][status] or "-" for status in used)]
             for row in rows]  # fmt: skip
    print(table(cells, ["experiment", "trials", *used]))


def list_trials(experiments: list[Experiment], as_json: bool) -> None:
    """The trials of experiments, in the order of their plans."""
    trials = [trial for experiment in experiments for trial in experiment.trials]
    unreadable = [line for experiment in experiments for line in experiment.unreadable]
    torn = sum(experiment.torn for experiment in experiments)
    if as_json:
        print_json({"trials": [record(trial) for trial in trials],
                    "unreadable": unreadable, "torn": torn})  # fmt: skip
        return
    metrics = list(dict.fromkeys(name for record in experiments for name, _ in record.goals()))
    print(trial_table(trials, varying(trials), metrics, len(experiments) > 1))
    counts = Counter(trial.status for trial in trials)
    parts = [f"{counts[status]} {status}" for status in STATUSES if counts[status]]
    print(f"{quantity(len(trials), 'trial')}: {', '.join(parts)}")
    note_faults(unreadable, torn)


def show_best(
    experiments: list[Experiment],
    count: int,
    metric: str | None,
    mode: str | None,
    as_json: bool,
) -> None:
    """The best trials by their last round."""
    if count < 1:
        raise UserError(f"-k {count}: expected 1 or more")
    goals = dict(goal for experiment in experiments for goal in experiment.goals())
    metric = metric or next(iter(goals))
    mode = mode or goals.get(metric) or ("min" if "loss" in metric else "max")
    trials = [trial for experiment in experiments for trial in experiment.trials]
    best = rank(trials, metric, mode)[:count]
    if as_json:
        print_json({"metric": metric, "mode": mode, "trials": [record(t) for t in best]})
    else:
        print(trial_table(best, varying(trials), [metric], len(experiments) > 1))
    for experiment in experiments:
        note_faults(experiment.unreadable, experiment.torn)


def rank(trials: list[TrialRecord], metric: str, mode: str) -> list[TrialRecord]:
    """The trials that have the metric in their last round, the best first."""
    known = {name for trial in trials for line in trial.rounds for name in line
             if results.is_metric(line, name)}  # fmt: skip
    if metric not in known:
        raise UserError(f"no trial has a metric '{metric}'{nearest(metric, known)}")
    having = compare.rank(trials, metric, mode)
    first = f"by {metric} of the last round, {'largest' if mode == 'max' else 'smallest'} first"
    without = len(trials) - len(having)
    note(f"{first}; {without} without one left out" if without else first)
    return having


# ---- show -----------------------------------------------------------------------------------


def show_trial(experiment: Experiment, trial: TrialRecord, as_json: bool) -> None:
    """Everything about one trial."""
    line, caveat = command(experiment, trial)
    config = results.config(trial)
    if as_json:
        print_json({**record(trial), "folder": str(trial.folder) if trial.folder else None,
                    "config": config, "command": line})  # fmt: skip
    else:
        _print_trial(trial, config, line)
    if caveat:
        note(caveat if line else f"no command: {caveat}")
    about = f"{trial.exp}/{trial.name}:"
    note_faults([line for line in experiment.unreadable if line.startswith(about)], 0)


def _print_trial(trial: TrialRecord, config: dict[str, str], line: str | None) -> None:
    facts = {
        "trial": f"{trial.exp}/{trial.name}",
        "status": f"{trial.status}: {trial.why}" if trial.why else trial.status,
        "round": at(trial),
        "time": clock(results.number(trial.last, "total_s") or 0),
        "folder": trial.folder,
        "snapshot": trial.snapshot,
    }
    for name, value in facts.items():
        if value is not None:
            print(f"{name:9} {printable(value)}")
    best = trial.best()
    rows = [[name, cell(value), cell(best.get(name))]
            for name, value in trial.metrics().items()]  # fmt: skip
    if rows:
        print("", table(rows, ["metric", "last", "best"]), sep="\n")
    overrides = {name: repr(value) for name, value in trial.overrides.items()}
    for title, values in (("overrides", overrides), ("config", config)):
        if values:
            print(f"\n{title}:")
        for name, value in values.items():
            print(f"  {printable(f'{name} = {value}')}")
    if line:
        print("\nrun it again alone:", f"  {line}", sep="\n")


# ---- diff -----------------------------------------------------------------------------------


def show_diff(names: tuple[str, str], as_json: bool) -> None:
    """What differs between two trials or experiments."""
    trials = [results.find(name) for name in names]
    sides = [compare.settings(experiment, [trial] if trial else experiment.trials)
             for experiment, trial in trials]  # fmt: skip
    if not any(trial for _, trial in trials):
        sides = [compare.plan_settings(experiment) | side
                 for (experiment, _), side in zip(trials, sides, strict=True)]  # fmt: skip
    differ = compare.differences(sides)
    for (_, trial), name in zip(trials, names, strict=True):
        if trial and not results.config(trial):
            note(f"{name} has no {paths.CONFIG} yet: only what it was given is compared")
    if as_json:
        rows = [{"name": name, "a": a, "b": b} for name, (a, b) in differ.items()]
        print_json({"a": names[0], "b": names[1], "differences": rows})
    elif differ:
        rows = [[name, *map(alternatives, settings)] for name, settings in differ.items()]
        print(table(rows, ["name", *names]))
    else:
        note("no differences")


# ---- export ---------------------------------------------------------------------------------


def export(names: list[str], csv: str | None, parquet: str | None) -> None:
    """Write a row per trial, as CSV or Parquet."""
    frame = results.trials(*names)
    try:
        if csv:
            text = sheets.csv(frame)
            sys.stdout.write(text) if csv == "-" else files.write_text(Path(csv), text)
        else:
            _write_parquet(sheets.flatten(frame), Path(parquet or ""))
    except OSError as error:
        raise UserError(f"cannot write {csv or parquet}: {error.strerror or error}") from None
    note_faults(frame.attrs["unreadable"], frame.attrs["torn"])
    note(f"{quantity(len(frame), 'trial')} in {'CSV' if csv == '-' else csv or parquet}")


def _write_parquet(frame: Any, path: Path) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        frame.to_parquet(aside, index=False)
        os.replace(aside, path)
    except ImportError:
        raise UserError("--parquet needs a package: pip install pyarrow") from None
    finally:
        aside.unlink(missing_ok=True)


def make_report(names: list[str], output: str, every: float | None) -> None:
    """Write the page once, or again and again until every trial has ended."""
    from selfstudy.analysis import report

    if every is None:
        note(f"{quantity(report.write(names, output), 'trial')} in {output}")
        return
    with contextlib.suppress(KeyboardInterrupt):
        report.watch(names, output, every, note)


@reports_errors
def main() -> None:
    """Run the chosen action."""
    args = _arguments()
    if args.action == "show":
        experiment, trial = results.find(args.trial)
        if not trial and len(experiment.trials) == 1:
            trial = experiment.trials[0]
        if not trial:
            raise UserError(
                f"'{experiment.name}' has {len(experiment.trials)} trials: name one, as "
                f"'python misc/results.py ls {experiment.name}' lists them"
            )
        show_trial(experiment, trial, args.json)
    elif args.action == "diff":
        show_diff((args.a, args.b), args.json)
    elif args.action == "plot":
        from selfstudy.analysis import figures

        written = figures.plot(args.figure, args.experiments, args.output, args.metric)
        print("  ".join(printable(path) for path in written))
    elif args.action == "export":
        export(args.experiments, args.csv, args.parquet)
    elif args.action == "report":
        make_report(args.experiments, args.output, args.watch)
    elif not args.experiments:
        list_experiments(args.json)
    else:
        experiments = [results.read(name) for name in results.expand(args.experiments)]
        if args.action == "ls":
            list_trials(experiments, args.json)
        else:
            show_best(experiments, args.k, args.metric, args.mode, args.json)


if __name__ == "__main__":
    main()
