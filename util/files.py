"""Small files: written whole or not at all, read back without trust in their content."""

import errno
import hashlib
import json
import math
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

from util.errors import UserError

MAX_BYTES = 1 << 28  # of a file that is read; a million rounds need less
MAX_DEPTH = 32  # levels of nested values
# NaN and the like are no JSON; ours are written as null.
_DECODER = json.JSONDecoder(parse_constant=lambda _: None)
# File name suffixes of images.
PICTURES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def given_folder(argument: str, place: str, root: Path) -> Path:
    """The folder that a user names: absolute, from the home folder (~), or inside `root`.

    It is made absolute, since a worker's current folder is not the user's.

    Raises:
        UserError: there is none.
    """
    folder = (root / Path(place).expanduser()).absolute()
    if not place or not folder.is_dir():
        raise UserError(
            f"{argument} = '{place}': no folder {folder}; give an absolute path or one inside "
            "DATA_DIR"
        )
    return folder


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable (a no-op where folders cannot be opened)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to a temporary file beside `path`, sync it and rename it into place."""
    path = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def plain(value: Any) -> Any:
    """`value` as strict JSON can hold it: tuples become lists, NaN and infinities None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "item"):
        return plain(value.item())
    return str(value)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented strict JSON, whole or not at all."""
    write_text(path, json.dumps(plain(value), indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file; `ValueError` when it is damaged."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def append_line(path: Path, row: dict) -> None:
    """Append one row of strict JSON in a single write, so that lines never interleave.

    A last line that a killed writer has left unfinished stays a separate line. A link is not
    followed: in a stranger's folder it could lead to any file of the user's.
    """
    line = json.dumps(plain(row), allow_nan=False) + "\n"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            line = "\n" + line
        data = line.encode()
        if os.write(handle, data) < len(data):  # as much as the disk still had room for
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(handle)


def write_lines(path: Path, rows: list[dict]) -> None:
    """Write rows as lines of strict JSON, whole or not at all."""
    write_text(path, "".join(json.dumps(plain(row), allow_nan=False) + "\n" for row in rows))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines; a torn line, or no file, is no error.

    Raises:
        UserError: as for `scan_lines`.
    """
    return scan_lines(path)[0]


def scan_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The objects in a file of JSON lines, and the number of lines that hold none.

    A missing file is an empty one.

    Raises:
        UserError: the file exists and cannot be read, is no plain file (a link is not
            followed), or is larger than `MAX_BYTES`.
    """
    try:
        text = read_text(path)
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    rows, torn = [], 0
    for line in filter(None, text.split("\n")):
        try:
            value = _parse(line)
        except ValueError:
            value = None
        if isinstance(value, dict):
            rows.append(value)
        else:
            torn += 1
    return rows, torn


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        OSError: as for `read_text`.
        ValueError: the file holds something else, or is nested too deeply.
    """
    value = _parse(read_text(path))
    if not isinstance(value, dict):
        raise ValueError("it holds no JSON object")
    return value


def read_text(path: Path) -> str:
    """The text of a plain file, undecodable bytes replaced.

    A link is not followed: in a stranger's folder it could show any file of the user's.

    Raises:
        OSError: it is missing, is no plain file, or is larger than `MAX_BYTES`.
    """
    with open(_open(path, MAX_BYTES), encoding="utf-8", errors="replace") as file:
        return file.read()


def read_bytes(path: Path, most: int) -> bytes:
    """The bytes of a plain file, under the same rules.

    Raises:
        OSError: it is missing, is no plain file, or is larger than `most` bytes.
    """
    with open(_open(path, most), "rb") as file:
        return file.read()


def _open(path: Path, most: int) -> int:
    """A descriptor of a plain file of at most `most` bytes; links are refused."""
    # NONBLOCK: opening a pipe would wait for its other end.
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(f"{path} is no plain file")
        if about.st_size > most:
            raise OSError(f"{path} has {about.st_size} bytes, more than {most}")
    except OSError:
        os.close(handle)
        raise
    return handle


def _parse(text: str) -> Any:
    """The value of a JSON text, `ValueError` when it is nested too deeply."""
    try:
        value = _DECODER.decode(text)
        too_deep = isinstance(value, (dict, list)) and _is_too_deep(value)
    except RecursionError:
        value, too_deep = None, True
    if too_deep:
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
    return value


def _is_too_deep(value: dict | list, levels: int = MAX_DEPTH) -> bool:
    """Whether a value is nested deeper than code that recurses over it should have to go."""
    items = value.values() if isinstance(value, dict) else value
    inner = [item for item in items if isinstance(item, (dict, list))]
    return bool(inner) and (not levels or any(_is_too_deep(item, levels - 1) for item in inner))


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
