"""Draw the contact sheets of docs/explanation/worlds.md into docs/figures.

python docs/make_worlds.py
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from selfstudy.render.mesh import BUCKETS  # noqa: E402
from selfstudy.render.world import World  # noqa: E402

FIGURES = ROOT / "docs" / "figures"
FACTORS = ("0000", "1000", "0100", "0010", "0001", "1111")
ACROSS = 10
SCENES = 6
# Background, then the classes.
COLORS = np.array(
    [[30, 30, 30], [230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178],
     [213, 94, 0], [204, 121, 167], [150, 150, 150], [120, 80, 40], [170, 220, 120]], np.uint8
)  # fmt: skip


def grid(rows: list[list[np.ndarray]], path: Path) -> None:
    """Write rows of pictures [H, W, 3] uint8 as one file, one pixel apart."""
    size = rows[0][0].shape[0] + 1
    page = Image.new("RGB", (size * len(rows[0]) - 1, size * len(rows) - 1), "white")
    for line, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            page.paste(Image.fromarray(picture), (column * size, line * size))
    page.save(path, quality=88, subsampling=0)
    print(path.relative_to(ROOT))


def image(world: World, number: int, res: int) -> np.ndarray:
    """A picture as [H, W, 3]."""
    return world.picture(number, res)["data"].transpose(1, 2, 0)


def of_classes(bits: str) -> list[list[np.ndarray]]:
    """A row per class, of pictures with different shapes."""
    world = World(bits)
    chosen: list[list[int]] = [[] for _ in world.classes]
    shown: set[tuple[int, int]] = set()
    number = 0
    while min(map(len, chosen)) < ACROSS:
        (model,) = world.models(number)
        if model not in shown and len(chosen[model[0]]) < ACROSS:
            shown.add(model)
            chosen[model[0]].append(number)
        number += 1
    return [[image(world, number, 64) for number in numbers] for numbers in chosen]


def of_factors() -> list[list[np.ndarray]]:
    """A row per variant, with the same scenes."""
    numbers = range(0, BUCKETS * ACROSS, BUCKETS)
    return [[image(World(bits), number, 64) for number in numbers] for bits in FACTORS]


def of_labels() -> list[list[np.ndarray]]:
    """Scenes of four objects: picture, segments, depth, normals."""
    world = World("1111", objects=4)
    rows: list[list[np.ndarray]] = [[], [], [], []]
    for number in range(0, BUCKETS * SCENES, BUCKETS):
        arrays = world.picture(number, 128)
        there, depth = arrays["depth"] > 0, arrays["depth"].astype(float)
        shade = np.where(there, 255 * (2.0 - depth).clip(0, 1.3) / 1.3, 0).astype(np.uint8)
        rows[0].append(arrays["data"].transpose(1, 2, 0))
        rows[1].append(COLORS[arrays["segment"]])
        rows[2].append(np.repeat(shade[..., None], 3, 2))
        rows[3].append(
            (arrays["normals"].astype(int) + 127).astype(np.uint8).transpose(1, 2, 0)
        )
    return rows


def main() -> None:
    """Draw all contact sheets."""
    grid(of_classes("0000"), FIGURES / "world-0000.jpg")
    grid(of_classes("1111"), FIGURES / "world-1111.jpg")
    grid(of_factors(), FIGURES / "world-factors.jpg")
    grid(of_labels(), FIGURES / "world-multi.jpg")


if __name__ == "__main__":
    main()
