"""Small files written whole or not at all, and read back tolerantly."""

import errno
import hashlib
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from util.errors import UserError

# Names that count as pictures.
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

    A last line that a killed writer has left unfinished stays a line of its own. A link is not
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


def read_lines(path: Path) -> list[dict]:
    """The rows of a file of JSON lines; a torn last line, or no file, is no error."""
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    rows = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
