"""Figures under the names of the published program, see `selfstudy.analysis.published`.

Each returns a Figure, drawn without pyplot, but where its docstring says otherwise.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfstudy.analysis.figures import canvas
from selfstudy.analysis.figures.canvas import BLACK, GREY
from selfstudy.analysis.figures.sweep import order_of
from selfstudy.analysis.published import calc_utility, convert_ds_name
from selfstudy.analysis.results import number as line_number
from util.errors import UserError, nearest
from util.text import setting

Results = Mapping[str, Mapping[Any, Mapping[int, np.ndarray]]]


def accuracy_plot(
    results: Results,
    to_compare: Sequence[str],
    ds_names: Sequence[Any] | None = None,
    d_amts: Sequence[int] | None = None,
    *,
    ax_ref: Any = None,
    include_train: bool = False,
    **look: Any,
) -> Figure:
    """Accuracy in percent against labels: a panel a data set, mean and deviation a method.

    Args:
        results: method -> data set -> labels -> [repeats, 2].
        to_compare: the methods.
        ds_names: the data sets; default: all.
        d_amts: the numbers of labels; default: all.
        ax_ref: axes to draw in, one or an array of them; default: a new figure.
        include_train: draw the training accuracy too, dashed.
        look: `n_rows, n_cols, figsize, c_ref, l_ref, m_ref, m_size, use_markers, legend_loc,
            min_y, max_y, xlabel, ylabel, include_legend`; the three `_ref` are colours, lines
            and markers, by method or in their order.

    Raises:
        UserError: a method or data set that is not in the results.
    """
    figure, panels, look = _frame(results, to_compare, ds_names, ax_ref, look)
    for ax, ds in panels:
        for name, style in _looks(to_compare, look).items():
            cells = _cells(results[name].get(ds, {}), d_amts)
            for column, line in ((-1, style["linestyle"]), (0, "--"))[: 1 + include_train]:
                values = [np.asarray(cell, float)[:, column] for cell in cells.values()]
                label = canvas.text(name) if column == -1 else "_train"
                options: dict[str, Any] = style | {"linestyle": line}
                if values:
                    ax.errorbar(list(cells), [cell.mean() for cell in values],
                                [cell.std() for cell in values], capsize=2,
                                label=label, **options)  # fmt: skip
        _dress(ax, ds, look | {"ylabel": look["ylabel"] or "accuracy (%)"})
    return figure


def utility_plot(
    results: Results,
    to_compare: Sequence[str],
    ds_names: Sequence[Any] | None = None,
    d_amts: Sequence[int] | None = None,
    *,
    ax_ref: Any = None,
    baseline: str | Sequence[str] = "scratch",
    formula: str = "monotone",
    **look: Any,
) -> dict[Any, dict[str, list[np.ndarray]]]:
    """Utility of methods over a baseline, drawn as `accuracy_plot` does.

    Without `ax_ref` it is drawn in a new figure of pyplot, since it is the numbers that are
    returned; `pyplot.gcf()` has it. What cannot be computed is grey.

    Args:
        results: method -> data set -> labels -> [repeats, 2].
        to_compare: the methods.
        ds_names: the data sets; default: all.
        d_amts: the methods' numbers of labels; default: all.
        ax_ref: axes to draw in, one or an array of them.
        baseline: a method, or one for each of `to_compare`.
        formula: of `calc_utility`.
        look: as of `accuracy_plot`.

    Returns:
        data set -> method -> [labels, utility].

    Raises:
        UserError: a method or data set that is not in the results, or another formula.
    """
    bases = [baseline] * len(to_compare) if isinstance(baseline, str) else list(baseline)
    if len(bases) != len(to_compare):
        raise UserError(f"{len(bases)} baselines for {len(to_compare)} methods")
    _check(results, bases)
    _, panels, look = _frame(results, to_compare, ds_names, ax_ref, look, pyplot=True)
    plotted: dict[Any, dict[str, list[np.ndarray]]] = {}
    for ax, ds in panels:
        limit = 0
        looks = _looks(to_compare, look)
        plotted[ds] = {}
        for name, base in zip(to_compare, bases, strict=True):
            v0, v1 = results[base].get(ds), _cells(results[name].get(ds, {}), d_amts)
            if not v0 or not v1:
                continue
            labels, value, spread = calc_utility(v0, v1, formula=formula)
            plotted[ds][name] = [labels, value]
            style = {"label": canvas.text(name), "capsize": 2} | looks[name]
            ax.errorbar(labels, value, spread, **style)
            limit = max(limit, *v0)
        _beyond(ax, limit, [labels for labels, _ in plotted[ds].values()])
        _dress(ax, ds, look | {"ylabel": look["ylabel"] or "utility"})
    return plotted


def _beyond(ax: Axes, limit: float, labels: list[np.ndarray]) -> None:
    """A zero line, and grey above the largest utility that the baseline can measure."""
    if not labels:
        return
    ax.axhline(0, color=BLACK, linestyle="--", linewidth=1)
    x = np.geomspace(min(map(np.min, labels)), max(map(np.max, labels)), 100)
    top = ax.get_ylim()[1]
    ax.fill_between(x, np.minimum(limit / x - 1, top), top, color=GREY, alpha=0.25, linewidth=0)
    ax.set_ylim(top=top)


_LOOK = {
    "n_rows": None, "n_cols": None, "figsize": None, "c_ref": None, "l_ref": None,
    "m_ref": None, "m_size": 5, "use_markers": True, "legend_loc": "best", "min_y": None,
    "max_y": None,
    "xlabel": "labels", "ylabel": None, "include_legend": True,
}  # fmt: skip


def _check(results: Results, names: Sequence[str]) -> None:
    for name in names:
        if name not in results:
            raise UserError(f"no results of '{name}'{nearest(name, map(str, results))}")


def _frame(
    results: Results,
    to_compare: Sequence[str],
    ds_names: Sequence[Any] | None,
    ax_ref: Any,
    look: dict[str, Any],
    pyplot: bool = False,
) -> tuple[Figure, list[tuple[Axes, Any]], dict[str, Any]]:
    """The figure, a panel for each data set, and all of `_LOOK`."""
    for name in look:
        if name not in _LOOK:
            raise UserError(f"no argument '{name}'{nearest(name, _LOOK)}")
    look = _LOOK | look
    _check(results, to_compare)
    known = dict.fromkeys(ds for name in to_compare for ds in results[name])
    names = list(known if ds_names is None else ds_names)
    for ds in names:
        if ds not in known:
            raise UserError(f"no results on '{ds}'{nearest(str(ds), map(str, known))}")
    if ax_ref is not None:
        axes = list(np.asarray(ax_ref, dtype=object).flat)
        if len(axes) < len(names):
            raise UserError(f"{len(names)} data sets for {len(axes)} axes")
        return axes[0].figure, list(zip(axes, names, strict=False)), look
    count = max(len(names), 1)
    rows = look["n_rows"] or -(-count // 4)
    columns = look["n_cols"] or -(-count // rows)
    figure, axes = (_pyplot_grid if pyplot else canvas.grid)(count, columns)
    if look["figsize"]:
        figure.set_size_inches(look["figsize"])
    return figure, list(zip(axes, names, strict=False)), look


def _pyplot_grid(count: int, columns: int) -> tuple[Figure, list[Axes]]:
    from matplotlib import pyplot

    rows = -(-count // columns)
    with canvas.settings():
        figure, axes = pyplot.subplots(rows, columns, squeeze=False, layout="constrained",
                                       figsize=(3.4 * columns, 2.7 * rows))  # fmt: skip
    for ax in axes.flat[count:]:
        ax.remove()
    return figure, list(axes.flat[:count])


def _looks(names: Sequence[str], look: dict[str, Any]) -> dict[str, dict[str, Any]]:
    styles = canvas.styles(list(names), "scratch")
    for key, style in (("c_ref", "color"), ("l_ref", "linestyle"), ("m_ref", "marker")):
        value = look[key]
        for number, name in enumerate(names):
            if isinstance(value, Mapping) and name in value:
                styles[name][style] = value[name]
            elif value is not None and not isinstance(value, Mapping) and number < len(value):
                styles[name][style] = value[number]
    for style in styles.values():
        style |= {"markersize": look["m_size"], "linewidth": 1.3}
        if not look["use_markers"]:
            style["marker"] = None
    return styles


def _cells(by_labels: Mapping[int, np.ndarray], d_amts: Sequence[int] | None) -> dict:
    return {n: by_labels[n] for n in sorted(by_labels) if d_amts is None or n in set(d_amts)}


def _dress(ax: Axes, ds: Any, look: dict[str, Any]) -> None:
    with canvas.settings():
        ax.set_title(canvas.text(convert_ds_name(ds)))
        ax.set_xlabel(look["xlabel"])
        ax.set_ylabel(look["ylabel"])
        lines = [x for line in ax.get_lines() for x in np.asarray(line.get_xdata()) if x > 1]
        canvas.label_ticks(ax, lines)
        ax.grid(alpha=0.25)
        ax.set_ylim(look["min_y"], look["max_y"])
        if look["include_legend"] and ax.get_legend_handles_labels()[1]:
            ax.legend(loc=look["legend_loc"], frameon=False, fontsize=7)


def compare_training_curves(
    results: Mapping[str, Sequence[Mapping]] | Sequence[Sequence[Mapping]],
    params: np.ndarray,
    to_compare: int,
    filters: Sequence[Any],
    labels: Sequence[str] | None = None,
    filt_labels: Sequence[str] | None = None,
    splits: Sequence[str] = ("train", "valid"),
    n_cols: int | None = None,
    colors: Sequence[str] | None = None,
    y_max: float = 1.0,
) -> Figure:
    """Accuracy over rounds: a panel a filter and split, a colour a value of one parameter.

    Args:
        results: the lines of each trial, such as `ExperimentResult.results_raw`.
        params: [trials, keys], such as `ExperimentResult.params`.
        to_compare: the column of `params` that colours.
        filters: of each panel its trials: indices, a mask, or {column: value}.
        labels: names of the compared values, in their order.
        filt_labels: names of the filters.
        splits: of 'train', 'valid' and 'test'.
        n_cols: panels in a row; default: one a split.
        colors: of the compared values, in their order.
        y_max: top of the axes, an accuracy in [0, 1].
    """
    lines = list(results.values()) if isinstance(results, Mapping) else list(results)
    column = [params[at, to_compare] for at in range(len(lines))]
    values = sorted({setting(run): run for run in column}.values(), key=order_of)
    looks = list(canvas.styles([setting(run) for run in values]).values())
    names = list(labels) if labels else [setting(run) for run in values]
    figure, axes = canvas.grid(
        len(filters) * len(splits), n_cols or len(splits), margin=1.2, sharey=True
    )
    entries: dict[str, Any] = {}
    panels = iter(axes)
    for number_of, chosen in enumerate(filters):
        taken = _select(chosen, params)
        for split in splits:
            ax = next(panels)
            for at in taken:
                rank = [setting(run) for run in values].index(setting(column[at]))
                color = colors[rank] if colors else looks[rank]["color"]
                points = [(line["round"], line_number(line, f"{split}_accuracy"))
                          for line in lines[at]]  # fmt: skip
                points = [point for point in points if point[1] is not None]
                drawn = ax.plot(*np.array(points).reshape(-1, 2).T, color=color, linewidth=1.2)
                entries.setdefault(names[rank], drawn[0])
            label = filt_labels[number_of] if filt_labels else ""
            with canvas.settings():
                ax.set_title(f"{canvas.text(label)} {canvas.text(split)}".strip())
                ax.set_xlabel("round")
            ax.grid(alpha=0.25)
    axes[0].set_ylim(top=y_max)  # all share it
    axes[0].set_ylabel("accuracy")
    canvas.legend(figure, {name: entries[name] for name in names if name in entries})
    return figure


def _select(chosen: Any, params: np.ndarray) -> np.ndarray:
    """The trials that a filter takes."""
    if isinstance(chosen, Mapping):
        return np.array([at for at in range(len(params))
                         if all(params[at, key] == value for key, value in chosen.items())],
                        int)  # fmt: skip
    return np.arange(len(params))[chosen]
