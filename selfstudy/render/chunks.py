"""Row order of a rendered file, and division of the rendering into chunks.

Imported by worker processes: depends on the world only, not on torch or h5py.
"""

from typing import Any

import numpy as np

from selfstudy.render.mesh import BUCKETS

CHUNK = 100  # rows; pictures with common shapes are adjacent
TRAIN, VALID = 10, 1  # buckets; the last one is the test split


def numbers(images: int) -> np.ndarray:
    """[images] picture number of each row: sorted by bucket, then number."""
    return np.concatenate([np.arange(bucket, images, BUCKETS) for bucket in range(BUCKETS)])


def splits(images: int) -> dict[str, int]:
    """Number of rows of each split, in file order."""
    sizes = _sizes(images)
    train, valid = sum(sizes[:TRAIN]), sum(sizes[TRAIN : TRAIN + VALID])
    return {"train": train, "valid": valid, "test": images - train - valid}


def chunks(images: int) -> list[tuple[int, int]]:
    """(first row, end) of chunks of at most `CHUNK` rows, each within a bucket."""
    pieces, start = [], 0
    for size in _sizes(images):
        end = start + size
        pieces += [(first, min(first + CHUNK, end)) for first in range(start, end, CHUNK)]
        start = end
    return pieces


def _sizes(images: int) -> list[int]:
    return [len(range(bucket, images, BUCKETS)) for bucket in range(BUCKETS)]


def render(settings: tuple[Any, int, int], chunk: tuple[int, int]) -> dict[str, np.ndarray]:
    """Render a chunk: its arrays [rows, ...].

    Args:
        settings: the world, the total number of pictures, and their width in pixels.
        chunk: first row and end.
    """
    world, images, res = settings
    pictures = [world.picture(int(number), res) for number in numbers(images)[slice(*chunk)]]
    return {name: np.stack([picture[name] for picture in pictures]) for name in pictures[0]}
