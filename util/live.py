"""Drawing on a terminal: a table that fits into it, a bar, and the region that both live in."""

import contextlib
import dataclasses
import sys
from collections.abc import Callable

from rich.cells import cell_len, set_cell_size
from rich.color import ColorSystem
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.style import Style
from rich.table import Table
from rich.text import Text

from util.errors import printable

GAP = 2  # columns of the terminal between two of the table
LEAST, MOST = 8, 24  # of a value that may be shortened, with the two dots that say so
BAR = 30


@dataclasses.dataclass
class Column:
    """A column of the table.

    Attributes:
        head: its heading.
        cells: one text per row.
        right: numbers, aligned to the right.
        spare: where the terminal is narrow, columns of the greatest `spare` go first.
        shrinks: whether its texts may be shortened.
        styles: rich style of each cell.
    """

    head: str
    cells: list[str]
    right: bool = False
    spare: int = 0
    shrinks: bool = False
    styles: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.head, self.cells = printable(self.head), [printable(cell) for cell in self.cells]
        wide = max(map(cell_len, [self.head, *self.cells]))
        self.width = min(wide, MOST) if self.shrinks else wide

    @property
    def least(self) -> int:
        """The width below which it is of no use."""
        if not self.shrinks:
            return self.width
        # Half a number says nothing; a heading and a word can still be guessed.
        width = max(map(cell_len, self.cells), default=0) if self.right else 0
        return min(self.width, max(width, LEAST))

    def pad(self, text: str) -> str:
        """One of its texts, as wide as the column."""
        text = shorten(text, self.width)
        space = " " * (self.width - cell_len(text))
        return space + text if self.right else text + space


def shorten(text: str, width: int) -> str:
    """At most `width` columns of the terminal; an ellipsis marks a cut."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, width - 2) + ".." if width > 2 else set_cell_size(text, width)


def fit(columns: list[Column], width: int) -> list[Column]:
    """The columns that fit side by side: the spare ones left out, then the widest shortened."""
    kept = list(columns)
    while len(kept) > 1 and _width(kept, [column.least for column in kept]) > width:
        kept.remove(max(kept, key=lambda column: column.spare))
    while _width(kept, [column.width for column in kept]) > width:
        wide = [column for column in kept if column.width > column.least]
        if not wide:
            break
        max(wide, key=lambda column: column.width).width -= 1
    return kept


def _width(columns: list[Column], widths: list[int]) -> int:
    return sum(widths) + GAP * (len(columns) - 1)


def board(columns: list[Column], dim: list[bool], notes: list[str]) -> RenderableType:
    """Columns, as `fit` returned them, with the rows in `dim` held back and lines below.

    Put together by hand: `rich.table` takes ten times as long, and this is drawn all the time.
    """
    text = Text(no_wrap=True, overflow="crop")
    text.append((" " * GAP).join(column.pad(column.head) for column in columns), "bold")
    for row, quiet in enumerate(dim):
        for place, column in enumerate(columns):
            style = column.styles[row] if column.styles else ""
            text.append(" " * GAP if place else "\n")
            text.append(column.pad(column.cells[row]), "dim" if quiet else style)
    for note in notes:
        text.append("\n" + printable(note))
    return Group(text)  # a bare text would be wrapped by Console.print


def bar(share: float, text: str, width: int) -> RenderableType:
    """A bar, the share as a percentage, and as much of the text as fits."""
    text = printable(text)
    long = min(BAR, max(BAR // 3, width - cell_len(text) - 2 * GAP - 4))
    grid = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
    grid.add_column(width=long)
    grid.add_column(width=4, justify="right")
    grid.add_column(no_wrap=True)
    room = max(1, width - long - 2 * GAP - 4)
    grid.add_row(
        ProgressBar(total=1.0, completed=share, width=long),
        f"{share:.0%}",
        Text(shorten(text, room), no_wrap=True),
    )
    return grid


class Screen:
    """The last lines of the terminal behind stderr, drawn anew; other lines go above them."""

    def __init__(self, console: Console):
        self.console = console
        self.live = Live(
            console=console, auto_refresh=False, transient=True, vertical_overflow="crop",
            redirect_stdout=sys.stdout.isatty(),  # a pipe or file gets its data, not us
        )  # fmt: skip

    def open(self) -> None:
        """Take the lines."""
        self.live.start()

    def close(self) -> None:
        """Clear them and show the cursor again."""
        with contextlib.suppress(OSError):  # the terminal is gone
            self.live.stop()

    def draw(self, picture: Callable[[int, int], RenderableType]) -> None:
        """Draw what `picture` makes for a terminal of this width and height."""
        self.live.update(picture(*self.console.size), refresh=True)

    def say(self, text: str, style: str = "") -> None:
        """A line above."""
        self.console.print(Text(printable(text), style), soft_wrap=True)


def screen() -> Screen | None:
    """The screen behind stderr, or None where it has none that can move its cursor.

    FORCE_COLOR makes rich take a pipe for a terminal, so that is asked separately.
    """
    console = Console(stderr=True)
    return Screen(console) if sys.stderr.isatty() and console.is_interactive else None


def painter() -> Callable[[str, str], str]:
    """Colours a word of a plain line; without a terminal only if FORCE_COLOR asks for it."""
    console = Console(stderr=True)
    if console.color_system is None or console.no_color:
        return lambda text, style: text
    return lambda text, style: Style.parse(style).render(
        text, color_system=ColorSystem.STANDARD
    )
