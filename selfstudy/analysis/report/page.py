"""A page that holds everything it shows: blocks of text, tables, figures and downloads.

It loads nothing and runs no script. Whatever comes from files is escaped by the template, and
loses its control characters; only figures, which are made here, go in as they are.
"""

import base64
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jinja2
from markupsafe import Markup

from selfstudy.analysis import sheets
from selfstudy.analysis.figures import canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = Path(__file__).with_name("report.html")
LONGEST = 1000  # characters of a text from a file
_LEFT_OUT = re.compile(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", re.DOTALL)
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_NUMBERS = re.compile(r"[-+≥≤ ]*\d[\d.,e+\-±()\[\]∞ ]*(to [\d.,e+-]+)?")
_FONT = re.compile(r"'?DejaVu Sans[^;\"]*")


@dataclasses.dataclass
class Text:
    """Paragraphs; `kind` of it and of other blocks chooses how the template shows them."""

    lines: Sequence[str]
    kind: ClassVar[str] = "text"


@dataclasses.dataclass
class Table:
    """Rows of texts.

    Attributes:
        head: a heading a column.
        rows: a text a column each.
        strong: (row, column) of what is best.
        note: what it leaves out, and how it is read.
        title: what it holds, unless the chapter's title says so.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: frozenset[tuple[int, int]] = frozenset()
    note: str = ""
    title: str = ""
    kind: ClassVar[str] = "table"

    @property
    def numeric(self) -> list[bool]:
        """Of each column, whether it holds numbers, which are set to the right."""
        return [all(not row[at] or _NUMBERS.fullmatch(row[at]) for row in self.rows)
                for at in range(len(self.head))]  # fmt: skip


@dataclasses.dataclass
class Drawing:
    """A figure and what it shows."""

    svg: Markup
    caption: str
    kind: ClassVar[str] = "drawing"


@dataclasses.dataclass
class Photos:
    """Pictures as (address, caption)."""

    items: Sequence[tuple[str, str]]
    note: str = ""
    kind: ClassVar[str] = "photos"


@dataclasses.dataclass
class Facts:
    """Labels, each with its values."""

    rows: Sequence[tuple[str, Sequence[str]]]
    kind: ClassVar[str] = "facts"


@dataclasses.dataclass
class Downloads:
    """Files as (name, address, what it holds)."""

    items: Sequence[tuple[str, str, str]]
    kind: ClassVar[str] = "downloads"


@dataclasses.dataclass
class Chapter:
    """A part of the page; one without blocks is left out."""

    name: str
    title: str
    blocks: list[Any]


def clean(value: Any) -> Any:
    """A text without what could break the page, cut; other values as they are."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    if value.startswith("data:"):  # ours, and long
        return value
    value = sheets.clean(value)
    return value if len(value) <= LONGEST else f"{value[: LONGEST - 1]}…"


def inline(picture: "Figure", label: str, number: int) -> Markup:
    """A figure as an element of the page, black in the colour of the page's text.

    Args:
        picture: the figure.
        label: what it shows, for those who cannot see it.
        number: its own on the page; names inside it begin with it.
    """
    source = canvas.svg(picture, f"figure{number}").decode()
    source = _LEFT_OUT.sub("", _CONTROL.sub(" ", source[source.index("<svg") :]))
    root, _, body = source.partition(">")
    box = re.findall(r'viewBox="([\d. -]+)"', root)[0]
    wide = float(box.split()[2])
    body = re.sub(r"<[^>]+>", lambda tag: _slimmer(tag[0], f"f{number}"), body)
    head = Markup(
        '<svg class="plot" role="img" aria-label="{}" viewBox="{}" style="--wide: {:.0f}pt">'
    )
    return head.format(clean(label), box, wide) + Markup(body)  # noqa: S704  (matplotlib escapes)


def _slimmer(tag: str, prefix: str) -> str:
    """A tag of a figure with unique ids, the page's colour and font, and fewer digits."""
    tag = re.sub(r'\bid="', f'id="{prefix}-', tag)
    tag = tag.replace('href="#', f'href="#{prefix}-').replace("url(#", f"url(#{prefix}-")
    tag = tag.replace(canvas.BLACK, "currentColor")
    tag = _FONT.sub("inherit", tag)
    if "data:" in tag:
        return tag
    return re.sub(r"(\.\d\d)\d+", r"\1", tag)


def address(content: bytes, kind: str) -> str:
    """Content as a data: address."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def render(title: str, header: dict[str, Any], chapters: list[Chapter], refresh: int) -> str:
    """The page.

    Args:
        title: of the page.
        header: `lead` (paragraphs), `counts` ((status, number) each) and `facts`.
        chapters: those with blocks are shown.
        refresh: seconds after which a browser reads the page again; 0 never.
    """
    surroundings = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=clean,
    )  # fmt: skip
    template = surroundings.from_string(TEMPLATE.read_text(encoding="utf-8"))
    filled = [chapter for chapter in chapters if chapter.blocks]
    return template.render(title=title, header=header, refresh=refresh, chapters=filled)
