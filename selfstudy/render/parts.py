"""An HDF5 file written in chunks, in any order, resumable over several runs.

Until complete, it consists of two hidden files: `.<name>.part`, raw bytes with every array at
its final offset, and `.<name>.ledger`, the recipe and the rows that are synced to disk. HDF5's
own structures are written around the arrays at the end; this step is repeatable, so that a
killed process loses at most the latest rows.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from util import hdf5
from util.errors import UserError
from util.files import append_line, plain, read_lines

h5py = hdf5.h5py  # as that module has set it up
ALIGN = 64  # bytes; alignment for mapping arrays of any dtype
Arrays = dict[str, tuple[tuple[int, ...], np.dtype]]


class Part:
    """An incomplete file at `path`.

    For use by one process at a time, as inside `hdf5.once`.

    Args:
        path: of the complete file.
        arrays: name -> shape [N, ...] and dtype.
        recipe: plain values; a partial file with another recipe is discarded.

    Attributes:
        done: (first row, end) of the chunks already written.
        discarded: whether a partial file with another recipe was discarded.

    Raises:
        UserError: the disk is too full.
    """

    def __init__(self, path: Path, arrays: Arrays, recipe: dict[str, Any]):
        self.path, self.arrays = path, arrays
        self.file = path.with_name(f".{path.name}.part")
        self.ledger = path.with_name(f".{path.name}.ledger")
        self.places, size = self._frame({})
        header = plain({"recipe": recipe, "places": self.places, "size": size})
        self.done, self.discarded = self._resume(header, size)
        self._check_room(size)
        if not self.done:
            self._begin(header, size)

    def _resume(self, header: dict, size: int) -> tuple[set[tuple[int, int]], bool]:
        """The chunks already written, and whether a partial file was discarded."""
        first, *rows = read_lines(self.ledger) or [{}]
        if not self.file.exists():
            return set(), False
        if first != header or self.file.stat().st_size < size:
            return set(), "recipe" in first
        return {tuple(row["rows"]) for row in rows if "rows" in row}, False

    def _begin(self, header: dict, size: int) -> None:
        self.ledger.unlink(missing_ok=True)  # first, since it must never describe other bytes
        with self.file.open("wb") as file:
            file.truncate(size)
        append_line(self.ledger, header)

    def _check_room(self, size: int) -> None:
        free = shutil.disk_usage(self.path.parent).free
        written = self.file.stat().st_blocks * 512 if self.done else 0
        if size - written > free:
            raise UserError(
                f"{self.path} needs {(size - written) / 1e9:.2f} GB more and there are "
                f"{free / 1e9:.2f}: make room, ask for fewer images, or set SELFSTUDY_DATA to "
                "another disk"
            )

    # ---- content ---------------------------------------------------------------------------

    def write(self, rows: tuple[int, int], values: dict[str, np.ndarray]) -> None:
        """Write a chunk, given by first row and end, and sync it to disk.

        Raises:
            UserError: the disk is full; earlier chunks are kept.
        """
        handle = os.open(self.file, os.O_WRONLY)
        try:
            for name, (shape, kind) in self.arrays.items():
                piece = values[name]
                expected = (rows[1] - rows[0], *shape[1:])
                if piece.shape != expected or piece.dtype != kind:
                    raise ValueError(f"'{name}': {piece.shape} {piece.dtype} for {expected}")
                row_bytes = kind.itemsize * int(np.prod(shape[1:]))
                _put(
                    handle, np.ascontiguousarray(piece), self.places[name] + rows[0] * row_bytes
                )
            os.fsync(handle)
            append_line(self.ledger, {"rows": rows})
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(
                f"the disk of {self.path} is full: make room and start again, what is there "
                "stays"
            ) from None
        finally:
            os.close(handle)
        self.done.add(rows)

    def map(self) -> dict[str, np.ndarray]:
        """The arrays, memory-mapped for reading."""
        return {
            name: np.memmap(self.file, kind, "r", self.places[name], shape)
            for name, (shape, kind) in self.arrays.items()
        }

    # ---- completion -------------------------------------------------------------------------

    def finish(self, attributes: dict[str, Any]) -> str:
        """Convert to the complete file at `path`; returns its SHA-256.

        Args:
            attributes: plain values, readable by `hdf5.attributes`.
        """
        attributes = plain(attributes) | {"schema": hdf5.SCHEMA}
        attributes["sha256"] = hdf5.digest(self.map(), attributes)
        places, _ = self._frame(attributes, into=self.file)
        if places != self.places:
            raise RuntimeError(f"{self.path}: the arrays have moved")
        hdf5.publish(self.file, self.path)
        self.ledger.unlink()
        return attributes["sha256"]

    def _frame(self, attributes: dict, into: Path | None = None) -> tuple[dict[str, int], int]:
        """Offset of each array and the size of the HDF5 file, from one without content.

        Args:
            attributes: of the file, stored after the arrays, whose offsets they do not change.
            into: file to which all bytes outside the arrays are copied.
        """
        frame = self.path.with_name(f".{self.path.name}.frame")
        try:
            places = _write_frame(frame, self.arrays, attributes)
            size = frame.stat().st_size
            if into:
                _copy(frame, into, list(self._gaps(size)), size)
        finally:
            frame.unlink(missing_ok=True)
        return places, size

    def _gaps(self, size: int) -> Iterator[tuple[int, int]]:
        """(first byte, end) of the ranges between the arrays."""
        at = 0
        for start, name in sorted((start, name) for name, start in self.places.items()):
            yield at, start
            shape, kind = self.arrays[name]
            at = start + kind.itemsize * int(np.prod(shape))
        yield at, size


def _write_frame(path: Path, arrays: Arrays, attributes: dict) -> dict[str, int]:
    """Write an HDF5 file whose arrays are sparse (no disk space is used)."""
    hole = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    hole.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    hole.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    with h5py.File(
        path, "w", libver="v110", alignment_threshold=1, alignment_interval=ALIGN
    ) as file:
        for name, (shape, kind) in arrays.items():
            file.create_dataset(name, shape, kind, dcpl=hole)
        places = {name: file[name].id.get_offset() for name in arrays}
        for name, value in attributes.items():
            nested = isinstance(value, dict) or name == "classes"
            file.attrs[name] = json.dumps(value) if nested else value
    return places


def _copy(source: Path, target: Path, ranges: list[tuple[int, int]], size: int) -> None:
    """Copy byte ranges to the same offsets of a file of `size` bytes."""
    with source.open("rb") as read, target.open("r+b") as write:
        for start, end in ranges:
            read.seek(start)
            write.seek(start)
            write.write(read.read(end - start))
        write.truncate(size)


def _put(handle: int, piece: np.ndarray, offset: int) -> None:
    """Write all bytes at `offset`, in several system calls if necessary."""
    view = piece.reshape(-1).view(np.uint8).data
    while len(view):
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written
