"""Experiments as trials and pandas frames, read without torch and Ray.

    from selfstudy.analysis import results

    frame = results.trials("grid")     # a row per trial
    curves = results.rounds("grid")    # a row per trial and round

A trial that cannot be read keeps its row; `frame.attrs["unreadable"]` says why, and
`frame.attrs["torn"]` counts lines that were cut or damaged. Folders may be a stranger's.
"""

import dataclasses
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paths
from selfstudy.storage.checkpoints import (
    is_snapshot,
    is_trial,
    short_name,
    subfolders,
    under_experiments,
)
from selfstudy.storage.manifest import Manifest
from util import files
from util.errors import UserError, nearest, printable

if TYPE_CHECKING:
    import pandas

METRIC = "mean_accuracy"  # where the plan names none
DEPTH = 4  # folders between an experiment and a snapshot that was moved
# Numbers of a line of results that say where it stands, not how good it is.
_PLACE = {
    "round",
    "training_iteration",
    "rounds",
    "time",
    "total_s",
    "exploited",
    "weights",
    "unsaved",
}
_UNJUDGED = {"learning_rate", "images_per_s", "round_s", "memory_mb", "gpu_peak_mb",
             "gpu_total_mb"}  # fmt: skip
_SCALARS = (bool, int, float, str, type(None))
_LARGEST = 1 << 63  # of an integer that a frame can hold


@dataclasses.dataclass
class TrialRecord:
    """A trial, read from its folder and its experiment's plan and journal.

    Attributes:
        exp: the experiment, as users type it.
        name: the trial's name in the plan, else its folder's.
        folder: where its files lie; None when it has none yet.
        overrides: gin name -> value that the search has set.
        rounds: the lines of its results, one a round, in order.
        status: one of `manifest.STATUSES`.
        why: why it failed, was stopped, ..., where that is known.
        snapshot: where `move_snapshots.py` has put its checkpoint, as users type it.
    """

    exp: str
    name: str
    folder: Path | None = None
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    rounds: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    status: str = "planned"
    why: str | None = None
    snapshot: str | None = None

    @property
    def last(self) -> dict[str, Any]:
        """The line of its last round, empty before the first."""
        return self.rounds[-1] if self.rounds else {}

    def metrics(self) -> dict[str, float | None]:
        """The numbers of the last round; None for one that is not finite."""
        return {key: number(self.last, key) for key in self.last if is_metric(self.last, key)}

    def best(self) -> dict[str, float]:
        """The best value of each metric over all rounds: smallest for a loss, else largest."""
        names = dict.fromkeys(key for line in self.rounds for key in line)
        best: dict[str, float] = {}
        for name in names:
            if name in _PLACE or name in _UNJUDGED or name.startswith("best_"):
                continue
            values = [line[name] for line in self.rounds
                      if type(line.get(name)) in (int, float)]  # fmt: skip
            if values:
                best[name] = min(values) if "loss" in name else max(values)
        return best


@dataclasses.dataclass
class Experiment:
    """All trials of an experiment.

    Attributes:
        name: as users type it.
        folder: where it lies.
        manifest: its record; an empty one where there is no plan.
        trials: in the plan's order, then what else lies in the folder.
        unreadable: "EXP/trial: why" of each that could not be read.
        torn: lines that were cut or damaged.
    """

    name: str
    folder: Path
    manifest: Manifest
    trials: list[TrialRecord] = dataclasses.field(default_factory=list)
    unreadable: list[str] = dataclasses.field(default_factory=list)
    torn: int = 0

    def goals(self) -> list[tuple[str, str]]:
        """(metric, 'max' or 'min') of the search, or how trials are compared without one."""
        exp_args = self.manifest.plan.get("exp_args", {})
        metrics, modes = (
            list(value) if isinstance(value, list) else [value]
            for value in (exp_args.get("metric") or METRIC, exp_args.get("mode") or "max")
        )
        modes += modes[-1:] * len(metrics)
        return [(str(metric), "min" if mode == "min" else "max")
                for metric, mode in zip(metrics, modes, strict=False)]  # fmt: skip


def is_metric(line: dict[str, Any], key: str) -> bool:
    """Whether `key` of a line of results is a measured number (null: one that isn't finite)."""
    return key not in _PLACE and type(line[key]) in (int, float, type(None))


def number(line: dict[str, Any], key: str) -> float | None:
    """A finite number of a line of results, or None."""
    value = _finite(line.get(key))
    return value if type(value) in (int, float) else None


def _finite(value: Any) -> Any:
    """`value`, or None for a number that no column of numbers can hold."""
    if type(value) is float:
        return value if math.isfinite(value) else None
    return None if type(value) is int and abs(value) >= _LARGEST else value


# ---- where ----------------------------------------------------------------------------------


def experiments() -> list[str]:
    """The names of all experiments in the experiments' folder."""
    return sorted(short_name(folder) for folder in _experiments(paths.EXP_DIR, DEPTH))


def _is_experiment(folder: Path) -> bool:
    return (folder / paths.PLAN).is_file() or any(map(is_trial, subfolders(folder)))


def _experiments(folder: Path, levels: int) -> Iterator[Path]:
    for inner in subfolders(folder):
        if _is_experiment(inner):
            yield inner
        elif levels and not is_snapshot(inner):
            yield from _experiments(inner, levels - 1)


def expand(names: Iterable[str | Path]) -> list[str | Path]:
    """The experiments behind the names typed: a study stands for those inside it.

    A name that is neither stays as it is, for `read` to judge.

    Args:
        names: of experiments, and of folders that are none but hold some.

    Returns:
        A study's in the order of its stages, then the rest by name.
    """
    folders: list[str | Path] = []
    for name in names:
        folder = locate(name)
        if not folder or _is_experiment(folder):
            folders.append(name)
            continue
        stages = [short_name(folder / stage) for stage in study(folder).get("stages", [])]
        inner = sorted(short_name(path) for path in _experiments(folder, DEPTH))
        first = [stage for stage in stages if stage in inner]
        folders += list(dict.fromkeys([*first, *inner])) or [name]
    return folders


def study(folder: Path) -> dict[str, Any]:
    """What `study.json` says of a folder of experiments; empty without one that is whole.

    Keys, each of which may be missing: question, command, preset (texts), stages (list of
    texts).
    """
    try:
        content = files.read_object(folder / paths.STUDY)
    except (OSError, ValueError):
        return {}
    chosen = content.get("chosen")
    content["preset"] = chosen.get("preset") if isinstance(chosen, dict) else None
    known: dict[str, Any] = {key: content[key] for key in ("question", "command", "preset")
                             if isinstance(content.get(key), str)}  # fmt: skip
    if isinstance(content.get("stages"), list):
        known["stages"] = [stage for stage in content["stages"] if isinstance(stage, str)]
    return known


def locate(name: str | Path) -> Path | None:
    """The folder called `name` among the experiments, else at that path; None without one."""
    text = str(name)
    if not os.path.isabs(text) and ".." not in Path(text).parts and text:
        inside = under_experiments(text)
        if os.path.isdir(inside):  # unlike is_dir, false for a name that is too long
            return inside
    return Path(text).absolute() if os.path.isdir(text) else None


def find(name: str) -> tuple[Experiment, TrialRecord | None]:
    """The experiment, or the trial "EXP/name", that a user has typed.

    A trial is also found by the number that its name ends in, and by the name that its folder
    or its snapshot was given later.

    Raises:
        UserError: there is none; it names the nearest.
    """
    folder = locate(name)
    if folder and _is_experiment(folder):
        return read(folder), None
    parts = Path(name).parts
    for count in range(len(parts) - 1, 0, -1):
        above = locate(Path(*parts[:count]))
        if above and _is_experiment(above):
            experiment = read(above)
            return experiment, _trial(experiment, "/".join(parts[count:]))
    return read(name), None


def _trial(experiment: Experiment, name: str) -> TrialRecord:
    named = {}
    for trial in experiment.trials:
        if trial.folder:
            named[os.path.relpath(trial.folder, experiment.folder)] = trial
        if trial.snapshot:
            named[trial.snapshot.removeprefix(f"{experiment.name}/")] = trial
    named |= {trial.name: trial for trial in experiment.trials}
    numbered = [trial for trial in experiment.trials if trial.name.endswith(f"_{name}")]
    if name not in named and len(numbered) == 1:
        return numbered[0]
    if name not in named:
        raise UserError(f"no trial '{name}' in '{experiment.name}'{nearest(name, named)}")
    return named[name]


def _unknown_experiment(name: object) -> UserError:
    known = experiments()
    hints = [nearest(str(text), known) for text in (name, Path(str(name)).parent)]
    hint = hints[0] if "did you mean" in hints[0] else hints[1]
    return UserError(f"no experiment '{name}' in {paths.EXP_DIR}{hint}")


# ---- reading --------------------------------------------------------------------------------


def read(name: str | Path) -> Experiment:
    """All trials of the experiment with this name or at this path.

    Planned trials without a folder are there too, and so are folders that no plan names:
    trials that were copied or renamed, and snapshots whose trial is gone.

    Raises:
        UserError: there is no such folder, or nothing in it is an experiment's.
    """
    folder = locate(name)
    if not folder:
        raise _unknown_experiment(name)
    experiment = Experiment(short_name(folder), folder, Manifest(folder, {}, [], []))
    if os.path.lexists(folder / paths.PLAN):
        try:
            experiment.manifest = Manifest.read(folder)
            experiment.torn = experiment.manifest.torn
        except UserError as error:
            experiment.unreadable.append(f"{experiment.name}: {error.text}")
    _add_planned(experiment)
    trials, snapshots = _others(folder, {trial.name for trial in experiment.trials})
    for other in trials:
        _add_trial(experiment, other)
    for other in [folder, *snapshots]:
        _add_snapshot(experiment, other)
    if not experiment.trials and not experiment.manifest.plan:
        raise UserError(
            f"no trials in '{experiment.name}'{nearest(experiment.name, experiments())}"
        )
    for trial in experiment.trials:
        trial.status = experiment.manifest.status(trial.name, trial.last)
        trial.why = experiment.manifest.why(trial.name) or _error(trial)
    return experiment


def _add_planned(experiment: Experiment) -> None:
    real = {inner.name for inner in subfolders(experiment.folder)}
    for row in experiment.manifest.rows:
        trial = TrialRecord(experiment.name, row["name"], overrides=row["overrides"])
        experiment.trials.append(trial)
        folder = experiment.folder / row["name"]
        if row["name"] in real:
            trial.folder = folder
            _read_rounds(experiment, trial)
            if trial.last.get("exploited"):  # population based training changed its values
                trial.overrides = trial.overrides | _params(experiment, trial)
        elif os.path.lexists(folder):
            experiment.unreadable.append(
                f"{experiment.name}/{row['name']}: it is no plain folder"
            )


def _read_rounds(experiment: Experiment, trial: TrialRecord) -> None:
    if not trial.folder:
        return
    try:
        lines, torn = files.scan_lines(trial.folder / paths.RESULT)
    except UserError as error:
        experiment.unreadable.append(f"{experiment.name}/{trial.name}: {error.text}")
        return
    trial.rounds = merge_attempts(lines)
    experiment.torn += torn + sum(_round(line) is None for line in lines)


def merge_attempts(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line a round, in order; lines of a later attempt replace those it repeats.

    An attempt continues from a checkpoint: earlier lines of the same or a later round come
    from work that was lost.
    """
    kept: list[dict[str, Any]] = []
    for line in lines:
        at = _round(line)
        if at is None:
            continue
        while kept and kept[-1]["round"] >= at:
            kept.pop()
        plain = {key: _finite(value) for key, value in line.items()
                 if type(value) in _SCALARS}  # fmt: skip
        kept.append(plain | {"round": at})
    return kept


def _round(line: dict[str, Any]) -> int | None:
    at = number(line, "round" if "round" in line else "training_iteration")  # as of old
    return int(at) if at is not None and at >= 0 and at == int(at) else None


def _others(folder: Path, planned: set[str]) -> tuple[list[Path], list[Path]]:
    """Folders of trials, and of snapshots, that the plan doesn't name."""
    trials, snapshots = [], []
    level = [inner for inner in subfolders(folder) if inner.name not in planned]
    for _ in range(DEPTH):
        deeper = []
        for inner in level:
            if is_trial(inner) or (inner / paths.RESULT).is_file():
                trials.append(inner)
            elif is_snapshot(inner):
                snapshots.append(inner)
            elif not (inner / paths.PLAN).is_file():  # else another experiment
                deeper += subfolders(inner)
        level = deeper
    return trials, snapshots


def _add_trial(experiment: Experiment, folder: Path) -> None:
    """A trial's folder that no plan names: a planned one that was renamed, or one more."""
    name = folder.relative_to(experiment.folder).as_posix()
    trial = TrialRecord(experiment.name, name, folder)
    trial.overrides = _params(experiment, trial)
    missing = [other for other in experiment.trials
               if not other.folder and other.overrides == trial.overrides]  # fmt: skip
    if len(missing) == 1:
        trial = missing[0]
        trial.folder = folder
    else:
        experiment.trials.append(trial)
    _read_rounds(experiment, trial)


def _params(experiment: Experiment, trial: TrialRecord) -> dict[str, Any]:
    if not trial.folder:
        return {}
    try:
        return files.read_object(trial.folder / paths.PARAMS)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        experiment.unreadable.append(f"{experiment.name}/{trial.name}: {paths.PARAMS}: {error}")
        return {}


def _add_snapshot(experiment: Experiment, folder: Path) -> None:
    """A checkpoint that was moved: its card names its trial, whose lines stayed behind."""
    if not os.path.lexists(folder / paths.CARD):
        return
    name = short_name(folder)
    try:
        card = files.read_object(folder / paths.CARD)
    except (OSError, ValueError) as error:
        experiment.unreadable.append(f"{name}: {paths.CARD}: {error}")
        return
    named = [trial for trial in experiment.trials if trial.name == card.get("trial")]
    trial = (
        named[0]
        if named
        else TrialRecord(experiment.name, _own_name(experiment, folder), folder)
    )
    trial.snapshot = name
    if not named:
        overrides = card.get("overrides")
        trial.overrides = overrides if isinstance(overrides, dict) else {}
        experiment.trials.append(trial)
    if not trial.rounds and isinstance(card.get("result"), dict):
        trial.rounds = merge_attempts([card["result"]])
    trial.folder = trial.folder or folder


def _own_name(experiment: Experiment, folder: Path) -> str:
    inside = folder.relative_to(experiment.folder).as_posix()
    return experiment.folder.name if inside == "." else inside


def _error(trial: TrialRecord) -> str | None:
    """The last line of the trial's traceback, which holds the cause."""
    if not trial.folder or trial.status in ("done", "stopped"):
        return None
    try:
        lines = files.read_text(trial.folder / paths.ERROR).strip().splitlines()
    except OSError:
        return None
    return printable(lines[-1]) if lines else None


def config(trial: TrialRecord) -> dict[str, str]:
    """The trial's `config.gin` as gin name -> text of its value; empty when there is none."""
    try:
        text = files.read_text(trial.folder / paths.CONFIG) if trial.folder else ""
    except OSError:
        return {}
    bindings: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        before, equals, after = line.partition(" = ")
        if line.startswith((" ", "\t")) and name:  # gin breaks a long value into lines
            bindings[name] = f"{bindings[name]} {line.strip()}".strip()
        elif equals and not line.startswith("#"):
            name = before
            bindings[name] = after.strip().removesuffix("\\").strip()
        else:
            name = ""
    return bindings


# ---- frames ---------------------------------------------------------------------------------


def trials(*names: str | Path) -> "pandas.DataFrame":
    """One row per trial of these experiments; a study stands for those inside it.

    Columns: `exp`, `trial`, `status`, `why`, `round`, `rounds`, `total_s`, `snapshot`, the
    last value of each metric, `best_<metric>`, and each overridden gin name in full (lists as
    tuples). `attrs` holds `unreadable` and `torn`.

    Raises:
        UserError: an experiment that doesn't exist.
    """
    return trial_frame([read(name) for name in expand(names)])


def trial_frame(experiments: list[Experiment]) -> "pandas.DataFrame":
    """The frame of `trials`, of experiments that have been read."""
    rows = [_row(trial) for experiment in experiments for trial in experiment.trials]
    first = ["exp", "trial", "status", "why", "round", "rounds", "total_s", "snapshot"]
    keys = dict.fromkeys(first)
    for kind in ("last", "best", "set"):
        for row in rows:
            keys.update(dict.fromkeys(row[kind]))
    flat = [row["set"] | row["best"] | row["last"] | row["first"] for row in rows]
    return _frame(flat, list(keys), experiments)


def rounds(*names: str | Path) -> "pandas.DataFrame":
    """One row per trial and round of these experiments, or of those inside a study.

    Columns: `exp`, `trial`, `round` and what else its line of `result.json` holds. What
    belongs to the whole trial is joined by `frame.merge(trials, on=["exp", "trial"])`.

    Raises:
        UserError: an experiment that doesn't exist.
    """
    return round_frame([read(name) for name in expand(names)])


def round_frame(experiments: list[Experiment]) -> "pandas.DataFrame":
    """The frame of `rounds`, of experiments that have been read."""
    rows = [line | {"exp": trial.exp, "trial": trial.name}
            for experiment in experiments for trial in experiment.trials
            for line in trial.rounds]  # fmt: skip
    keys = dict.fromkeys(["exp", "trial", "round"])
    for row in rows:
        keys.update(dict.fromkeys(row))
    columns = [key for key in keys if key != "training_iteration"]  # the same as 'round'
    return _frame(rows, columns, experiments)


def _row(trial: TrialRecord) -> dict[str, dict[str, Any]]:
    """The parts of a trial's row, by kind of column."""
    return {
        "first": {
            "exp": trial.exp, "trial": trial.name, "status": trial.status, "why": trial.why,
            "round": trial.last.get("round", 0), "rounds": number(trial.last, "rounds"),
            "total_s": number(trial.last, "total_s"), "snapshot": trial.snapshot,
        },
        "last": trial.metrics(),
        "best": {f"best_{key}": value for key, value in trial.best().items()},
        "set": {key: _hashable(value) for key, value in trial.overrides.items()},
    }  # fmt: skip


def _hashable(value: Any) -> Any:
    """Lists as tuples and objects as text, so that a column can be grouped by."""
    if isinstance(value, list):
        return tuple(map(_hashable, value))
    return repr(value) if isinstance(value, dict) else value


def _frame(
    rows: list[dict[str, Any]], columns: list[str], experiments: list[Experiment]
) -> "pandas.DataFrame":
    import pandas  # takes a second, which the tables of misc/results.py do not need

    try:
        frame = pandas.DataFrame(rows, columns=columns)
    except UnicodeEncodeError:  # half a character, which only a stranger's file has
        rows = [{_whole(key): _whole(value) for key, value in row.items()} for row in rows]
        frame = pandas.DataFrame(rows, columns=list(dict.fromkeys(map(_whole, columns))))
    frame.attrs["unreadable"] = [
        line for experiment in experiments for line in experiment.unreadable
    ]
    frame.attrs["torn"] = sum(experiment.torn for experiment in experiments)
    return frame


def _whole(value: Any) -> Any:
    return value.encode(errors="replace").decode() if isinstance(value, str) else value
