"""Arrays of images in HDF5 files: written once, then mapped or read straight by everyone.

The layout: `data` [N, 3, H, W] and further arrays [N, ...], contiguous and unfiltered, so that
all processes of a machine share one copy in memory. A content hash in the attributes, not a
filter, detects damage. Files may come from strangers, so only plain arrays are accepted.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from util.errors import UserError, nearest
from util.files import sync_folder

os.environ["HDF5_PLUGIN_PRELOAD"] = "::"  # before h5py: a file must not load filter plugins

import h5py  # noqa: E402

SCHEMA = 1
STD_FLOOR = 1.0  # of 255, the least 'std', for channels that never vary
ATTRIBUTES = ("classes", "mean", "recipe", "schema", "space", "splits", "std")
DTYPES = ("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
FILTERS = (None, "gzip", "lzf")
# Deflate and LZF cannot shrink further than this; a larger array was declared, not written.
MAX_RATIO = 1100
HASH_BYTES = 1 << 24
CHUNK_CACHE = 1 << 26
AGAIN = "delete it and prepare it again (python misc/data.py prepare NAME) or download it again"


def open_file(path: Path) -> h5py.File:
    """The HDF5 file at `path`, for reading, without locks (data folders may be read-only).

    Raises:
        UserError: it is missing, empty, truncated, an HTML page or no HDF5 file.
    """
    try:
        return h5py.File(path, "r", locking=False, rdcc_nbytes=CHUNK_CACHE)
    except OSError as error:
        raise UserError(f"{path} {_trouble(Path(path), error)}") from None


@contextmanager
def _reading(path: Path) -> Iterator[h5py.File]:
    """`open_file`; damage that h5py only notices later becomes the same kind of error."""
    with open_file(path) as file:
        try:
            yield file
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise UserError(f"{path} is damaged ({error}): {AGAIN}") from error


def _trouble(path: Path, error: OSError) -> str:
    """Why `path` could not be opened, and what to do about it."""
    if not path.exists():
        return "is missing"
    if not path.is_file() or not os.access(path, os.R_OK):
        return "is not a readable file"
    head = path.open("rb").read(512)
    if not head:
        return f"is empty: {AGAIN}"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return f"looks like an HTML page - the download failed: {AGAIN}"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return f"is truncated or damaged ({error}): {AGAIN}"
    return f"is not an HDF5 file: {AGAIN}"


def array(file: h5py.File, name: str) -> h5py.Dataset:
    """The array `name` of an open file, after the checks that a stranger's file needs.

    Raises:
        UserError: it is absent, a link, stored elsewhere, of a type or filter that is not
            expected, or declared larger than what was written.
    """
    link = file.get(name, getlink=True)
    where = f"'{name}' in {file.filename}"
    if link is None:
        raise UserError(f"{file.filename} has no array '{name}'{nearest(name, map(str, file))}")
    if not isinstance(link, h5py.HardLink):
        raise UserError(f"{where} is a link: only arrays inside the file itself are read")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim == 0:
        raise UserError(f"{where} is not an array")
    if dataset.external is not None or dataset.is_virtual:
        raise UserError(f"{where} is stored in another file: only arrays inside are read")
    if dataset.dtype.newbyteorder("=").name not in DTYPES:
        raise UserError(
            f"{where} has type {dataset.dtype}, expected one of {', '.join(DTYPES)}"
        )
    if dataset.compression not in FILTERS or dataset.scaleoffset is not None:
        raise UserError(f"{where} has an unknown filter, expected none, gzip or lzf")
    written = dataset.id.get_storage_size() * (MAX_RATIO if dataset.compression else 1)
    if dataset.nbytes > written:
        raise UserError(f"{where} declares {dataset.nbytes} bytes but was not fully written")
    return dataset


@dataclass(frozen=True)
class Place:
    """Where an array lies.

    Attributes:
        shape: (N, ...).
        dtype: in the machine's byte order.
        offset: of its first byte in the file; None when it cannot be mapped (chunked,
            compressed, foreign byte order).
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int | None


def locate(path: Path, name: str) -> Place:
    """Where the array `name` of the file at `path` lies; errors as for `array`."""
    with _reading(path) as file:
        dataset = array(file, name)
        dtype, offset = dataset.dtype, dataset.id.get_offset()
        if offset is None or not dtype.isnative or offset % dtype.itemsize:
            offset = None
        elif offset + dataset.nbytes > os.path.getsize(path):
            raise UserError(f"{path} is truncated: {AGAIN}")
        return Place(dataset.shape, dtype.newbyteorder("="), offset)


def attributes(path: Path) -> dict:
    """The attributes of our layout that the file has, as plain values (`sha256` included)."""
    with _reading(path) as file:
        return _attributes(file, (*ATTRIBUTES, "sha256"))


def _attributes(file: h5py.File, names: tuple[str, ...]) -> dict:
    stored = {name: file.attrs[name] for name in names if name in file.attrs}
    values = {name: np.asarray(value).tolist() for name, value in stored.items()}
    for name in {"classes", "recipe", "splits"} & set(values):
        try:
            values[name] = json.loads(values[name])
        except (TypeError, ValueError):
            raise UserError(f"{file.filename} has a damaged '{name}': {AGAIN}") from None
    return values


def has(path: Path, name: str) -> bool:
    """Whether the file at `path` holds something called `name`."""
    with _reading(path) as file:
        return file.get(name, getlink=True) is not None


def open_map(path: Path, name: str) -> Tensor:
    """The whole array as a tensor [N, ...] that shares the file's pages, without a copy.

    An array that cannot be mapped is read. The mapping is private ('c'): torch needs memory
    that may be written, and whatever is written stays in this process.
    """
    place = locate(path, name)
    if place.offset is None or 0 in place.shape:
        return read(path, name, np.arange(place.shape[0]))
    mapped = np.memmap(path, place.dtype, "c", place.offset, place.shape)
    return torch.from_numpy(mapped)


def read(
    path: Path, name: str, rows: np.ndarray, pin: bool = False, threads: int = 1
) -> Tensor:
    """The given rows in one freshly allocated block [len(rows), ...] on the host.

    Args:
        path: the file.
        name: the array.
        rows: int64 row numbers, in any order, also repeated; runs of neighbours are one read.
        pin: allocate page-locked memory, from which a GPU copies asynchronously.
        threads: how many read at once (for network file systems).
    """
    place = locate(path, name)
    block = _block((len(rows), *place.shape[1:]), place.dtype, pin)
    read_into(block, path, name, rows, threads)
    return block


def read_into(block: Tensor, path: Path, name: str, rows: np.ndarray, threads: int = 1) -> None:
    """`read` into memory that is there: contiguous, of the array's type, [len(rows), ...]."""
    place = locate(path, name)
    if len(rows) and not 0 <= rows.min() <= rows.max() < place.shape[0]:
        raise IndexError(f"rows {rows.min()}..{rows.max()} of {place.shape[0]} in {path}")
    array = block.numpy()
    if array.shape != (len(rows), *place.shape[1:]) or array.dtype != place.dtype:
        raise ValueError(f"block {array.shape} {array.dtype} for {len(rows)} rows of {place}")
    runs = list(_runs(rows))
    if place.offset is None:
        _read_slowly(path, name, runs, array)
    elif block.numel():
        _read_straight(path, place, runs, array, threads)


def _block(shape: tuple[int, ...], dtype: np.dtype, pin: bool) -> Tensor:
    """Memory for a block; numpy's comes in huge pages, three times as fast to touch first."""
    if not pin:
        return torch.from_numpy(np.empty(shape, dtype))
    return torch.empty(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, pin_memory=True)


def _runs(rows: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(position in the block, first row, count) of each run of consecutive rows."""
    starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
    counts = np.diff(starts, append=len(rows))
    return zip(starts.tolist(), rows[starts].tolist(), counts.tolist(), strict=True)


def _read_slowly(path: Path, name: str, runs: list, block: np.ndarray) -> None:
    """Through h5py, in the order of the file, so that no chunk is unpacked twice."""
    with _reading(path) as file:
        dataset = array(file, name)
        for at, row, count in sorted(runs, key=lambda run: run[1]):
            dataset.read_direct(block, np.s_[row : row + count], np.s_[at : at + count])


def _read_straight(path: Path, place: Place, runs: list, block: np.ndarray, threads: int):
    """From the file's bytes to the block's, without HDF5 in between."""
    size = block[0].nbytes
    view = block.reshape(-1).view(np.uint8).data
    handle = os.open(path, os.O_RDONLY)

    def read(part: list) -> None:
        for at, row, count in part:
            _fill(handle, view[at * size : (at + count) * size], place.offset + row * size)

    try:
        if threads <= 1:
            read(runs)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(read, (runs[first::threads] for first in range(threads))))
    finally:
        os.close(handle)


def _fill(handle: int, view: memoryview, offset: int) -> None:
    """Read `len(view)` bytes at `offset`; the system may hand them over in several parts."""
    while len(view):
        got = os.preadv(handle, [view], offset)
        if not got:
            raise UserError(f"a data file was truncated while it was read: {AGAIN}")
        view, offset = view[got:], offset + got


def content_hash(path: Path) -> str:
    """The SHA-256 of all arrays (name, type, shape, bytes) and of our attributes but itself."""
    with _reading(path) as file:
        return _content_hash(file)


def _content_hash(file: h5py.File) -> str:
    return digest(
        {name: array(file, name) for name in map(str, file)}, _attributes(file, ATTRIBUTES)
    )


def digest(arrays: Mapping[str, Any], attributes: dict) -> str:
    """The SHA-256 that a file with these arrays and attributes (plain values) has."""
    total = hashlib.sha256()
    for name, values in sorted(arrays.items()):
        total.update(f"{name} {values.dtype.str} {values.shape}\n".encode())
        step = max(1, HASH_BYTES // max(1, values.nbytes // max(1, len(values))))
        for start in range(0, len(values), step):
            total.update(np.ascontiguousarray(values[start : start + step]).data)
    total.update(json.dumps(attributes, sort_keys=True).encode())
    return total.hexdigest()


def create(path: Path, fill: Callable[[h5py.File], None]) -> None:
    """Make the file at `path` unless it is there; `fill` writes its arrays and attributes.

    Everything happens under a lock and on a hidden temporary file that is hashed, synced and
    renamed at the end: a process that is killed leaves nothing at `path`, and one that comes
    second waits and finds the finished file.

    Raises:
        UserError: the folder or the file cannot be written.
    """
    once(path, lambda: _create(path, fill))


def once(path: Path, make: Callable[[], None]) -> None:
    """Call `make`, which makes the file at `path`, unless it is there; under a lock.

    Raises:
        UserError: the folder or the file cannot be written.
    """
    if path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path):
            if not path.exists():
                make()
    except OSError as error:
        raise UserError(f"could not prepare {path}: {error}") from error


def _create(path: Path, fill: Callable[[h5py.File], None]) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        # From this version on attributes (long lists of class names) may exceed 64 KiB.
        with h5py.File(part, "w", libver="v110") as file:
            fill(file)
            file.attrs["schema"] = SCHEMA
            file.flush()
            file.attrs["sha256"] = _content_hash(file)
        publish(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def publish(part: Path, path: Path) -> None:
    """Give a complete file its name, once it is safe on disk."""
    with part.open("rb") as written:
        os.fsync(written.fileno())
    os.replace(part, path)
    sync_folder(path.parent)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the lock beside `path`; the system frees it when its holder dies."""
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process that prepares {path}", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
