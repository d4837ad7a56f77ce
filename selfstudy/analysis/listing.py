"""Trials as rows of a table and as records for other programs."""

from typing import Any

from selfstudy.analysis import results
from selfstudy.analysis.results import TrialRecord
from util.text import headings, table

WIDEST = 40  # characters of a table's cell


def quantity(number: int, noun: str) -> str:
    """Such as '1 trial' and '2 trials'."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def cell(value: Any) -> str:
    """A value in a table's cell."""
    if type(value) is float:
        return f"{value:.6g}"
    text = "-" if value is None else value if isinstance(value, str) else repr(value)
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 3]}..."


def varying(trials: list[TrialRecord]) -> dict[str, str]:
    """The overridden gin names whose values differ, with the headers of their columns."""
    return headings([trial.overrides for trial in trials])


def record(trial: TrialRecord) -> dict[str, Any]:
    """A trial for other programs: plain values under fixed names."""
    return {
        "exp": trial.exp, "trial": trial.name, "status": trial.status, "why": trial.why,
        "round": trial.last.get("round", 0), "rounds": results.number(trial.last, "rounds"),
        "total_s": results.number(trial.last, "total_s"), "snapshot": trial.snapshot,
        "overrides": trial.overrides, "metrics": trial.metrics(), "best": trial.best(),
    }  # fmt: skip


def alternatives(values: list[str] | None) -> str:
    """Some of the values that trials have for a name, in a table's cell."""
    if values is None:
        return "-"
    more = f" | ... ({len(values)})" if len(values) > 3 else ""
    return " | ".join(cell(value) for value in values[:3]) + more


def trial_table(
    trials: list[TrialRecord], names: dict[str, str], metrics: list[str], several: bool
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
            *(_override(trial, name) for name in names), trial.status, at(trial),
            *(cell(value) for metric in metrics
              for value in (results.number(trial.last, metric), best.get(metric))),
            *([cell(trial.why)] if whys else []),
        ])  # fmt: skip
    header = [*(["experiment"] if several else []), "trial", *names.values(), "status", "round",
              *(text for metric in metrics for text in (metric, "best")),
              *(["why"] if whys else [])]  # fmt: skip
    return table(rows, header)


def _override(trial: TrialRecord, name: str) -> str:
    value = trial.overrides.get(name, "")
    return "None" if value is None else cell(value)


def at(trial: TrialRecord) -> str:
    """How far it is, such as '3/10' rounds."""
    rounds = results.number(trial.last, "rounds")
    return f"{trial.last.get('round', 0)}" + (f"/{rounds:g}" if rounds else "")
