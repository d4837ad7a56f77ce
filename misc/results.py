"""What experiments have found: list, show, rank, compare and export their trials.

    python misc/results.py ls grid
    python misc/results.py best grid -k 3 --metric valid_accuracy
    python misc/results.py export grid --csv grid.csv

Reads plain JSON and text only, so a stranger's experiment is safe to look at.
"""

import argparse
import json
import os
import re
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any

# A file of the user's folder that is named like one of our modules must not win.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import paths  # noqa: E402
from util import files, results  # noqa: E402
from util.errors import UserError, nearest, printable, reports_errors  # noqa: E402
from util.manifest import STATUSES  # noqa: E402
from util.progress import clock, headings, table  # noqa: E402
from util.results import Experiment, Trial  # noqa: E402

SCHEMA = 1
WIDEST = 40  # characters of a table's cell
_BINDING = re.compile(r"[A-Za-z_][\w./]*\s*=", re.ASCII)
_GIN_FILE = re.compile(r"[A-Za-z0-9_][\w./-]*", re.ASCII)
_FORMULA = ("=", "+", "-", "@")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What experiments have found.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, does: str, as_json: bool = True) -> argparse.ArgumentParser:
        found = actions.add_parser(name, help=does, description=does)
        if as_json:
            found.add_argument("--json", action="store_true", help="strict JSON, not a table")
        return found

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
    return parser.parse_args()


def note(text: str) -> None:
    """One line that is no data."""
    print(printable(text), file=sys.stderr)


def counted(number: int, noun: str) -> str:
    """Such as '1 trial' and '2 trials'."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def note_faults(unreadable: list[str], torn: int) -> None:
    """Say what could not be read."""
    for line in unreadable:
        note(f"unreadable: {line}")
    if torn:
        note(f"{counted(torn, 'damaged line')} left out")


def print_json(content: dict[str, Any]) -> None:
    """`content` with the schema's version; other programs read it."""
    print(json.dumps(files.plain({"schema": SCHEMA, **content}), indent=1, allow_nan=False))


def shown(value: Any) -> str:
    """A value in a table's cell."""
    if type(value) is float:
        return f"{value:.6g}"
    text = "-" if value is None else value if isinstance(value, str) else repr(value)
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 3]}..."


def varying(trials: list[Trial]) -> dict[str, str]:
    """The overridden gin names whose values differ, with the headers of their columns."""
    return headings([trial.overrides for trial in trials])


def record(trial: Trial) -> dict[str, Any]:
    """A trial for other programs."""
    return {
        "exp": trial.exp, "trial": trial.name, "status": trial.status, "why": trial.why,
        "round": trial.last.get("round", 0), "rounds": results.number(trial.last, "rounds"),
        "total_s": results.number(trial.last, "total_s"), "snapshot": trial.snapshot,
        "overrides": trial.overrides, "metrics": trial.metrics(), "best": trial.best(),
    }  # fmt: skip


# ---- ls and best ----------------------------------------------------------------------------


def list_experiments(as_json: bool) -> None:
    """All experiments with the number of their trials by status."""
    rows = []
    for name in results.experiments():
        try:
            found = results.read(name)
        except UserError as error:
            note(f"unreadable: {error.text}")
            continue
        note_faults(found.unreadable, found.torn)
        counts = Counter(trial.status for trial in found.trials)
        rows.append({"exp": name, "trials": len(found.trials), "counts": counts})
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


def list_trials(found: list[Experiment], as_json: bool) -> None:
    """The trials of experiments, in the order of their plans."""
    trials = [trial for experiment in found for trial in experiment.trials]
    unreadable = [line for experiment in found for line in experiment.unreadable]
    torn = sum(experiment.torn for experiment in found)
    if as_json:
        print_json({"trials": [record(trial) for trial in trials],
                    "unreadable": unreadable, "torn": torn})  # fmt: skip
        return
    metrics = list(dict.fromkeys(name for one in found for name, _ in one.goals()))
    print(trial_table(trials, varying(trials), metrics, len(found) > 1))
    counts = Counter(trial.status for trial in trials)
    parts = [f"{counts[status]} {status}" for status in STATUSES if counts[status]]
    print(f"{counted(len(trials), 'trial')}: {', '.join(parts)}")
    note_faults(unreadable, torn)


def trial_table(
    trials: list[Trial], names: dict[str, str], metrics: list[str], several: bool
) -> str:
    """Trials as text.

    Args:
        trials: a line each.
        names: gin names to show the values of, with the headers of their columns.
        metrics: of each the last and the best value are shown.
        several: whether they are of several experiments.
    """
    whys = any(trial.why for trial in trials)
    rows = []
    for trial in trials:
        best = trial.best()
        rows.append([
            *([trial.exp] if several else []), trial.name,
            *(_override(trial, name) for name in names), trial.status, _at(trial),
            *(shown(value) for metric in metrics
              for value in (results.number(trial.last, metric), best.get(metric))),
            *([shown(trial.why)] if whys else []),
        ])  # fmt: skip
    header = [*(["experiment"] if several else []), "trial", *names.values(), "status", "round",
              *(text for metric in metrics for text in (metric, "best")),
              *(["why"] if whys else [])]  # fmt: skip
    return table(rows, header)


def _override(trial: Trial, name: str) -> str:
    value = trial.overrides.get(name, "")
    return "None" if value is None else shown(value)


def _at(trial: Trial) -> str:
    rounds = results.number(trial.last, "rounds")
    return f"{trial.last.get('round', 0)}" + (f"/{rounds:g}" if rounds else "")


def show_best(
    found: list[Experiment], count: int, metric: str | None, mode: str | None, as_json: bool
) -> None:
    """The best trials by their last round."""
    if count < 1:
        raise UserError(f"-k {count}: expected 1 or more")
    goals = dict(goal for experiment in found for goal in experiment.goals())
    metric = metric or next(iter(goals))
    mode = mode or goals.get(metric) or ("min" if "loss" in metric else "max")
    trials = [trial for experiment in found for trial in experiment.trials]
    best = ranked(trials, metric, mode)[:count]
    if as_json:
        print_json({"metric": metric, "mode": mode, "trials": [record(t) for t in best]})
    else:
        print(trial_table(best, varying(trials), [metric], len(found) > 1))
    for experiment in found:
        note_faults(experiment.unreadable, experiment.torn)


def ranked(trials: list[Trial], metric: str, mode: str) -> list[Trial]:
    """The trials that have the metric in their last round, the best first."""
    known = {name for trial in trials for line in trial.rounds for name in line
             if results.is_metric(line, name)}  # fmt: skip
    if metric not in known:
        raise UserError(f"no trial has a metric '{metric}'{nearest(metric, known)}")
    having = [trial for trial in trials if results.number(trial.last, metric) is not None]
    having.sort(key=lambda trial: trial.last[metric], reverse=mode == "max")
    first = f"by {metric} of the last round, {'largest' if mode == 'max' else 'smallest'} first"
    without = len(trials) - len(having)
    note(f"{first}; {without} without one left out" if without else first)
    return having


# ---- show -----------------------------------------------------------------------------------


def command(experiment: Experiment, trial: Trial) -> tuple[str | None, str]:
    """The command line that runs a trial again alone, and a caveat; None when it is unknown.

    The plan may be a stranger's, so nothing that could be read as a flag gets in.
    """
    plan = experiment.manifest.plan
    if not plan:
        return None, f"the experiment has no {paths.PLAN}"
    params = [*plan["spec"]["params"],
              *(f"{name} = {value!r}" for name, value in trial.overrides.items())]  # fmt: skip
    odd = [text for text in plan["spec"]["gin"] if not _GIN_FILE.fullmatch(text)]
    odd += [text for text in params if not _BINDING.match(text) or not text.isprintable()]
    if odd:
        return None, f"the plan has {odd[0]!r}, which is no gin file or binding"
    words = ["python", "main.py"]
    for flag, values in (("-g", plan["spec"]["gin"]), ("-p", params)):
        words += [flag, *values] if values else []
    adopted = any(line.get("exploited") for line in trial.rounds)
    caveat = "it took over another trial's state, which the command does not" if adopted else ""
    return shlex.join(words), caveat


def show_trial(experiment: Experiment, trial: Trial, as_json: bool) -> None:
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


def _print_trial(trial: Trial, config: dict[str, str], line: str | None) -> None:
    facts = {
        "trial": f"{trial.exp}/{trial.name}",
        "status": f"{trial.status}: {trial.why}" if trial.why else trial.status,
        "round": _at(trial),
        "time": clock(results.number(trial.last, "total_s") or 0),
        "folder": trial.folder,
        "snapshot": trial.snapshot,
    }
    for name, value in facts.items():
        if value is not None:
            print(f"{name:9} {printable(value)}")
    best = trial.best()
    rows = [[name, shown(value), shown(best.get(name))]
            for name, value in trial.metrics().items()]  # fmt: skip
    if rows:
        print("", table(rows, ["metric", "last", "best"]), sep="\n")
    given = {name: repr(value) for name, value in trial.overrides.items()}
    for title, values in (("overrides", given), ("config", config)):
        if values:
            print(f"\n{title}:")
        for name, value in values.items():
            print(f"  {printable(f'{name} = {value}')}")
    if line:
        print("\nrun it again alone:", f"  {line}", sep="\n")


# ---- diff -----------------------------------------------------------------------------------


def settings(experiment: Experiment, trial: Trial | None) -> dict[str, list[str]]:
    """Gin name -> the values that the trial, or the trials of the experiment, have for it."""
    found: dict[str, dict[str, None]] = {}
    for one in [trial] if trial else experiment.trials:
        for name, value in _config(experiment, one).items():
            found.setdefault(name, {})[value] = None
    return {name: list(values) for name, values in found.items()}


def _config(experiment: Experiment, trial: Trial) -> dict[str, str]:
    """What the trial has used; before it has begun, what it was given."""
    if used := results.config(trial):
        return used
    params = experiment.manifest.plan.get("spec", {}).get("params", [])
    pairs = (text.partition("=") for text in params)
    given = {name.strip(): value.strip() for name, _, value in pairs}
    return given | {name: repr(value) for name, value in trial.overrides.items()}


def planned(experiment: Experiment) -> dict[str, list[str]]:
    """What the plan of an experiment says beside its trials' values."""
    plan = experiment.manifest.plan
    if not plan:
        return {}
    flags = {"-g": plan["spec"]["gin"], "-p": plan["spec"]["params"], "-r": [plan["ray"]],
             "--set": list(map(str, plan.get("settings") or []))}  # fmt: skip
    rules = {f"exp_args {name}": [repr(value)] for name, value in plan["exp_args"].items()}
    return flags | rules


def show_diff(names: tuple[str, str], as_json: bool) -> None:
    """What differs between two trials or experiments."""
    found = [results.find(name) for name in names]
    sides = [settings(*each) for each in found]
    if not any(trial for _, trial in found):
        sides = [planned(experiment) | side
                 for (experiment, _), side in zip(found, sides, strict=True)]  # fmt: skip
    first, second = sides
    differ = [name for name in dict.fromkeys([*first, *second])
              if first.get(name) != second.get(name)]  # fmt: skip
    for (_, trial), name in zip(found, names, strict=True):
        if trial and not results.config(trial):
            note(f"{name} has no {paths.CONFIG} yet: only what it was given is compared")
    if as_json:
        rows = [{"name": name, "a": first.get(name), "b": second.get(name)} for name in differ]
        print_json({"a": names[0], "b": names[1], "differences": rows})
    elif differ:
        rows = [[name, *(_alternatives(side.get(name)) for side in sides)] for name in differ]
        print(table(rows, ["name", *names]))
    else:
        note("no differences")


def _alternatives(values: list[str] | None) -> str:
    if values is None:
        return "-"
    more = f" | ... ({len(values)})" if len(values) > 3 else ""
    return " | ".join(shown(value) for value in values[:3]) + more


# ---- export ---------------------------------------------------------------------------------


def clean(value: Any) -> Any:
    """A text without control characters and broken Unicode; other values as they are."""
    if not isinstance(value, str):
        return value
    return "".join(c if c.isprintable() or c in "\t\n" else " " for c in value)


def harmless(value: Any) -> Any:
    """A text that no spreadsheet takes for a formula; numbers as they are."""
    formula = isinstance(value, str) and value.lstrip().startswith(_FORMULA)
    return f"'{value}" if formula else value


def flat(frame: Any) -> Any:
    """`frame` with clean texts, and one kind of value in each column.

    Lists become JSON text, and so do all values of a column that holds numbers and texts.
    """
    frame = frame.rename(columns=clean).map(clean)
    for name in [name for name in frame.columns if frame[name].dtype == "object"]:
        values = [None if value is None or value != value else value for value in frame[name]]
        kinds = {type(value) for value in values if value is not None}
        if kinds not in ({str}, {bool}):
            values = [value if value is None or isinstance(value, str)
                      else json.dumps(files.plain(value)) for value in values]  # fmt: skip
        frame[name] = values
    return frame


def export(names: list[str], csv: str | None, parquet: str | None) -> None:
    """Write a row per trial, as CSV or Parquet."""
    frame = results.trials(*names)
    content = flat(frame)
    try:
        if csv:
            text = content.rename(columns=harmless).map(harmless).to_csv(index=False)
            sys.stdout.write(text) if csv == "-" else files.write_text(Path(csv), text)
        else:
            _write_parquet(content, Path(parquet or ""))
    except OSError as error:
        raise UserError(f"cannot write {csv or parquet}: {error.strerror or error}") from None
    note_faults(frame.attrs["unreadable"], frame.attrs["torn"])
    note(f"{counted(len(frame), 'trial')} in {'CSV' if csv == '-' else csv or parquet}")


def _write_parquet(frame: Any, path: Path) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        frame.to_parquet(aside, index=False)
        os.replace(aside, path)
    except ImportError:
        raise UserError("--parquet needs a package: pip install pyarrow") from None
    finally:
        aside.unlink(missing_ok=True)


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
    elif args.action == "export":
        export(args.experiments, args.csv, args.parquet)
    elif not args.experiments:
        list_experiments(args.json)
    else:
        found = [results.read(name) for name in args.experiments]
        if args.action == "ls":
            list_trials(found, args.json)
        else:
            show_best(found, args.k, args.metric, args.mode, args.json)


if __name__ == "__main__":
    main()
