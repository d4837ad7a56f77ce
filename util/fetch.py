"""Downloads that end whole or not at all, and the line that shows how far something is."""

import hashlib
import os
import sys
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path

from util.errors import UserError

CONNECT_SECONDS = 4


def progress(text: str, total: int) -> Callable[[int], None]:
    """A function that shows how much is done: a living line on a terminal, else one line."""
    if not sys.stderr.isatty():
        print(f"{text} ({total})", file=sys.stderr)
        return lambda done: None

    def show(done: int) -> None:
        end = "\n" if done >= total else ""
        print(f"\r{text} {done}/{total}", end=end, file=sys.stderr, flush=True)

    return show


def fetch(url: str, path: Path, md5: str, advice: str) -> None:
    """Download `url` to `path`, checked, to a temporary name first.

    Args:
        url: where the file is.
        path: where it goes; its folder is made.
        md5: of the whole file, as published.
        advice: what is missing and what to do when that fails, with '{}' for the reason.

    Raises:
        UserError: no connection within `CONNECT_SECONDS`, or the wrong bytes came.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(_connect(url), part, f"downloading {url}")
        found = part.read_bytes()
        if hashlib.md5(found, usedforsecurity=False).hexdigest() != md5:
            page = found[:100].lstrip().lower().startswith((b"<!doctype", b"<html"))
            raise OSError("an HTML page came" if page else "what came has the wrong checksum")
        os.replace(part, path)
    except (OSError, ValueError) as error:
        raise UserError(advice.format(getattr(error, "reason", None) or error)) from None
    finally:
        part.unlink(missing_ok=True)


def _connect(url: str):
    """The open response; in a thread, because name look-ups ignore every time limit."""
    found = []

    def open_url() -> None:
        try:
            found.append(urllib.request.urlopen(url, timeout=CONNECT_SECONDS))
        except OSError as error:
            found.append(error)

    thread = threading.Thread(target=open_url, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    if not found:
        raise OSError("no answer")
    if isinstance(found[0], OSError):
        raise found[0]
    return found[0]


def _download(response, part: Path, text: str) -> None:
    with response, part.open("wb") as file:
        show = progress(text, int(response.headers.get("Content-Length") or 0))
        while data := response.read(1 << 20):
            file.write(data)
            show(file.tell())
