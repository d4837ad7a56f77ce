"""Trials compared: groups over seeds, best first, and how configurations differ."""

import dataclasses
import re
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

import paths
from selfstudy.analysis import results
from selfstudy.analysis.results import Experiment, TrialRecord

SEEDS = ("seed", "label_seed")  # last parts of gin names
INCLUDE = "include"  # the override that is no parameter but gin files
_BINDING = re.compile(r"[A-Za-z_][\w./]*\s*=", re.ASCII)
_GIN_FILE = re.compile(r"[A-Za-z0-9_][\w./-]*", re.ASCII)


def is_seed(name: str) -> bool:
    """Whether a gin name is a seed's, so that trials that differ in it only are repeats."""
    return name.rpartition(".")[2] in SEEDS


@dataclasses.dataclass
class Group:
    """Trials of an experiment that differ in their seeds only.

    Attributes:
        exp: the experiment.
        values: gin name -> value that all of them override; no seeds.
        trials: all of them.
        scores: [n] the metric's last values of those that have one.
    """

    exp: str
    values: dict[str, Any]
    trials: list[TrialRecord]
    scores: list[float]

    @property
    def mean(self) -> float:
        """Of the scores, of which there must be some."""
        return sum(self.scores) / len(self.scores)

    def interval(self) -> tuple[float, float]:
        """A 95 % bootstrap interval of the mean; NaN for one score."""
        from selfstudy.analysis import utility

        return utility.interval(self.scores)


def groups(trials: Iterable[TrialRecord], metric: str, mode: str) -> list[Group]:
    """Trials grouped over seeds; the best mean first, those without a value at the end."""
    by_settings: dict[tuple, Group] = {}
    for trial in trials:
        values = {key: item for key, item in trial.overrides.items() if not is_seed(key)}
        known = trial.exp, *sorted((key, repr(item)) for key, item in values.items())
        group = by_settings.setdefault(known, Group(trial.exp, values, [], []))
        group.trials.append(trial)
        score = results.number(trial.last, metric)
        if score is not None:
            group.scores.append(float(score))
    sign = 1 if mode == "min" else -1
    ordered = sorted((group for group in by_settings.values() if group.scores),
                     key=lambda group: sign * group.mean)  # fmt: skip
    return ordered + [group for group in by_settings.values() if not group.scores]


def rank(trials: Iterable[TrialRecord], metric: str, mode: str) -> list[TrialRecord]:
    """The trials that have the metric in their last round, the best first."""
    scored = [trial for trial in trials if results.number(trial.last, metric) is not None]
    return sorted(scored, key=lambda trial: trial.last[metric], reverse=mode == "max")


# ---- configurations -------------------------------------------------------------------------


def config(experiment: Experiment, trial: TrialRecord) -> dict[str, str]:
    """Gin name -> text of its value: what the trial has used; before it began, was given."""
    if used := results.config(trial):
        return used
    params = experiment.manifest.plan.get("spec", {}).get("params", [])
    pairs = (text.partition("=") for text in params)
    bindings = {name.strip(): value.strip() for name, _, value in pairs}
    return bindings | {name: repr(value) for name, value in trial.overrides.items()}


def settings(experiment: Experiment, trials: Iterable[TrialRecord]) -> dict[str, list[str]]:
    """Gin name -> the values that these trials of an experiment have for it."""
    by_name: dict[str, dict[str, None]] = {}
    for trial in trials:
        for name, value in config(experiment, trial).items():
            by_name.setdefault(name, {})[value] = None
    return {name: list(values) for name, values in by_name.items()}


def plan_settings(experiment: Experiment) -> dict[str, list[str]]:
    """What the plan of an experiment says beside its trials' values."""
    plan = experiment.manifest.plan
    if not plan:
        return {}
    flags = {"-g": plan["spec"]["gin"], "-p": plan["spec"]["params"], "-r": [plan["ray"]],
             "--set": given_settings(plan)}  # fmt: skip
    rules = {f"exp_args {name}": [repr(value)] for name, value in plan["exp_args"].items()}
    return flags | rules


def given_settings(plan: dict[str, Any]) -> list[str]:
    """The texts of `--set` in a plan."""
    texts = plan.get("settings")
    return list(map(str, texts)) if isinstance(texts, list) else []


def differences(
    sides: Sequence[dict[str, list[str]]],
) -> dict[str, list[list[str] | None]]:
    """Name -> each side's values, None where it has none, of names in which they differ."""
    names = dict.fromkeys(name for side in sides for name in side)
    values = {name: [side.get(name) for side in sides] for name in names}
    return {
        name: column
        for name, column in values.items()
        if any(value != column[0] for value in column)
    }


# ---- once more ------------------------------------------------------------------------------


def command(experiment: Experiment, trial: TrialRecord) -> tuple[str | None, str]:
    """The command line that runs a trial again alone, and a caveat; None when it is unknown.

    The plan may be a stranger's, so nothing that could be read as a flag gets in.
    """
    plan = experiment.manifest.plan
    if not plan:
        return None, f"the experiment has no {paths.PLAN}"
    more = trial.overrides.get(INCLUDE, [])
    files = [*plan["spec"]["gin"], *(more if isinstance(more, list) else [more])]
    params = plan["spec"]["params"] + [
        f"{name} = {value!r}" for name, value in trial.overrides.items() if name != INCLUDE
    ]
    odd = [text for text in files if not _GIN_FILE.fullmatch(str(text))]
    odd += [text for text in params if not _BINDING.match(text) or not text.isprintable()]
    if odd:
        return None, f"the plan has {odd[0]!r}, which is no gin file or binding"
    words = ["python", "main.py"]
    for flag, values in (("-g", files), ("-p", params)):
        words += [flag, *values] if values else []
    adopted = any(line.get("exploited") for line in trial.rounds)
    caveat = "it took over another trial's state, which the command does not" if adopted else ""
    return shlex.join(words), caveat
