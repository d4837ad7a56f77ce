"""Ctrl-C and its kin: once saves and stops, twice stops at once."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

GRACE = 10.0  # seconds that running trials have to save
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}


class Interrupted(KeyboardInterrupt):
    """The user wants to leave at once; `code` is the exit code."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code


class Interrupts:
    """While entered, the first SIGINT, SIGTERM or SIGUSR1 asks running trials to stop.

    The request is a file in the experiment's folder, since a worker that computes hears no
    message: it looks for the file between minibatches, on whatever machine it runs.

    Args:
        folder: the experiment's.

    Attributes:
        say: called once, with the reason as text.
        code: the exit code once a signal came, else 0.
    """

    def __init__(self, folder: Path):
        self.request = folder / ".stop"
        self.say: Callable[[str], None] = lambda text: None
        self.code = 0
        self.since: float | None = None

    def __enter__(self) -> "Interrupts":
        self.request.unlink(missing_ok=True)
        self.previous: dict = {}
        self.listen()
        return self

    def listen(self) -> None:
        """Take the signals, also back from Ray, which takes SIGTERM when it starts."""
        for number in CODES:
            before = signal.signal(number, self._on_signal)
            self.previous.setdefault(number, before)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.request.unlink(missing_ok=True)
        # While Ray waits it takes ours for any KeyboardInterrupt, and raises one of its own.
        if isinstance(error, KeyboardInterrupt) and not isinstance(error, Interrupted):
            raise Interrupted(self.code or CODES[signal.SIGINT]) from None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.code:
            raise Interrupted(self.code)
        self.code = CODES[signal.Signals(number)]
        self.stop("stopping: running trials save and end; once more ends at once")

    def stop(self, why: str) -> None:
        """Ask running trials to save and stop."""
        if self.since is None:
            self.since = time.monotonic()
            self.request.touch()
            self.say(why)

    @property
    def stopping(self) -> bool:
        """Whether running trials were asked to stop."""
        return self.since is not None

    @property
    def overdue(self) -> bool:
        """Whether they had their time."""
        return self.since is not None and time.monotonic() - self.since > GRACE
