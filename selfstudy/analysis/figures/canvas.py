"""What all figures share: a canvas, colours, harmless texts, and files written whole.

No pyplot: a figure belongs to its caller, and nothing is shown or kept behind the scenes.
"""

import hashlib
import io
import math
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfstudy.analysis import sheets
from util import files
from util.errors import UserError, nearest, printable

if TYPE_CHECKING:
    import pandas

BLACK = "#000000"  # texts and axes; a page in the dark replaces exactly this
INK = "#111111"  # on a coloured area, which stays bright in the dark
GREY = "#888888"
# Okabe and Ito's colours, safe for colour-blind readers, those that show on white first.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#B8A800")
MARKERS = "os^DvPX*<>hp"
LINES = ("-", "--", ":", "-.")
CODES = {
    "done": "#0072B2", "stopped": "#56B4E9", "running": "#009E73", "interrupted": "#888888",
    "failed": "#D55E00", "diverged": "#CC79A7",
}  # fmt: skip
MAP = "cividis"
WIDEST = 32  # characters of a name in a figure
DPI = 200
_SETTINGS: Any = {
    "svg.fonttype": "none", "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9,
    "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8,
    "text.color": BLACK, "axes.edgecolor": BLACK, "axes.labelcolor": BLACK,
    "xtick.color": BLACK, "ytick.color": BLACK, "axes.facecolor": "none",
}  # fmt: skip


class Picture(Figure):
    """A matplotlib figure that notebooks show, though pyplot doesn't know it."""

    def _repr_png_(self) -> bytes:
        return _render(self, "png", dpi=110, facecolor="white")


def settings() -> Any:
    """A context in which texts and axes are made as in all our figures."""
    return rc_context(rc=_SETTINGS)


def grid(
    count: int,
    columns: int = 3,
    size: tuple[float, float] = (3.4, 2.7),
    margin: float = 0.0,
    **options: Any,
) -> tuple[Picture, list[Axes]]:
    """A figure with `count` panels, without the lines that carry nothing.

    Args:
        count: of panels; 0 counts as 1.
        columns: at most, in a row.
        size: width and height of a panel in inches.
        margin: further width in inches, for a legend.
        options: of `Figure.subplots`.
    """
    count = max(count, 1)
    wide = min(count, columns)
    rows = -(-count // wide)
    with settings():
        picture = Picture(figsize=(wide * size[0] + margin, rows * size[1]), facecolor="none",
                          layout="constrained")  # fmt: skip
        axes = list(picture.subplots(rows, wide, squeeze=False, **options).flat)
        for ax in axes:
            ax.spines[["top", "right"]].set_visible(False)
        for ax in axes[count:]:
            ax.remove()
    return picture, axes[:count]


def text(value: Any, longest: int = WIDEST) -> str:
    """A stranger's text as a figure can show it.

    Without control characters, cut, and with no sign that begins a formula.
    """
    label = printable(value).encode(errors="replace").decode()
    if len(label) > longest:
        keep = longest - 1  # the end of a name matters as much as its beginning
        label = f"{label[: keep - keep // 3]}…{label[len(label) - keep // 3 :]}"
    return label.replace("$", r"\$")


def styles(names: Sequence[str], plain: str | None = None) -> dict[str, dict[str, Any]]:
    """A colour, a marker and a kind of line for each name; black and dashed for `plain`."""
    by_name = {}
    others = [name for name in names if name != plain]
    for number, name in enumerate(others):
        by_name[name] = {
            "color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)],
            "linestyle": LINES[number // len(COLORS) % len(LINES)],
        }  # fmt: skip
    if plain in names:
        by_name[plain] = {"color": BLACK, "marker": "o", "linestyle": "--"}
    return {name: by_name[name] for name in names}


def legend(where: Figure | Axes, entries: dict[str, Any], **options: Any) -> None:
    """A legend of names and what was drawn for each; in a figure at its right side."""
    if not entries:
        return
    labels = [text(name) for name in entries]
    # matplotlib leaves out what begins with an underscore.
    labels = [f"\u200a{label}" if label.startswith("_") else label for label in labels]
    options.setdefault("loc", "outside right upper" if isinstance(where, Figure) else "best")
    options = {"frameon": False, "handlelength": 2.4} | options
    with settings():
        where.legend(list(entries.values()), labels, **options)


def caption(picture: Figure, *parts: str) -> None:
    """A small line below the figure; empty parts are left out."""
    joined = "; ".join(part for part in parts if part)
    if joined:
        width = int(picture.get_figwidth() * 17)
        with settings():
            picture.supxlabel(
                "\n".join(textwrap.wrap(joined, width)), x=0.01, ha="left", fontsize=7
            )


def note(ax: Axes, message: str) -> None:
    """Say in an empty panel why there is nothing to see."""
    ax.set_axis_off()
    with settings():
        message = textwrap.fill(message, 48)
        ax.text(0.5, 0.5, message, ha="center", va="center", transform=ax.transAxes)


def outcomes(frame: "pandas.DataFrame", *regular: str) -> str:
    """Such as '2 failed, 1 stopped': trials by status, those with a `regular` one left out."""
    if "status" not in frame:
        return ""
    counts = Counter(map(str, frame["status"]))
    return ", ".join(f"{count} {text(status)}" for status, count in counts.items()
                     if status not in regular)  # fmt: skip


def quantity(number: int, noun: str) -> str:
    """Such as '1 trial' and '2 trials'."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def repeats(fewest: int, most: int) -> str:
    """What a line and its shade are, for a caption."""
    if most < 2:
        return "one repeat, no interval"
    number = f"{most}" if fewest == most else f"{fewest} to {most}"
    return f"mean of n = {number} repeats, shaded: its 95 % bootstrap interval"


def check_metric(metric: str, frame: "pandas.DataFrame") -> None:
    """Refuse a metric that is no column.

    Raises:
        UserError: no trial has it.
    """
    if metric not in frame:
        raise UserError(f"no trial has a metric '{metric}'{nearest(metric, list(frame))}")


def short(amount: float) -> str:
    """A number of labels in few characters, such as 250, 4k and 1.5M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if amount >= size:
            return f"{amount / size:.3g}{unit}"
    return f"{amount:g}"


APART = 0.09  # the smallest distance of two ticks, as a share of the axis


def label_ticks(ax: Axes, amounts: Iterable[float]) -> None:
    """A log axis with ticks at these numbers, as many as do not overlap.

    Args:
        ax: the axes.
        amounts: positive numbers.
    """
    amounts = sorted(set(amounts))
    if not amounts:
        return
    ax.set_xscale("log")
    width = math.log(amounts[-1] / amounts[0]) or 1.0
    kept: list[float] = []
    for amount in amounts:
        if not kept or math.log(amount / kept[-1]) / width >= APART:
            kept.append(amount)
    ax.set_xticks(kept, [short(amount) for amount in kept])
    ax.set_xticks([], minor=True)


def name_ticks(ax: Axes, places: Iterable[float], names: Sequence[str], slant: float) -> None:
    """Ticks with names below the axes, rotated by `slant` degrees."""
    with settings():
        ax.set_xticks(list(places), names, rotation=slant, rotation_mode="anchor",
                      ha="right" if slant else "center", va="top")  # fmt: skip


def shades() -> Any:
    """A colour map for lines: without the ends that vanish on white or black."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap([colormaps[MAP](0.1 + 0.78 * at / 255) for at in range(256)])


def round_ticks(low: float, high: float, log: bool, integers: bool = False) -> list[float]:
    """Round numbers from `low` to `high`, about five; powers of ten on a logarithmic axis."""
    from matplotlib.ticker import MaxNLocator

    if log:
        powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
        places = [10.0**power for power in powers][:: -(-len(powers) // 5) or 1]
    else:
        ticks = MaxNLocator(5, integer=integers).tick_values(low, high)
        places = [float(at) for at in ticks if low <= at <= high]
    return places if len(places) > 1 else sorted({low, high})


def on_log(values: Sequence[float]) -> bool:
    """Whether numbers spread so far that only a logarithmic axis shows them."""
    return len(values) > 0 and min(values) > 0 and max(values) / min(values) >= 20


# ---- files ----------------------------------------------------------------------------------


def finish(picture: Figure, numbers: "pandas.DataFrame", save: str | Path | None) -> Figure:
    """The figure itself, once it is saved where `save` says.

    Args:
        picture: the figure.
        numbers: what it shows.
        save: a path without suffix: `<save>.svg`, `<save>.png` and `<save>.csv` are written,
            each whole or not at all; None writes nothing.

    Raises:
        UserError: they cannot be written.
    """
    if save is None:
        return picture
    table = sheets.csv(numbers)
    contents = {
        # white, since its letters are black and a page around it may be, too
        "svg": svg(picture, hashlib.sha256(table.encode()).hexdigest()[:16], "white"),
        "png": _render(picture, "png", dpi=DPI, facecolor="white"),
        "csv": table.encode(),
    }
    try:
        for path, content in zip(paths_of(save), contents.values(), strict=True):
            files.write_bytes(path, content)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {save}: {why}") from None
    return picture


def paths_of(save: str | Path) -> list[Path]:
    """The files that `finish` writes: SVG, PNG and CSV."""
    return [Path(f"{save}.{suffix}") for suffix in ("svg", "png", "csv")]


def svg(picture: Figure, salt: str, background: str = "none") -> bytes:
    """The figure as SVG: letters as text, no date, the same for the same `salt`.

    Args:
        picture: the figure.
        salt: what names inside the picture are made from, one a figure of a page.
        background: its colour, "none" to see the page through.
    """
    with rc_context({"svg.hashsalt": salt}):
        return _render(picture, "svg", metadata={"Date": None}, facecolor=background)


def png(picture: Figure, dpi: int) -> bytes:
    """The figure as PNG."""
    return _render(picture, "png", dpi=dpi)


def _render(picture: Figure, kind: str, **options: Any) -> bytes:
    content = io.BytesIO()
    with rc_context(rc=_SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a stranger's letters
        picture.savefig(content, format=kind, **options)
    return content.getvalue()
