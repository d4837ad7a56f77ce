"""The bank of textures from which surfaces are coloured: procedural ones, or people's pictures.

Texture `number` lies in bucket `number % 12`.
"""

import os
import tempfile
from pathlib import Path

import numpy as np

from selfstudy.render.mesh import BUCKETS
from selfstudy.render.patterns import COUNT, SIZE, VERSION, make
from util.errors import UserError
from util.fetch import progress

ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
KEPT = 256  # textures whose sizes are kept


class Bank:
    """Textures by number, in all sizes down to one texel.

    Args:
        texels: [n, S, S, 3] uint8, S a power of two; may be a mapped file.
    """

    def __init__(self, texels: np.ndarray):
        self.texels = texels
        self.size = texels.shape[1]
        self.levels: dict[int, list[np.ndarray]] = {}

    def numbers(self, bucket: int) -> np.ndarray:
        """The textures of a bucket."""
        return np.arange(bucket, len(self.texels), BUCKETS)

    def _sizes(self, texture: int) -> list[np.ndarray]:
        """The texture [s s, 3] float32 in 0..1 for s = S, S / 2, ... 1."""
        if texture not in self.levels:
            level = self.texels[texture].astype(np.float32) / 255
            found = [level]
            while len(level) > 1:
                level = level.reshape(len(level) // 2, 2, len(level) // 2, 2, 3).mean((1, 3))
                found.append(level)
            if len(self.levels) >= KEPT:
                self.levels.pop(next(iter(self.levels)))
            self.levels[texture] = [np.ascontiguousarray(each.reshape(-1, 3)) for each in found]
        return self.levels[texture]

    def sample(self, texture: int, uv: np.ndarray, level: float) -> np.ndarray:
        """Colours [m, 3] float32 in 0..1, interpolated linearly in both directions.

        Args:
            texture: its number.
            uv: [m, 2], right and down, in repeats of the texture.
            level: the logarithm (base 2) of the texels that a pixel covers; the nearest size
                is used.
        """
        sizes = self._sizes(texture)
        chosen = min(int(level + 0.5), len(sizes) - 1)
        size = self.size >> chosen
        place = uv * size - 0.5
        corner = np.floor(place)
        share = (place - corner).astype(np.float32)
        corner = corner.astype(np.int64)
        left, top = (corner & (size - 1)).T
        right, bottom = ((corner + 1) & (size - 1)).T
        table = sizes[chosen]
        u, v = share[:, :1], share[:, 1:]
        upper = table[top * size + left] * (1 - u) + table[top * size + right] * u
        lower = table[bottom * size + left] * (1 - u) + table[bottom * size + right] * u
        return upper * (1 - v) + lower * v


def procedural(folder: Path) -> Bank:
    """The `COUNT` textures of `patterns`, made once and kept in `folder`."""
    path = Path(folder) / f".textures-{VERSION}.npy"
    try:
        return Bank(np.load(path, mmap_mode="r"))
    except (OSError, ValueError, EOFError):
        pass
    texels = np.empty((COUNT, SIZE, SIZE, 3), np.uint8)
    show = progress(f"making {path}", COUNT)
    for number in range(COUNT):
        texels[number] = make(number)
        show(number + 1)
    _keep(path, texels)
    return Bank(texels)


def _keep(path: Path, texels: np.ndarray) -> None:
    """Write the file whole or not at all; where that cannot be, the next process tries."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            np.save(file, texels)
        os.replace(name, path)
    except OSError:
        return


def from_folder(folder: Path) -> Bank:
    """All pictures below a folder, sorted by name: the central square, `SIZE` texels wide.

    Raises:
        UserError: fewer than one a bucket, or one that cannot be read.
    """
    from PIL import Image, ImageOps

    found = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in ENDINGS)
    if len(found) < BUCKETS:
        raise UserError(
            f"{folder} holds {len(found)} pictures ({', '.join(sorted(ENDINGS))}), expected "
            f"at least {BUCKETS}: ten to train, one to validate, one to test"
        )
    texels = np.empty((len(found), SIZE, SIZE, 3), np.uint8)
    for index, path in enumerate(found):
        try:
            with Image.open(path) as picture:
                fitted = ImageOps.fit(picture.convert("RGB"), (SIZE, SIZE))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(
                f"{path} is not a readable picture ({error}): mend or remove it"
            ) from None
        texels[index] = fitted
    return Bank(texels)
