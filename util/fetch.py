"""Downloads that complete or leave nothing, and a progress line for long loops."""

import hashlib
import os
import shutil
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from util.errors import UserError
from util.text import clock

CONNECT_SECONDS = 4
EVERY, SHORT = 30.0, 5.0  # seconds between plain lines of progress, and until the last one


def progress(text: str, total: int, unit: str = "", done: int = 0) -> Callable[[int], None]:
    """A function that shows how much is done, and how long the rest will take.

    On a terminal that is a living line; elsewhere one at the beginning, one every `EVERY`
    seconds, and one at the end unless that comes at once.

    Args:
        text: what is done.
        total: amount of work; 0 when unknown.
        unit: what is counted; its rate is shown, too.
        done: what is there already.
    """
    start, first, living = time.monotonic(), done, total and sys.stderr.isatty()
    printed = start
    if not living:
        print(f"{text} ({total})" if total else text, file=sys.stderr, flush=True)

    def show(done: int) -> None:
        nonlocal printed
        now = time.monotonic()
        end = total and done >= total
        state = _state(done, total, done - first, now - start, unit)
        if living:
            line = f"\r{_cut(text, len(state))} {state}\x1b[K"
            print(line, end="\n" if end else "", file=sys.stderr, flush=True)
        elif now - printed >= (SHORT if end else EVERY):
            printed = now
            print(f"{text}: {state}", file=sys.stderr, flush=True)

    return show


def _cut(text: str, more: int) -> str:
    """The end of a text that fits before `more` characters; a broken line would not go away."""
    room = max(12, shutil.get_terminal_size().columns - more - 2)
    return text if len(text) <= room else f"..{text[2 - room :]}"


def _state(done: int, total: int, new: int, seconds: float, unit: str) -> str:
    """Such as '300/1200, 50 images/s, 00:18 left'; `new` of them took the `seconds`."""
    rate = new / seconds if seconds > 0 else 0
    words = [f"{done}/{total}" if total else f"{done}"]
    if unit and rate:
        words.append(f"{rate:.3g} {unit}/s")
    if rate and total:
        words.append(f"{clock((total - done) / rate)} left" if done < total
                     else f"in {clock(seconds)}")  # fmt: skip
    return ", ".join(words)


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
        content = part.read_bytes()
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
            page = content[:100].lstrip().lower().startswith((b"<!doctype", b"<html"))
            raise OSError("an HTML page came" if page else "what came has the wrong checksum")
        os.replace(part, path)
    except (OSError, ValueError) as error:
        raise UserError(advice.format(getattr(error, "reason", None) or error)) from None
    finally:
        part.unlink(missing_ok=True)


def _connect(url: str):
    """The open response."""
    return within(CONNECT_SECONDS, lambda: urllib.request.urlopen(url, timeout=CONNECT_SECONDS))


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """What `call` returns; in a thread, because name look-ups ignore every time limit."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(call())
        except Exception as error:  # handed on to the caller
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise OSError(f"no answer within {seconds:g} seconds")
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def _download(response, part: Path, text: str) -> None:
    with response, part.open("wb") as file:
        show = progress(text, int(response.headers.get("Content-Length") or 0))
        while data := response.read(1 << 20):
            file.write(data)
            show(file.tell())
