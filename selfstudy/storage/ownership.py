"""Which process may write to a trial's folder."""

import contextlib
import uuid
from pathlib import Path

import paths
from util import files


class Superseded(Exception):
    """Another process continues this trial; this one was taken for dead and may not write."""


class Ownership:
    """A random token in the folder, which the next owner replaces by its own.

    Args:
        folder: of the trial; it is claimed at once.
    """

    def __init__(self, folder: Path):
        self._file, self._token = folder / paths.WRITER, uuid.uuid4().hex
        files.write_text(self._file, self._token)

    def require(self) -> None:
        """Raise `Superseded` in a worker that was cut off and has been replaced."""
        with contextlib.suppress(FileNotFoundError):
            if self._file.read_text() != self._token:
                raise Superseded(f"{self._file.parent.name} is continued by another process")
