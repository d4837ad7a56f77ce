"""Figures of searches: which parameters were tried, and which matter.

`selfstudy.analysis.figures` has them too, with what is said there of `save`.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfstudy.analysis.figures import canvas
from selfstudy.analysis.figures.canvas import BLACK, GREY
from util.errors import UserError
from util.text import headings, setting

if TYPE_CHECKING:
    import pandas

FEWEST = 8  # trials that importance needs
CATEGORIES = 20  # values that an axis still names


def varying(frame: "pandas.DataFrame", metric: str = "") -> dict[str, str]:
    """The gin names whose values differ between trials, with headings; seeds are repeats.

    Args:
        frame: of `results.trials`: what was overridden has a point in its name, or stands
            behind the last `best_` column.
        metric: a column that is none.
    """
    columns = list(frame.columns)
    measured = [at for at, name in enumerate(columns) if str(name).startswith("best_")]
    last = measured[-1] if measured else len(columns)
    names = [
        name
        for at, name in enumerate(columns)
        if name != metric and not name.endswith("seed") and ("." in name or at > last)
    ]
    rows = [{name: value for name, value in row.items() if not missing(value)}
            for row in frame.loc[:, names].to_dict("records")]  # fmt: skip
    return headings(rows)


def missing(value: Any) -> bool:
    """Whether a cell of a frame is empty."""
    return value is None or (isinstance(value, float) and value != value)


def _number(value: Any) -> bool:
    return (isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
            and bool(np.isfinite(value)))  # fmt: skip


class Scale:
    """Where the values of one parameter lie on an axis from 0 to 1.

    Numbers have their place, on a logarithmic axis where they spread far; everything else is a
    category. A value that a trial doesn't set is "unset", below the others.

    Attributes:
        places: [n] in [0, 1]; -0.12 for what is unset.
        ticks: place -> text.
    """

    def __init__(self, values: Sequence[Any]):
        present = [value for value in values if not missing(value)]
        self.numeric = bool(present) and all(map(_number, present))
        self.log = self.numeric and canvas.on_log(present)
        positions = (
            self._numbers(values, present)
            if self.numeric
            else self._categories(values, present)
        )
        self.places, self.ticks = positions
        if len(present) < len(values):
            self.ticks[-0.12] = "unset"

    def _numbers(self, values: Sequence[Any], present: list) -> tuple[np.ndarray, dict]:
        few = sorted(set(present))
        if len(few) > 5:
            integral = all(isinstance(value, int) for value in few)
            few = canvas.round_ticks(few[0], few[-1], self.log, integral)
        scaled = np.log if self.log else np.asarray
        low, high = scaled(float(min(present))), scaled(float(max(present)))

        def place(value: Any) -> float:
            if missing(value):
                return -0.12
            return float((scaled(float(value)) - low) / (high - low)) if high > low else 0.5

        return np.array(list(map(place, values))), {place(at): f"{at:.4g}" for at in few}

    def _categories(self, values: Sequence[Any], present: list) -> tuple[np.ndarray, dict]:
        names = list(dict.fromkeys(map(repr, sorted(present, key=order_of))))
        places = np.linspace(0, 1, len(names)) if len(names) > 1 else [0.5]
        at = {name: float(place) for name, place in zip(names, places, strict=False)}
        labels = short_values(present)
        every = max(1, -(-len(names) // CATEGORIES))
        return (np.array([-0.12 if missing(value) else at[repr(value)] for value in values]),
                {at[name]: labels[name] for name in names[::every]})  # fmt: skip


def short_values(settings: Sequence[Any]) -> dict[str, str]:
    """Repr -> text of each value, without the folders that all have in common."""
    texts = {repr(value): setting(value) for value in settings}
    shared = os.path.commonprefix(list(texts.values())).rpartition("/")
    cut = len(shared[0]) + 1 if shared[1] and len(texts) > 1 else 0
    return {name: canvas.text(text[cut:], 20) for name, text in texts.items()}


def order_of(value: Any) -> tuple:
    """Numbers first, by size, then texts."""
    return (0, float(value), "") if _number(value) else (1, 0.0, setting(value))


def metric_values(frame: "pandas.DataFrame", metric: str) -> np.ndarray:
    """[n] the last value of the metric of each trial, NaN where there is none.

    Raises:
        UserError: no trial has it.
    """
    import pandas

    canvas.check_metric(metric, frame)
    values = np.asarray(pandas.to_numeric(frame.loc[:, metric], errors="coerce"), float)
    return np.where(np.isfinite(values), values, np.nan)


def counts(frame: "pandas.DataFrame", values: np.ndarray, metric: str) -> str:
    """What became of the trials, for a caption."""
    parts = [canvas.quantity(len(frame), "trial")]
    if ended := canvas.outcomes(frame, "done"):
        parts.append(f"of these {ended}")
    if without := int(np.isnan(values).sum()):
        parts.append(f"{without} without {canvas.text(metric)}")
    return ", ".join(parts)


def axis_label(metric: str) -> str:
    """A metric as an axis names it."""
    return canvas.text(metric.replace("_", " "))


# ---- what was tried -------------------------------------------------------------------------


def parallel(
    frame: "pandas.DataFrame", metric: str, mode: str = "max", save: str | Path | None = None
) -> Figure:
    """Parallel coordinates: a line a trial through its parameters to its metric, best on top.

    Trials without the metric are grey and dotted.

    Args:
        frame: of `results.trials`.
        metric: a column of it.
        mode: 'max' or 'min', which end is best.
        save: see `selfstudy.analysis.figures`.

    Raises:
        UserError: there is no such metric.
    """
    values, heads = metric_values(frame, metric), varying(frame, metric)
    picture, (ax,) = canvas.grid(1, size=(max(1.35 * (len(heads) + 1), 4), 3.4))
    have = np.isfinite(values)
    canvas.caption(picture, counts(frame, values, metric))
    if not heads or not have.any():
        why = "no trial has a value yet" if heads else "no parameter varies"
        canvas.note(ax, f"{why} among {canvas.quantity(len(frame), 'trial')}")
        return canvas.finish(picture, frame.loc[:, [*heads, metric]], save)
    scales = [Scale(frame[name].tolist()) for name in heads]
    scales.append(
        Scale([value if ok else None for value, ok in zip(values, have, strict=True)])
    )
    if not have.all():
        scales[-1].ticks[-0.12] = "no value"
    places = np.stack([scale.places for scale in scales], axis=1)  # [trials, axes]
    good = places[:, -1] if mode == "max" else 1 - places[:, -1]
    shades = canvas.shades()
    order = np.argsort(np.where(have, good, -np.inf), kind="stable")
    for rank, at in enumerate(order):
        look = {"color": GREY, "linestyle": ":", "linewidth": 0.8}
        if have[at]:
            look = {"color": shades(float(good[at])), "linewidth": 0.8 + good[at]}
        ax.plot(
            range(len(scales)), places[at], **look, alpha=0.85, zorder=1 + rank / len(order)
        )
    _axes(ax, scales, [canvas.text(head, 22) for head in heads.values()] + [axis_label(metric)])
    return canvas.finish(picture, frame.loc[:, ["trial", *heads, metric]], save)


def _axes(ax: Axes, scales: list[Scale], names: list[str]) -> None:
    """An upright axis with its ticks for each scale."""
    ax.spines[:].set_visible(False)
    ax.set_yticks([])
    ax.set_xlim(-0.25, len(scales) - 0.45)
    lowest = min(scale.places.min() for scale in scales)
    ax.set_ylim(min(lowest, 0) - 0.04, 1.04)
    with canvas.settings():
        ax.xaxis.tick_top()
        slanted = max(map(len, names)) > 14
        ax.set_xticks(range(len(scales)), names, rotation=20 if slanted else 0,
                      ha="left" if slanted else "center")  # fmt: skip
        ax.tick_params("x", length=0)
        for number, scale in enumerate(scales):
            ax.plot([number, number], [0, 1], color=BLACK, linewidth=0.9, zorder=3)
            for place, label in scale.ticks.items():
                ax.plot([number - 0.02, number], [place, place], color=BLACK, linewidth=0.9)
                ax.text(number + 0.03, place, label, fontsize=7, va="center", zorder=4)


def slices(frame: "pandas.DataFrame", metric: str, save: str | Path | None = None) -> Figure:
    """The metric against each parameter that varies, a panel each.

    Args:
        frame: of `results.trials`.
        metric: a column of it.
        save: see `selfstudy.analysis.figures`.

    Raises:
        UserError: there is no such metric.
    """
    values, heads = metric_values(frame, metric), varying(frame, metric)
    picture, axes = canvas.grid(len(heads), 4, (2.5, 2.5), sharey=True)
    canvas.caption(picture, counts(frame, values, metric))
    have = np.isfinite(values)
    if not heads or not have.any():
        why = "no trial has a value yet" if heads else "no parameter varies"
        canvas.note(axes[0], f"{why} among {canvas.quantity(len(frame), 'trial')}")
        return canvas.finish(picture, frame.loc[:, [*heads, metric]], save)
    ended = frame["status"] if "status" in frame else ["done"] * len(frame)
    is_done = np.array([status == "done" for status in ended])
    entries = {}
    for ax, (name, head) in zip(axes, heads.items(), strict=True):
        scale = Scale(frame[name].tolist())
        for label, wanted, fill in (
            ("done", is_done, canvas.COLORS[0]),
            ("not done", ~is_done, "none"),
        ):
            at = have & wanted
            if at.any():
                entries[label] = ax.plot(scale.places[at], values[at], "o", markersize=4.5,
                                        markerfacecolor=fill, markeredgecolor=canvas.COLORS[0],
                                        alpha=0.8, linestyle="none")[0]  # fmt: skip
        ticks = dict(sorted(scale.ticks.items()))
        slanted = sum(map(len, ticks.values())) > 26
        canvas.name_ticks(ax, ticks, list(ticks.values()), 40 if slanted else 0)
        with canvas.settings():
            ax.set_xlabel(canvas.text(head, 28) + (" (log)" if scale.log else ""))
        ax.set_xlim(min(-0.08, scale.places.min() - 0.08), 1.08)
        ax.grid(alpha=0.25)
    axes[0].set_ylabel(axis_label(metric))
    if len(entries) > 1:
        canvas.legend(picture, entries)
    return canvas.finish(picture, frame.loc[:, ["trial", *heads, metric]], save)


# ---- what matters ---------------------------------------------------------------------------


def importance(
    frame: "pandas.DataFrame", metric: str, save: str | Path | None = None
) -> Figure:
    """How much each parameter matters, by a random forest on what it was not fitted to.

    Permutation importance: the forest predicts the metric of held-out trials (five folds), and
    again with one parameter drawn from other trials; the bar is by how much that lowers R², its
    line a standard deviation over 20 draws. All parameters that vary are features; trials
    without the metric are left out. Where the title's R² is not above 0, bars mean nothing.

    Args:
        frame: of `results.trials`.
        metric: a column of it.
        save: see `selfstudy.analysis.figures`.

    Raises:
        UserError: there is no such metric, nothing varies, or fewer than 8 trials have it.
    """
    import pandas

    values, heads = metric_values(frame, metric), varying(frame, metric)
    have = np.isfinite(values)
    if have.sum() < FEWEST:
        raise UserError(
            f"importance needs {FEWEST} trials with {metric}, {have.sum()} of {len(frame)} do"
        )
    if not heads:
        raise UserError("importance: no parameter varies between the trials")
    part = frame[have]
    features = np.stack([Scale(part[name].tolist()).places for name in heads], axis=1)
    fit, drops = _permutation_importance(features, values[have])
    mean, spread = drops.mean(axis=1), drops.std(axis=1)
    order = np.argsort(mean)
    names = [canvas.text(head) for head in heads.values()]
    picture, (ax,) = canvas.grid(1, size=(4.6, 1.0 + 0.3 * len(heads)))
    ax.barh(range(len(order)), mean[order], xerr=spread[order], color=canvas.COLORS[0],
            error_kw={"linewidth": 1, "ecolor": GREY})  # fmt: skip
    with canvas.settings():
        ax.set_yticks(range(len(order)), [names[at] for at in order])
        ax.set_xlabel(f"loss of R² for {axis_label(metric)}")
        weak = "" if fit > 0 else ": no better than the mean, bars mean nothing"
        ax.set_title(f"R² of held-out trials {fit:.2f}{weak}")
    ax.axvline(0, color=BLACK, linewidth=0.8)
    canvas.caption(picture, counts(frame, values, metric), "random forest, shuffled parameters")
    table = pandas.DataFrame({"parameter": list(heads), "importance": mean, "spread": spread})
    table["held_out_r2"] = fit
    return canvas.finish(picture, table.iloc[order[::-1]], save)


def _permutation_importance(
    features: np.ndarray, values: np.ndarray
) -> tuple[float, np.ndarray]:
    """R² of held-out values, and [features, draws] by how much shuffling lowers it."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import KFold

    draws, random = 20, np.random.default_rng(0)
    total, wrong = 0.0, np.zeros((features.shape[1], draws))
    for fitted, held in KFold(5, shuffle=True, random_state=0).split(features):
        forest = RandomForestRegressor(100, random_state=0).fit(
            features[fitted], values[fitted]
        )
        total += ((forest.predict(features[held]) - values[held]) ** 2).sum()
        for at in range(features.shape[1]):
            again = np.repeat(features[held][None], draws, axis=0)
            again[..., at] = random.choice(features[:, at], again.shape[:2])
            predicted = forest.predict(again.reshape(-1, features.shape[1])).reshape(draws, -1)
            wrong[at] += ((predicted - values[held]) ** 2).sum(axis=1)
    spread = ((values - values.mean()) ** 2).sum() or 1.0  # all alike: nothing can be lost
    return 1 - total / spread, (wrong - total) / spread
