"""Figures of results, each from tidy frames to a matplotlib Figure.

    from selfstudy.analysis import efficiency, figures, results

    figures.accuracy(efficiency.curves(results.trials("u1")), save="accuracy")

`save` is a path without suffix: the figure is written as SVG and PNG, the numbers behind it as
CSV. Trials that failed, diverged or stopped are shown or counted, never dropped silently.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from selfstudy.analysis import efficiency, results
from selfstudy.analysis.figures import canvas
from selfstudy.analysis.figures.curves import accuracy, training, utility
from selfstudy.analysis.figures.grid import confusion, contact_sheet, heat_map
from selfstudy.analysis.figures.schedule import rungs, timeline
from selfstudy.analysis.figures.sweep import importance, parallel, slices, varying
from util.errors import UserError, nearest

__all__ = [
    "accuracy", "confusion", "contact_sheet", "heat_map", "importance", "parallel", "plot",
    "rungs", "slices", "timeline", "training", "utility",
]  # fmt: skip


def _curves(names: Sequence[str], metric: str | None) -> efficiency.Curves:
    frame = results.trials(*names)
    try:
        return efficiency.curves(frame, metric)
    except ValueError as error:
        raise UserError(f"{', '.join(map(str, names))}: {error}") from None


def _goal(names: Sequence[str], metric: str | None) -> tuple[str, str]:
    """The metric that was asked for, or the search's own, and which end of it is best."""
    goals = dict(results.read(name).goals()[0] for name in results.expand(names)[:1])
    metric = metric or next(iter(goals), results.METRIC)
    return metric, goals.get(metric) or ("min" if "loss" in metric else "max")


def _heat_map(names: Sequence[str], metric: str | None, save: str | Path) -> None:
    frame = results.trials(*names)
    names_varying = list(varying(frame))
    if len(names_varying) < 2:
        raise UserError(
            f"a heat map needs two parameters that vary, there is {len(names_varying)}"
        )
    x, y = names_varying[:2]
    heat_map(frame, x, y, _goal(names, metric)[0], save=save)


# What the shell can ask for: names of experiments, a metric or None, and where to save.
FIGURES: dict[str, Callable] = {
    "accuracy": lambda names, metric, save: accuracy(_curves(names, metric), save=save),
    "utility": lambda names, metric, save: utility(_curves(names, metric), save=save),
    "training": lambda names, metric, save: training(
        results.rounds(*names), metric or "valid_accuracy", trials=results.trials(*names),
        save=save),
    "parallel": lambda names, metric, save: parallel(
        results.trials(*names), *_goal(names, metric), save=save),
    "slices": lambda names, metric, save: slices(
        results.trials(*names), _goal(names, metric)[0], save=save),
    "importance": lambda names, metric, save: importance(
        results.trials(*names), _goal(names, metric)[0], save=save),
    "heat_map": _heat_map,
    "rungs": lambda names, metric, save: rungs(
        results.rounds(*names), results.trials(*names), _goal(names, metric)[0], save=save),
    "timeline": lambda names, metric, save: timeline(
        [results.read(name) for name in results.expand(names)], save=save),
}  # fmt: skip


def plot(
    figure: str, names: Sequence[str], save: str | Path, metric: str | None = None
) -> list[Path]:
    """Draw one of `FIGURES` of these experiments; the files that were written.

    Raises:
        UserError: there is no such figure, experiment or metric, or it cannot be written.
    """
    if figure not in FIGURES:
        raise UserError(f"no figure is called '{figure}'{nearest(figure, FIGURES)}")
    FIGURES[figure](names, metric, save)
    return canvas.paths_of(save)
