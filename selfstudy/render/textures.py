"""Texture banks for surfaces: procedural textures, or the user's pictures.

Texture `number` is in bucket `number % 12`.
"""

import hashlib
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from selfstudy.render.mesh import BUCKETS
from selfstudy.render.patterns import COUNT, SIZE, VERSION, make
from util.errors import UserError
from util.fetch import progress
from util.files import PICTURES

KEPT = 256  # textures whose mip levels are cached


class Bank:
    """Textures by number, with all mip levels.

    Args:
        texels: [n, S, S, 3] uint8, S a power of two; may be memory-mapped.
    """

    def __init__(self, texels: np.ndarray):
        self.texels = texels
        self.size = texels.shape[1]
        self.levels: dict[int, list[np.ndarray]] = {}

    def numbers(self, bucket: int) -> np.ndarray:
        """Numbers of the textures in a bucket."""
        return np.arange(bucket, len(self.texels), BUCKETS)

    def _sizes(self, texture: int) -> list[np.ndarray]:
        """Mip levels: [s s, 3] float32 in 0..1 for s = S, S / 2, ... 1."""
        if texture not in self.levels:
            level = self.texels[texture].astype(np.float32) / 255
            levels = [level]
            while len(level) > 1:
                level = level.reshape(len(level) // 2, 2, len(level) // 2, 2, 3).mean((1, 3))
                levels.append(level)
            if len(self.levels) >= KEPT:
                self.levels.pop(next(iter(self.levels)))
            self.levels[texture] = [
                np.ascontiguousarray(texels.reshape(-1, 3)) for texels in levels
            ]
        return self.levels[texture]

    def sample(self, texture: int, uv: np.ndarray, level: float) -> np.ndarray:
        """Colours [m, 3] float32 in 0..1, bilinearly interpolated.

        Args:
            texture: its number.
            uv: [m, 2], right and down, in repeats of the texture.
            level: log2 of the texels that a pixel covers; the nearest mip level is used.
        """
        sizes = self._sizes(texture)
        chosen = min(int(level + 0.5), len(sizes) - 1)
        size = self.size >> chosen
        place = uv * size - 0.5
        corner = np.floor(place)
        share = (place - corner).astype(np.float32)
        corner = corner.astype(np.int64)
        left, top = corner[:, 0] & (size - 1), (corner[:, 1] & (size - 1)) * size
        right, bottom = (left + 1) & (size - 1), (top + size) & (size * size - 1)
        texel = partial(sizes[chosen].take, axis=0)  # three times as fast as indexing
        u, v = share[:, :1], share[:, 1:]
        upper = texel(top + left) * (1 - u) + texel(top + right) * u
        lower = texel(bottom + left) * (1 - u) + texel(bottom + right) * u
        return upper * (1 - v) + lower * v


def procedural(folder: Path) -> Bank:
    """The `COUNT` textures of `patterns`, generated once and cached in `folder`."""
    return Bank(_once(Path(folder) / f".textures-{VERSION}.npy", COUNT, make))


def from_folder(folder: Path, cache: Path) -> Bank:
    """All pictures below a folder, sorted by name: centre crops, `SIZE` texels wide.

    Args:
        folder: of the pictures; names that begin with a dot are skipped.
        cache: folder for the decoded pictures, shared with other processes.

    Raises:
        UserError: fewer pictures than buckets, or an unreadable one.
    """
    files = sorted(path for path in Path(folder).rglob("*") if _is_picture(path))
    if len(files) < BUCKETS:
        raise UserError(
            f"{folder} holds {len(files)} pictures ({', '.join(sorted(PICTURES))}), expected "
            f"at least {BUCKETS}: ten to train, one to validate, one to test"
        )
    path = Path(cache) / f".textures-{_key(files)}.npy"
    return Bank(_once(path, len(files), lambda number: _square(files[number])))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES and path.name[0] != "." and path.is_file()


def _key(files: list[Path]) -> str:
    """Cache key: hash of the files' paths, sizes and times."""
    about = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr((SIZE, about)).encode()).hexdigest()[:12]


def _square(path: Path) -> np.ndarray:
    """Centre crop of a picture, EXIF orientation applied, [SIZE, SIZE, 3] uint8."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as picture:
            picture.draft("RGB", (2 * SIZE, 2 * SIZE))
            upright = ImageOps.exif_transpose(picture).convert("RGB")
            return np.asarray(ImageOps.fit(upright, (SIZE, SIZE)))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path} is not a readable picture ({error}): mend or remove it"
        ) from None


# ---- cache file ------------------------------------------------------------------------------


def _once(path: Path, count: int, make: Callable[[int], np.ndarray]) -> np.ndarray:
    """Textures [count, SIZE, SIZE, 3] of `make(number)`, cached in a file.

    The file is memory-mapped: processes share it.
    """
    kept = _load(path, count)
    if kept is not None:
        return kept
    texels = np.empty((count, SIZE, SIZE, 3), np.uint8)
    show = progress(f"making {path}", count)
    for number in range(count):
        texels[number] = make(number)
        show(number + 1)
    _save(path, texels)
    return texels


def _load(path: Path, count: int) -> np.ndarray | None:
    """The memory-mapped file, or None if it is missing or invalid."""
    try:
        texels = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError):
        return None
    expected = (count, SIZE, SIZE, 3)
    return texels if texels.shape == expected and texels.dtype == np.uint8 else None


def _save(path: Path, texels: np.ndarray) -> None:
    """Write the file atomically; a failure is ignored, the next process tries again."""
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("xb") as file:
                np.save(file, texels)
            os.replace(part, path)
    finally:
        with suppress(OSError):
            part.unlink()
