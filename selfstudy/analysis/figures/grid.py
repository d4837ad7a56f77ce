"""Figures of cells: heat maps, confusion matrices, and pictures side by side.

`selfstudy.analysis.figures` has them too, with what is said there of `save`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfstudy.analysis.figures import canvas
from selfstudy.analysis.figures.canvas import INK
from selfstudy.analysis.figures.sweep import (
    axis_label,
    counts,
    metric_values,
    missing,
    order_of,
    short_values,
    varying,
)
from util.errors import UserError, nearest
from util.text import figure as few_digits

if TYPE_CHECKING:
    import pandas


def heat_map(
    frame: "pandas.DataFrame", x: str, y: str, metric: str, save: str | Path | None = None
) -> Figure:
    """The metric for the values of two parameters, as the mean over everything else.

    Args:
        frame: of `results.trials`.
        x: a parameter, from left to right.
        y: a parameter, upward.
        metric: a column of the frame.
        save: see `selfstudy.analysis.figures`.

    Raises:
        UserError: there is no such parameter or metric.
    """
    import pandas

    values = metric_values(frame, metric)
    for name in (x, y):
        if name not in frame:
            raise UserError(f"no trial overrides '{name}'{nearest(name, varying(frame))}")
    across, up = _levels(frame.loc[:, x]), _levels(frame.loc[:, y])
    cells: dict[tuple[int, int], list[float]] = {}
    for value, column, row in zip(values, frame[x], frame[y], strict=True):
        if np.isfinite(value):
            at = list(up).index(_level(row)), list(across).index(_level(column))
            cells.setdefault(at, []).append(value)
    mean = np.full((max(len(up), 1), max(len(across), 1)), np.nan)
    for at, scores in cells.items():
        mean[at] = np.mean(scores)
    size = min(max(2.6, 0.62 * len(across)), 9), min(max(2.0, 0.4 * len(up)), 8)
    picture, (ax,) = canvas.grid(1, size=(size[0] + 1.6, size[1] + 0.8))
    if not cells:
        canvas.note(ax, f"no trial has a value of {canvas.text(metric)} yet")
    else:
        _heat(picture, ax, mean, [list(across.values()), list(up.values())], [x, y], metric)
    used = sum(map(len, cells.values()))
    canvas.caption(picture, f"mean over {canvas.quantity(used, 'trial')}",
                   counts(frame, values, metric) if used < len(frame) else "")  # fmt: skip
    table = [[list(across)[column], list(up)[row], len(scores), np.mean(scores)]
             for (row, column), scores in sorted(cells.items())]  # fmt: skip
    return canvas.finish(
        picture, pandas.DataFrame(table, columns=[x, y, "trials", metric]), save
    )


def _level(value: Any) -> str:
    return "unset" if missing(value) else repr(value)


def _levels(column: "pandas.Series") -> dict[str, str]:
    """The values of a parameter, the smallest first, with their names; unset ones before."""
    levels = {repr(value): value for value in column if not missing(value)}
    names = short_values(sorted(levels.values(), key=order_of))
    return ({"unset": "unset"} if column.map(missing).any() else {}) | names


def _heat(
    picture: Figure,
    ax: Axes,
    mean: np.ndarray,
    names: list[list[str]],
    axes: list[str],
    metric: str,
) -> None:
    low, high = np.nanmin(mean), np.nanmax(mean)
    with canvas.settings():
        image = ax.imshow(mean, cmap=canvas.MAP, aspect="auto", origin="lower")
        picture.colorbar(image, ax=ax, label=axis_label(metric))
        for (row, column), value in np.ndenumerate(mean):
            if mean.size <= 150 and np.isfinite(value):
                bright = high > low and (value - low) / (high - low) > 0.5
                ax.text(column, row, few_digits(value), ha="center", va="center", fontsize=7,
                        color=INK if bright else "#ffffff")  # fmt: skip
        long = max(map(len, names[0])) > 6
        canvas.name_ticks(ax, range(len(names[0])), names[0], 35 if long else 0)
        ax.set_yticks(range(len(names[1])), names[1])
        ax.set_xlabel(canvas.text(axes[0], 40))
        ax.set_ylabel(canvas.text(axes[1], 40))


def confusion(
    truth: Sequence[Any],
    predicted: Sequence[Any],
    names: Sequence[str] | Mapping[Any, str] | None = None,
    save: str | Path | None = None,
) -> Figure:
    """A confusion matrix: counts, coloured by their share of the row.

    Args:
        truth: [n] classes.
        predicted: [n] classes.
        names: of classes, by their number; else the classes are their own names.
        save: see `selfstudy.analysis.figures`.

    Raises:
        UserError: the two are of different lengths.
    """
    import pandas

    actual, guessed = np.asarray(truth), np.asarray(predicted)
    if actual.shape != guessed.shape or actual.ndim != 1:
        raise UserError(f"{actual.shape} classes and {guessed.shape} predictions")
    classes, place = np.unique(np.concatenate([actual, guessed]), return_inverse=True)
    count = np.zeros((len(classes), len(classes)), int)
    np.add.at(count, (place[: len(truth)], place[len(truth) :]), 1)
    share = count / np.maximum(count.sum(axis=1, keepdims=True), 1)
    labels = [_class_name(names, index) for index in classes.tolist()]
    side = min(max(2.4, 0.42 * len(classes)), 9)
    picture, (ax,) = canvas.grid(1, size=(side + 1.4, side + 0.6))
    if not len(classes):
        canvas.note(ax, "no predictions")
    else:
        _matrix(picture, ax, count, share, [canvas.text(label, 16) for label in labels])
        right = np.mean(actual == guessed)
        with canvas.settings():
            ax.set_title(f"{right:.1%} of {len(truth):,} are right")
    rows = [[labels[i], labels[j], count[i, j], share[i, j]]
            for i in range(len(classes)) for j in range(len(classes))]  # fmt: skip
    columns = ["truth", "predicted", "count", "share_of_truth"]
    return canvas.finish(picture, pandas.DataFrame(rows, columns=columns), save)


def _class_name(names: Sequence[str] | Mapping[Any, str] | None, label: Any) -> str:
    if isinstance(names, Mapping):
        return str(names.get(label, label))
    if names is not None and isinstance(label, int) and 0 <= label < len(names):
        return str(names[label])
    return str(label)


def _matrix(
    picture: Figure, ax: Axes, count: np.ndarray, share: np.ndarray, labels: list[str]
) -> None:
    with canvas.settings():
        image = ax.imshow(share, cmap=canvas.MAP, vmin=0, vmax=1)
        picture.colorbar(image, ax=ax, label="share of the row", shrink=0.8)
        for (i, j), number in np.ndenumerate(count):
            if len(labels) <= 20 and number:
                ax.text(j, i, f"{number:,}", ha="center", va="center", fontsize=7,
                        color=INK if share[i, j] > 0.5 else "#ffffff")  # fmt: skip
        step = -(-len(labels) // 40)
        at = range(0, len(labels), step)
        long = max(map(len, labels)) > 3
        canvas.name_ticks(ax, at, labels[::step], 45 if long else 0)
        ax.set_yticks(at, labels[::step])
        ax.set_xlabel("predicted")
        ax.set_ylabel("truth")


def contact_sheet(
    images: np.ndarray,
    titles: Sequence[Any] | None = None,
    columns: int = 8,
    save: str | Path | None = None,
) -> Figure:
    """Pictures in a grid.

    Args:
        images: uint8 [n, h, w, 3] or [n, h, w].
        titles: [n], one above each.
        columns: pictures in a row.
        save: see `analysis.figures`; the CSV holds the titles and the mean of each picture.

    Raises:
        UserError: something else than pictures, or another number of titles.
    """
    import pandas

    images = np.asarray(images)
    if (
        images.dtype != np.uint8
        or images.ndim not in (3, 4)
        or images.shape[3:] not in ((), (3,))
    ):
        raise UserError(f"{images.dtype} {images.shape}: expected uint8 pictures [n, h, w, 3]")
    if titles is not None and len(titles) != len(images):
        raise UserError(f"{len(titles)} titles for {len(images)} pictures")
    above = 0.2 if titles is not None else 0.0
    picture, axes = canvas.grid(len(images), max(columns, 1), (1.0, 1.0 + above))
    with canvas.settings():
        for number, (ax, image) in enumerate(zip(axes, images, strict=False)):
            ax.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            ax.set_axis_off()
            if titles is not None:
                ax.set_title(canvas.text(titles[number], 18), fontsize=7, pad=2)
    if not len(images):
        canvas.note(axes[0], "no pictures")
    numbers = pandas.DataFrame({
        "picture": range(len(images)),
        "title": [""] * len(images) if titles is None else list(map(str, titles)),
        "mean": [float(image.mean()) for image in images],
    })  # fmt: skip
    return canvas.finish(picture, numbers, save)
