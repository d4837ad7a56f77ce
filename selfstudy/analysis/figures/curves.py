"""Figures of learning: accuracy and utility against labels, metrics over rounds.

`selfstudy.analysis.figures` has them too, with what is said there of `save`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfstudy.analysis import efficiency
from selfstudy.analysis import utility as utilities
from selfstudy.analysis.efficiency import SCRATCH, Curves
from selfstudy.analysis.figures import canvas
from selfstudy.analysis.figures.canvas import BLACK, GREY
from util.errors import UserError, nearest
from util.text import setting

if TYPE_CHECKING:
    import pandas

MANY = 14  # lines that a legend can distinguish


def _title(ax: Axes, panel: str) -> None:
    with canvas.settings():
        ax.set_title(canvas.text(panel))


# ---- label efficiency -----------------------------------------------------------------------


def accuracy(curves: Curves, save: str | Path | None = None) -> Figure:
    """Accuracy against labels, a panel a data set and a line a method; scratch is dashed.

    Lines are means over repeats, shades their 95 % bootstrap intervals.

    Args:
        curves: of `efficiency.curves`.
        save: see `selfstudy.analysis.figures`.
    """
    import pandas

    names = _methods(curves)
    looks = canvas.styles(names, SCRATCH)
    margin = 0.8 + 0.06 * max(map(len, names), default=0)
    picture, axes = canvas.grid(len(curves.values), margin=min(margin, 2.6), sharey=True)
    rows, entries = [], {}
    for ax, (panel, by_method) in zip(axes, curves.values.items(), strict=False):
        for name, cells in by_method.items():
            amounts, values = list(cells), list(cells.values())
            means = [float(np.mean(repeat)) for repeat in values]
            low, high = zip(*map(utilities.interval, values), strict=True)
            line = _line(ax, amounts, means, low, high, looks[name])
            entries.setdefault(name, line)
            rows += [
                [panel, name, amount, len(repeat), mean, *ends]
                for amount, repeat, mean, *ends in zip(
                    amounts, values, means, low, high, strict=True
                )
            ]
        canvas.label_ticks(ax, [amount for cells in by_method.values() for amount in cells])
        _title(ax, panel)
        ax.grid(alpha=0.25)
        ax.set_xlabel("labels")
    axes[0].set_ylabel(canvas.text(curves.metric.replace("_", " ")))
    if not rows:
        canvas.note(axes[0], "no trial has ended yet")
    canvas.legend(picture, {name: entries[name] for name in names if name in entries})
    canvas.caption(picture, canvas.repeats(*curves.repeats) if rows else "", _left_out(curves))
    columns = ["data_set", "method", "labels", "repeats", curves.metric, "low", "high"]
    return canvas.finish(picture, pandas.DataFrame(rows, columns=columns), save)


def _methods(curves: Curves) -> list[str]:
    names = dict.fromkeys(name for by_method in curves.values.values() for name in by_method)
    return sorted(names, key=lambda name: (name != SCRATCH, name))


def _left_out(curves: Curves) -> str:
    if not curves.left_out:
        return ""
    return (
        f"{canvas.quantity(curves.left_out, 'trial')} left out: not ended, or without a value"
    )


def _line(
    ax: Axes, x: Any, mean: Any, low: Any, high: Any, look: dict[str, Any], **options: Any
) -> Any:
    """A line with markers and a shade between finite ends; the line itself."""
    line = ax.plot(x, mean, **look, markersize=4.5, linewidth=1.5, **options)[0]
    low, high = np.asarray(low, float), np.asarray(high, float)
    if (np.isfinite(low) & np.isfinite(high)).any():
        ax.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)
    return line


def utility(
    curves: Curves, baseline: str = SCRATCH, log: bool = True, save: str | Path | None = None
) -> Figure:
    """Utility U(n) against labels, a panel a data set and a line a method.

    Open triangles are bounds: up, at least so much; down, at most. In the grey region, above
    the baseline's largest number of labels / n - 1, nothing can be computed.

    Args:
        curves: of `efficiency.curves`.
        baseline: the method that is 0 everywhere.
        log: interpolate the baseline in the logarithm of labels.
        save: see `selfstudy.analysis.figures`.

    Raises:
        UserError: no data set has the baseline.
    """
    names = _methods(curves)
    if curves.values and baseline not in names:
        raise UserError(f"no method is called '{baseline}'{nearest(baseline, names)}")
    table = efficiency.table(curves, baseline, log=log)
    others = [name for name in names if name != baseline]
    looks = canvas.styles(others)
    margin = 0.8 + 0.06 * max(map(len, others), default=0)
    picture, axes = canvas.grid(len(curves.values), margin=min(margin, 2.6))
    entries: dict[str, Any] = {}
    for ax, (key, part) in zip(axes, table.groupby("data_set", sort=False), strict=False):
        panel = str(key)
        if baseline not in curves.values[panel]:
            canvas.note(ax, f"{canvas.text(panel)}: no {canvas.text(baseline)} to compare with")
            continue
        _utility_panel(ax, part.loc[part.method != baseline], looks, entries)
        most = max(curves.values[panel][baseline])
        canvas.label_ticks(ax, part.labels)
        _utility_scale(ax, part, most, baseline)
        _title(ax, panel)
        ax.set_xlabel("labels")
    axes[0].set_ylabel(f"utility over {canvas.text(baseline)}")
    if table.empty:
        canvas.note(axes[0], "no trial has ended yet")
    canvas.legend(picture, {name: entries[name] for name in others if name in entries})
    bounds = "△ at least, ▽ at most: beyond what the baseline can tell (grey)"
    canvas.caption(picture, canvas.repeats(*curves.repeats) if len(table) else "",
                   bounds if (table.bound != "").any() else "", _left_out(curves))  # fmt: skip
    return canvas.finish(picture, table, save)


def _utility_panel(
    ax: Axes, part: "pandas.DataFrame", looks: dict[str, dict], entries: dict[str, Any]
) -> None:
    for key, cells in part.groupby("method", sort=False):
        name = str(key)
        look, x, y = looks[name], cells.labels.to_numpy(float), cells.utility.to_numpy(float)
        exact = (cells.bound == "").to_numpy()
        # A line to a bound would show a rise or a fall that nobody has seen.
        line = ax.plot(x, np.where(exact, y, np.nan), color=look["color"], linewidth=1.5,
                       linestyle=look["linestyle"], marker=look["marker"],
                       markersize=4.5)[0]  # fmt: skip
        entries.setdefault(name, line)
        for bound, marker in (("<=", "v"), (">=", "^")):
            at = (cells.bound == bound).to_numpy()
            if at.any():
                ax.plot(x[at], y[at], linestyle="none", marker=marker, markersize=7,
                        markerfacecolor="none", markeredgecolor=look["color"])  # fmt: skip
        high = np.minimum(cells.high.to_numpy(float), 1e9)  # open above
        if np.isfinite(cells.low).any():
            ax.fill_between(x, cells.low, high, where=exact, color=look["color"], alpha=0.12,
                            linewidth=0)  # fmt: skip


def _utility_scale(ax: Axes, part: "pandas.DataFrame", most: int, baseline: str) -> None:
    """The axis of utility, the baseline's zero, and what cannot be computed."""
    ends = np.concatenate([part.utility, part.high[np.isfinite(part.high)]])
    top, bottom = (
        float(np.nanmax([*ends, 0.5])),
        float(np.nanmin([*part.utility, *part.low, 0])),
    )
    wide = top > 12
    if wide:  # linear to 1, logarithmic above
        ax.set_yscale("symlog", linthresh=1)
        ticks = [at for at in (-1, 0, 1, 3, 10, 30, 100, 300, 1000, 3000) if at <= 2 * top]
        ax.set_yticks(ticks, [f"{at:,}" for at in ticks])
        ax.set_yticks([], minor=True)
    top = top * 1.6 if wide else top + 0.08 * (top - bottom)
    ax.set_ylim(max(bottom - 0.06 * min(top - bottom, 4), -1.1), top)
    first, last = part.labels.min(), part.labels.max()
    x = np.geomspace(first, last, 200) if last > first else np.array([first, last])
    limit = most / x - 1
    ax.fill_between(x, np.minimum(limit, top), top, color=GREY, alpha=0.25, linewidth=0,
                    zorder=0)  # fmt: skip
    ax.axhline(0, color=BLACK, linestyle="--", linewidth=1, zorder=1)
    ax.grid(alpha=0.25)


# ---- training -------------------------------------------------------------------------------


def training(
    rounds: "pandas.DataFrame",
    metric: str = "valid_accuracy",
    by: str | None = None,
    trials: "pandas.DataFrame | None" = None,
    save: str | Path | None = None,
) -> Figure:
    """A metric over rounds: a line a trial, or a mean with its interval for each value of `by`.

    Args:
        rounds: of `results.rounds`.
        metric: a column of it.
        by: a column of `rounds` or `trials`, such as 'Wrapper.pretrained'.
        trials: of `results.trials`; says what the trials override and how they have ended.
        save: see `selfstudy.analysis.figures`.

    Raises:
        UserError: there is no such metric or column.
    """
    import pandas

    canvas.check_metric(metric, rounds)
    keys = ["exp", "trial"]
    if by and by not in rounds:
        if trials is None or by not in trials:
            known = [*rounds, *(trials if trials is not None else [])]
            raise UserError(f"no column '{by}'{nearest(by, known)}")
        rounds = rounds.merge(trials[[*keys, by]], on=keys, how="left")
    seen = rounds.loc[rounds[metric].notna()]
    groups = seen.assign(_by=list(map(setting, seen[by]))).groupby("_by") if by else None
    picture, (ax,) = canvas.grid(1, size=(4.6, 3.0), margin=1.8)
    if seen.empty:
        canvas.note(ax, f"no trial has a value of {canvas.text(metric)} yet")
        numbers, about = seen[[*keys, "round", metric]], ""
    elif by and groups is not None:
        numbers, about = _means(picture, ax, groups, metric, by)
    else:
        _each(picture, ax, seen, metric, trials)
        numbers, about = seen[[*keys, "round", metric]], ""
    ax.set_xlabel("round")
    ax.set_ylabel(canvas.text(metric.replace("_", " ")))
    ax.grid(alpha=0.25)
    ended = canvas.outcomes(trials, "done") if trials is not None else ""
    silent = len(rounds.groupby(keys)) - len(seen.groupby(keys))
    without = f"{canvas.quantity(silent, 'trial')} without a finite value" if silent else ""
    canvas.caption(picture, about, ended, without)
    return canvas.finish(picture, pandas.DataFrame(numbers), save)


def _each(
    picture: Figure,
    ax: Axes,
    seen: "pandas.DataFrame",
    metric: str,
    trials: "pandas.DataFrame | None",
) -> None:
    """A line a trial: named when they are few, else coloured by their last value."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    lines: list[tuple[Any, pandas.DataFrame]]
    lines = list(seen.groupby(["exp", "trial"], sort=False))
    several = len(set(seen["exp"])) > 1
    names = [f"{exp}/{trial}" if several else trial for (exp, trial), _ in lines]
    looks = canvas.styles(names)
    last = [part[metric].iloc[-1] for _, part in lines]
    scale = Normalize(min(last), max(last))
    ended = {}
    if trials is not None and "status" in trials:
        ended = dict(
            zip(zip(trials.exp, trials.trial, strict=True), trials.status, strict=True)
        )
    entries, shades = {}, canvas.shades()
    for name, (key, part), value in zip(names, lines, last, strict=True):
        few = len(lines) <= MANY
        look = looks[name] if few else {"color": shades(scale(value))}
        faded = 0.5 if ended.get(key) in ("failed", "diverged", "stopped") else 1.0
        entries[name] = ax.plot(part["round"], part[metric], **look, alpha=faded, markersize=4,
                                linewidth=1.3 if few else 0.9)[0]  # fmt: skip
        end = "x" if ended.get(key) in ("failed", "diverged") else "."
        ax.plot(part["round"].iloc[-1], value, end, color=look["color"], alpha=faded,
                markersize=8 if end == "x" else 4)  # fmt: skip
    if len(lines) <= MANY:
        canvas.legend(picture, entries)
    else:
        with canvas.settings():
            picture.colorbar(ScalarMappable(scale, shades), ax=ax, label="last value")


def _means(
    picture: Figure, ax: Axes, groups: Any, metric: str, by: str
) -> tuple["pandas.DataFrame", str]:
    """A mean over trials for each value of `by`, as long as there are trials."""
    import pandas

    looks = canvas.styles(list(groups.groups))
    rows, entries, counts = [], {}, []
    for name, part in groups:
        values = part.groupby("round")[metric].apply(list)
        means = values.map(np.mean)
        low, high = zip(*values.map(utilities.interval), strict=True)
        counts += list(values.map(len))
        line = _line(ax, means.index, means, low, high, looks[name])
        entries[f"{name} (n = {len(values.iloc[0])})"] = line
        rows += [[name, at, len(row), mean, *ends] for at, row, mean, *ends in zip(
            values.index, values, means, low, high, strict=True)]  # fmt: skip
    canvas.legend(picture, entries, title=canvas.text(by.rpartition(".")[2]))
    numbers = pandas.DataFrame(rows, columns=[by, "round", "trials", metric, "low", "high"])
    return numbers, canvas.repeats(min(counts), max(counts)).replace("repeat", "trial")
