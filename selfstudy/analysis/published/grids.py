"""Comparisons of hyperparameters under the names of the published program.

See `selfstudy.analysis.published`; each returns a Figure, drawn without pyplot.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfstudy.analysis.figures import canvas
from util.errors import UserError
from util.text import setting

MODES = ("default", "hex", "float")


def plot_hyperparam_comparison(
    params: np.ndarray,
    acc: np.ndarray,
    log_ref: Sequence[bool],
    key_ref: Sequence[str],
    filter_idxs: Sequence[int] | None = None,
    cmap: Any = None,
) -> Figure:
    """A panel for each pair of parameters, a point a trial, coloured by accuracy.

    Args:
        params: [trials, keys] numbers.
        acc: [trials] or [trials, 2]; the last column counts.
        log_ref: [keys] which axes are logarithmic.
        key_ref: [keys] names.
        filter_idxs: trials to show; default: all.
        cmap: a colour map.
    """
    params = np.asarray(params, float)
    taken = np.arange(len(params)) if filter_idxs is None else np.asarray(filter_idxs)
    values = np.asarray(acc, float).reshape(len(params), -1)[taken, -1]
    pairs = [(x, y) for y in range(1, params.shape[1]) for x in range(y)]
    if not pairs:
        raise UserError(f"{params.shape[1]} parameters: a comparison needs two")
    figure, axes = canvas.grid(len(pairs), min(len(pairs), 4), (2.8, 2.4), margin=0.8)
    with canvas.settings():
        for ax, (x, y) in zip(axes, pairs, strict=True):
            points = ax.scatter(params[taken, x], params[taken, y], c=values, s=16,
                                cmap=cmap or canvas.MAP)  # fmt: skip
            ax.set_xscale("log" if log_ref[x] else "linear")
            ax.set_yscale("log" if log_ref[y] else "linear")
            ax.set_xlabel(canvas.text(key_ref[x]))
            ax.set_ylabel(canvas.text(key_ref[y]))
        figure.colorbar(points, ax=axes, label="accuracy")
    return figure


# ---- number grids ---------------------------------------------------------------------------


def draw_number_grid(
    arr: np.ndarray,
    number_mode: str = "default",
    precision: int = 2,
    err: np.ndarray | None = None,
) -> np.ndarray:
    """A table of numbers as a picture.

    Args:
        arr: [rows, columns].
        number_mode: 'default' (whole numbers as they are), 'hex', or 'float'.
        precision: digits behind the point.
        err: [rows, columns], shown as ± behind each.

    Returns:
        uint8 [h, w, 3], black on white.

    Raises:
        UserError: another mode, or numbers that are no table.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    texts = number_texts(arr, number_mode, precision, err)
    width = max((len(text) for row in texts for text in row), default=1)
    figure = Figure(figsize=(max(len(texts[0]), 1) * (0.09 * width + 0.15), 0.25 * len(texts)),
                    dpi=100, facecolor="white")  # fmt: skip
    _table(figure.add_axes((0, 0, 1, 1)), texts)
    agg = FigureCanvasAgg(figure)
    agg.draw()
    return np.asarray(agg.buffer_rgba())[..., :3].copy()


def number_texts(
    arr: np.ndarray,
    number_mode: str = "default",
    precision: int = 2,
    err: np.ndarray | None = None,
) -> list[list[str]]:
    """The texts of `draw_number_grid`, row by row; of what is no number '-'."""
    if number_mode not in MODES:
        raise UserError(f"number_mode '{number_mode}': expected {', '.join(MODES)}")
    arr = np.asarray(arr)
    if arr.ndim != 2 or not arr.size:
        raise UserError(f"{arr.shape}: expected a table [rows, columns]")

    def cell_text(value: Any, more: Any) -> str:
        if not np.isfinite(value):
            return "-"
        integral = float(value).is_integer() and number_mode != "float"
        text = f"{value:.{precision}f}"
        if number_mode == "hex":
            text = f"{int(value):x}"
        elif integral:
            text = f"{int(value)}"
        return text if more is None else f"{text} ± {more:.{precision}f}"

    return [[cell_text(value, None if err is None else np.asarray(err)[at, column])
             for column, value in enumerate(row)] for at, row in enumerate(arr)]  # fmt: skip


def _table(
    ax: Axes, texts: list[list[str]], values: np.ndarray | None = None, shown: bool = True
) -> None:
    """Texts in cells, coloured by their value where there is one."""
    rows, columns = len(texts), len(texts[0])
    ax.set_xlim(-0.5, columns - 0.5)
    ax.set_ylim(rows - 0.5, -0.5)
    low = high = np.nan
    if values is not None and np.isfinite(values).any():
        low, high = np.nanmin(values), np.nanmax(values)
        ax.imshow(values, cmap=canvas.MAP, aspect="auto", alpha=0.9)
    else:
        ax.set_axis_off()
    for row in range(rows if shown else 0):
        for column in range(columns):
            bright = values is None or not np.isfinite(low) or texts[row][column] == "-"
            if values is not None and not bright:
                bright = (values[row, column] - low) / ((high - low) or 1) > 0.5
            ax.text(column, row, texts[row][column], ha="center", va="center", fontsize=7,
                    color=canvas.INK if bright else "#ffffff")  # fmt: skip


def display_hyperparam_results(
    p_vals: Sequence[Sequence[Any]],
    p_acc: np.ndarray,
    p_std: np.ndarray,
    p_keys: Sequence[str],
    plt_idx: int = 2,
    x_idx: int = 0,
    y_idx: int = 1,
    plot_valid: int = 1,
    disp_text: bool = True,
    precision: int = 1,
    n_rows: int = 2,
    plt_wd: float | None = None,
    plt_ht: float | None = None,
) -> Figure:
    """Tables of accuracy for two parameters, a panel for each value of a third.

    Args:
        p_vals: the values of each parameter, as `organize_as_arr` gives them.
        p_acc: means in percent, an axis a parameter, then (train, valid); of parameters
            beyond the three, the mean is taken.
        p_std: standard deviations, likewise.
        p_keys: names of the parameters.
        plt_idx: which parameter has a panel a value.
        x_idx: which goes to the right.
        y_idx: which goes downward.
        plot_valid: 1 shows valid, 0 train.
        disp_text: write the numbers, not only their colours.
        precision: digits behind the point.
        n_rows: rows of panels.
        plt_wd: width of a panel in inches; default: as the numbers need it.
        plt_ht: its height, likewise.
    """
    wanted = (plt_idx, y_idx, x_idx)
    if len(set(wanted)) < 3 or max(wanted) >= len(p_keys):
        raise UserError(f"axes {wanted}: expected three of the {len(p_keys)} parameters")
    acc, std = (
        _average_others(np.asarray(values)[..., plot_valid], wanted)
        for values in (p_acc, p_std)
    )
    columns = -(-len(acc) // max(n_rows, 1))
    size = plt_wd or 1.0 + 0.75 * acc.shape[2], plt_ht or 0.8 + 0.32 * acc.shape[1]
    figure, axes = canvas.grid(len(acc), columns, size)
    with canvas.settings():
        for at, ax in enumerate(axes):
            texts = number_texts(acc[at], "float", precision, std[at])
            _table(ax, texts, acc[at], disp_text)
            _name_axes(ax, *(list(map(_short, p_vals[at])) for at in (x_idx, y_idx)))
            ax.set_title(f"{canvas.text(p_keys[plt_idx])} = {_short(p_vals[plt_idx][at])}")
            ax.set_xlabel(canvas.text(p_keys[x_idx]))
            ax.set_ylabel(canvas.text(p_keys[y_idx]))
    return figure


def _average_others(arr: np.ndarray, wanted: tuple[int, ...]) -> np.ndarray:
    """`arr` with these axes in this order, the mean over all others."""
    import warnings

    others = tuple(at for at in range(arr.ndim) if at not in wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a cell without a trial stays NaN
        less = np.nanmean(arr, axis=others) if others else arr
    return np.transpose(less, [sorted(wanted).index(at) for at in wanted])


def _short(value: Any) -> str:
    return canvas.text(setting(value), 16)


def _name_axes(ax: Axes, across: Sequence[str], down: Sequence[str]) -> None:
    ax.set_axis_on()
    canvas.name_ticks(ax, range(len(across)), across, 0)
    ax.set_yticks(range(len(down)), down)
    ax.tick_params(length=0)


def compare_hyper_exps(
    p_vals: Sequence[Sequence[Any]],
    p_acc: np.ndarray,
    p_std: np.ndarray,
    p_keys: Sequence[str],
    idx: int | str,
    map_ref: Mapping[str, Any] | None = None,
    control_idxs: Mapping[int | str, int] | None = None,
    disp_text: bool = True,
    precision: int = 1,
    ax: Axes | None = None,
    plt_wd: float | None = None,
    plt_ht: float | None = None,
) -> Figure:
    """A table whose columns are the values of one parameter, a row a setting of all others.

    Behind the parameters comes 'is_valid', 0 for train and 1 for valid, which is held at 1
    where nothing else is asked for.

    Args:
        p_vals: the values of each parameter, as `organize_as_arr` gives them.
        p_acc: means in percent, an axis a parameter, then (train, valid).
        p_std: standard deviations, likewise.
        p_keys: names of the parameters.
        idx: the parameter of the columns: its number or name.
        map_ref: parameter -> names of its values: a function, a dict, or a list in their order.
        control_idxs: parameter -> the position of the one value that it is held at.
        disp_text: write the numbers, not only their colours.
        precision: digits behind the point.
        ax: axes to draw in; default: a new figure.
        plt_wd: width of a new figure in inches; default: as the numbers need it.
        plt_ht: its height, likewise.
    """
    keys, values = [*p_keys, "is_valid"], [*p_vals, [0, 1]]
    across = keys.index(idx) if isinstance(idx, str) else idx
    held = {keys.index(key) if isinstance(key, str) else key % len(keys): at
            for key, at in (control_idxs or {}).items()}  # fmt: skip
    if across != len(p_keys):
        held.setdefault(len(p_keys), 1)
    rest = [at for at in range(len(keys)) if at != across and at not in held]
    where = list(np.ndindex(*(len(values[at]) for at in rest)))
    means, spreads = (_rows(np.asarray(index), rest, where, held) for index in (p_acc, p_std))

    def name(key: int, at: int) -> str:
        return _value_name((map_ref or {}).get(keys[key]), values[key][at], at)

    rows = []
    for index in where:
        pairs = [(canvas.text(keys[key]), name(key, at))
                for key, at in zip(rest, index, strict=True)]  # fmt: skip
        rows.append(", ".join(" ".join(pair) for pair in pairs))
    if ax is None:
        wide = 1.4 + 0.06 * max(map(len, rows)) + 0.75 * means.shape[1]
        _, (ax,) = canvas.grid(1, size=(plt_wd or wide, plt_ht or 0.8 + 0.3 * len(rows)))
    figure = ax.get_figure(root=True)
    assert figure
    with canvas.settings():
        texts = number_texts(means, "float", precision, spreads)
        _table(ax, texts, means, disp_text)
        _name_axes(ax, [name(across, at) for at in range(means.shape[1])], rows)
        ax.set_xlabel(canvas.text(keys[across]))
    return figure


def _rows(
    table: np.ndarray, rest: list[int], where: list[tuple[int, ...]], held: dict[int, int]
) -> np.ndarray:
    """[settings, values of the one axis that is left] of a table."""
    rows = []
    for index in where:
        place: list[Any] = [slice(None)] * table.ndim
        for at, position in [*zip(rest, index, strict=True), *held.items()]:
            place[at] = position
        rows.append(table[tuple(place)])
    return np.stack(rows)


def _value_name(names: Any, value: Any, at: int) -> str:
    if callable(names):
        return canvas.text(names(value), 16)
    if isinstance(names, Mapping):
        return canvas.text(names.get(value, value), 16)
    return canvas.text(names[at], 16) if names is not None else _short(value)
