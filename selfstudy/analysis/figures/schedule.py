"""Figures of how a search went: early stopping, and when which trial ran.

`selfstudy.analysis.figures` has them too, with what is said there of `save`.
"""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfstudy.analysis import results
from selfstudy.analysis.figures import canvas
from selfstudy.analysis.figures.canvas import BLACK, CODES, GREY, INK
from selfstudy.analysis.figures.slots import LATEST, Bar, Elapsed, assign_slots, bars
from util.text import clock, short_names

if TYPE_CHECKING:
    import pandas

    from selfstudy.analysis.results import Experiment

RUNGS = 8  # at most, that a figure has room for
UNITS = (("hours", 3600), ("minutes", 60), ("seconds", 1))


# ---- early stopping -------------------------------------------------------------------------


def rungs(
    rounds: "pandas.DataFrame",
    frame: "pandas.DataFrame",
    metric: str,
    at: Sequence[int] | None = None,
    save: str | Path | None = None,
) -> Figure:
    """Did early stopping pay, and was it right?

    Above, learning curves, those of stopped trials faded, with a line at each rung and the rank
    correlation (Spearman) of the values there with the last ones, among trials that finished.
    Below, the trials that were alive in each round and the share of rounds that was saved.

    Args:
        rounds: of `results.rounds`.
        frame: of `results.trials`.
        metric: a column of `rounds`.
        at: rounds of the rungs; None for those after which trials were stopped.
        save: see `selfstudy.analysis.figures`.

    Raises:
        UserError: there is no such metric.
    """
    import pandas

    canvas.check_metric(metric, rounds)
    ran = frame.loc[frame["round"] > 0]
    stopped = ran[ran.status == "stopped"]
    at = sorted(set(stopped["round"].astype(int))) if at is None else sorted(at)
    picture, (above, below) = canvas.grid(2, 1, (5.2, 2.5), sharex=True)
    outcome = canvas.outcomes(frame, "done", "stopped")
    words = [f"{len(ran)} of {canvas.quantity(len(frame), 'trial')} have begun",
             f"of all {outcome}" if outcome else ""]  # fmt: skip
    numbers = _alive(ran)
    if ran.empty:
        canvas.caption(picture, *words)
        canvas.note(above, "no trial has done a round yet")
        canvas.note(below, "")
        return canvas.finish(picture, numbers, save)
    curves = _curves(above, rounds, frame, metric)
    agreement = {rung: rank_correlation(curves, rung) for rung in at}
    if at and len(at) <= RUNGS:
        words.append(f"ρ: rank correlation with the end, of the {len(curves)} that finished")
    canvas.caption(picture, *words)
    _rung_lines((above, below), agreement if len(at) <= RUNGS else dict.fromkeys(at))
    below.step(numbers["round"], numbers["alive"], where="post", color=canvas.COLORS[0])
    below.set_ylim(0, 1.08 * max(numbers["alive"]))
    with canvas.settings():
        above.set_title(f"{len(stopped)} of {canvas.quantity(len(ran), 'trial')} stopped early",
                        pad=14 if at else 6)  # fmt: skip
        below.set_title(_savings(ran))
        above.set_ylabel(canvas.text(metric.replace("_", " ")))
        below.set_ylabel("trials alive")
        below.set_xlabel("round")
    numbers["rung"] = numbers["round"].isin(at)
    numbers["rank_correlation"] = [agreement.get(rung, math.nan) for rung in numbers["round"]]
    return canvas.finish(picture, pandas.DataFrame(numbers), save)


def _alive(ran: "pandas.DataFrame") -> "pandas.DataFrame":
    """A row a round: the trials that have done it."""
    import pandas

    last = ran["round"].to_numpy(int)
    count = range(1, last.max() + 1) if len(last) else range(0)
    return pandas.DataFrame(
        {"round": list(count), "alive": [(last >= at).sum() for at in count]}
    )


def _curves(
    ax: Axes, rounds: "pandas.DataFrame", frame: "pandas.DataFrame", metric: str
) -> list["pandas.Series"]:
    """Draw a line a trial; the curves of those that finished."""
    keys = ["exp", "trial"]
    seen = rounds[rounds[metric].notna()].merge(frame[[*keys, "status"]], on=keys, how="left")
    finished, entries = [], {}
    looks = {
        "done": {"color": CODES["done"], "zorder": 3},
        "stopped": {"color": GREY, "alpha": 0.5},
    }
    for _, part in seen.groupby(keys, sort=False):
        status = part.status.iloc[0]
        look = looks.get(status, {"color": CODES.get(status, GREY), "linestyle": ":"})
        entries[status] = ax.plot(part["round"], part[metric], linewidth=1.1, **look)[0]
        ax.plot(part["round"].iloc[-1:], part[metric].iloc[-1:], ".", color=look["color"],
                markersize=4, alpha=look.get("alpha", 1))  # fmt: skip
        if status == "done":
            finished.append(part.set_index("round")[metric])
    canvas.legend(ax, entries)
    return finished


def rank_correlation(curves: list["pandas.Series"], at: int) -> float:
    """Spearman's correlation of values in round `at` with the last ones; NaN below 3 curves."""
    pairs = [(curve[at], curve.iloc[-1]) for curve in curves if at in curve.index]
    if len(pairs) < 3:
        return math.nan
    import pandas

    first, last = pandas.DataFrame(pairs).rank().to_numpy().T
    if first.std() == 0 or last.std() == 0:
        return math.nan
    return float(np.corrcoef(first, last)[0, 1])


def _rung_lines(axes: Sequence[Axes], agreement: dict[int, float | None]) -> None:
    for rung, value in agreement.items():
        for ax in axes:
            ax.axvline(rung, color=BLACK, linewidth=0.7, linestyle=":", zorder=0)
        if value is not None:
            label = "ρ –" if math.isnan(value) else f"ρ {value:.2f}"
            with canvas.settings():
                axes[0].annotate(
                    label, (rung, 1), (0, 2), fontsize=7, ha="center",
                    xycoords=("data", "axes fraction"), textcoords="offset points",
                )  # fmt: skip


def _savings(ran: "pandas.DataFrame") -> str:
    """What stopping saved of the rounds that ended trials would else have run."""
    ended = ran.loc[ran.status.isin(["done", "stopped"])]
    full = ended["rounds"].fillna(ended["round"].max()) if len(ended) else ended["round"]
    full = np.maximum(full, ended["round"])
    if not len(ended) or not full.sum():
        return "no trial has ended"
    share = 1 - ended["round"].sum() / full.sum()
    return (
        f"{ended['round'].sum():,.0f} of {full.sum():,.0f} rounds were run, {share:.0%} saved"
    )


# ---- when -----------------------------------------------------------------------------------


def timeline(experiments: "Sequence[Experiment]", save: str | Path | None = None) -> Figure:
    """Which trial ran when, in as many slots as were busy at once, and the best value so far.

    A cross marks a failure, a bar across a retry. The title gives the share of the slots' time
    in which none was at work; time without a driver is left out of all.

    Args:
        experiments: of `results.read`.
        save: see `selfstudy.analysis.figures`.
    """
    import pandas

    read = [bars(experiment) for experiment in experiments]
    runs = [run for group, _ in read for run in group]
    elapsed = Elapsed([span for _, spans in read for span in spans])
    slots, total = assign_slots(runs), elapsed(LATEST)
    height = 1.6 + 0.22 * min(slots, 24)
    picture, (above, below) = canvas.grid(
        2, 1, (6.4, height), 1.2, sharex=True, height_ratios=[max(height - 1.2, 1), 1.8]
    )
    rows = [[run.exp, run.trial, run.slot, elapsed(run.start), elapsed(run.end), run.status,
             len(run.retries)] for run in runs]  # fmt: skip
    columns = ["exp", "trial", "slot", "start_s", "end_s", "status", "retries"]
    numbers = pandas.DataFrame(rows, columns=columns)
    trials = [trial for experiment in experiments for trial in experiment.trials]
    counts = Counter(trial.status for trial in trials)
    ended = ", ".join(f"{count} {status}" for status, count in counts.items())
    gaps = "time without a driver is left out" if len(elapsed.spans) > 1 else ""
    canvas.caption(picture, ended, gaps)
    if not runs or not total:
        canvas.note(above, "no journal records when trials ran")
        canvas.note(below, "")
        return canvas.finish(picture, numbers, save)
    unit, by = next(run for run in UNITS if total >= 2 * run[1] or run[1] == 1)
    _bars(picture, above, runs, elapsed, by, total)
    used = float((numbers.end_s - numbers.start_s).sum())
    idle = max(0.0, 1 - used / (slots * total))
    with canvas.settings():
        busy = f"{canvas.quantity(slots, 'slot')} for {clock(total)}"
        above.set_title(f"{busy}, {idle:.0%} of their time idle")
        _best_so_far(below, experiments, elapsed, by)
        below.set_xlabel(unit)
    return canvas.finish(picture, numbers, save)


def _bars(
    picture: Figure, ax: Axes, runs: list[Bar], elapsed: Elapsed, by: float, total: float
) -> None:
    short = short_names(sorted({run.trial for run in runs}))
    entries: dict[str, Any] = {}
    for run in runs:
        start, width = elapsed(run.start) / by, (elapsed(run.end) - elapsed(run.start)) / by
        color = CODES.get(run.status, GREY)
        bar = ax.broken_barh([(start, width)], (run.slot - 0.4, 0.8), facecolor=color,
                             edgecolor="#ffffff", linewidth=0.6)  # fmt: skip
        entries[run.status] = bar
        if run.status in ("failed", "diverged"):
            entries[run.status] = ax.plot(start + width, run.slot, "X", color=color,
                                          markeredgecolor=INK, markersize=7)[0]  # fmt: skip
        for when in run.retries:
            entries["retried"] = ax.plot(elapsed(when) / by, run.slot, "|", color=INK,
                                         markersize=12, markeredgewidth=2)[0]  # fmt: skip
        name = canvas.text(short[run.trial], 12)
        if width * by > total * 0.011 * (len(name) + 1):
            with canvas.settings():
                ax.text(start + width / 2, run.slot, name, ha="center", va="center", fontsize=6,
                        color="#ffffff" if run.status == "done" else INK)  # fmt: skip
    most = max(run.slot for run in runs)
    ax.set_yticks(range(0, most + 1, max(1, most // 8)))
    ax.set_ylim(most + 0.6, -0.6)
    ax.set_xlim(0, total / by)
    with canvas.settings():
        ax.set_ylabel("slot")
    order = [*CODES, "retried"]
    canvas.legend(picture, {name: entries[name] for name in order if name in entries})


def _best_so_far(
    ax: Axes, experiments: "Sequence[Experiment]", elapsed: Elapsed, by: float
) -> None:
    """A step for each time that the best value of an experiment grew (or fell)."""
    looks = canvas.styles([experiment.name for experiment in experiments])
    entries, metrics = {}, {}
    for experiment in experiments:
        metric, mode = experiment.goals()[0]
        points = sorted(
            (line["time"], value)
            for trial in experiment.trials for line in trial.rounds
            if (value := results.number(line, metric)) is not None
            and 0 < (results.number(line, "time") or 0) < LATEST
        )  # fmt: skip
        if not points:
            continue
        best = list(itertools.accumulate((y for _, y in points), max if mode == "max" else min))
        look = looks[experiment.name]
        entries[experiment.name] = ax.step(
            [elapsed(when) / by for when, _ in points], best, where="post",
            color=look["color"], linestyle=look["linestyle"],
        )[0]  # fmt: skip
        metrics[metric] = None
    if not entries:
        canvas.note(ax, "")
    if len(entries) > 1:
        canvas.legend(ax, entries)
    ax.grid(alpha=0.25)
    ax.set_ylabel("best " + canvas.text(", ".join(name.replace("_", " ") for name in metrics)))
