"""Which pictures a rendered file holds, in which rows, and how the work is cut into pieces.

Worker processes import this and what the world needs, no torch and no h5py.
"""

from typing import Any

import numpy as np

from selfstudy.render.mesh import BUCKETS

CHUNK = 100  # rows; pictures that share shapes are neighbours
TRAIN, VALID = 10, 1  # buckets, the last one is for testing


def numbers(images: int) -> np.ndarray:
    """[images] the picture of each row: bucket after bucket, in each by number."""
    return np.concatenate([np.arange(bucket, images, BUCKETS) for bucket in range(BUCKETS)])


def splits(images: int) -> dict[str, int]:
    """Rows of each split, in the order of the file."""
    sizes = _sizes(images)
    train, valid = sum(sizes[:TRAIN]), sum(sizes[TRAIN : TRAIN + VALID])
    return {"train": train, "valid": valid, "test": images - train - valid}


def chunks(images: int) -> list[tuple[int, int]]:
    """(first row, end) of pieces of at most `CHUNK` rows, each inside a bucket."""
    found, start = [], 0
    for size in _sizes(images):
        end = start + size
        found += [(first, min(first + CHUNK, end)) for first in range(start, end, CHUNK)]
        start = end
    return found


def _sizes(images: int) -> list[int]:
    return [len(range(bucket, images, BUCKETS)) for bucket in range(BUCKETS)]


def render(given: tuple[Any, int, int], chunk: tuple[int, int]) -> dict[str, np.ndarray]:
    """The arrays [rows, ...] of a piece.

    Args:
        given: the world, the number of pictures in all, and their width in pixels.
        chunk: first row and end.
    """
    world, images, res = given
    pictures = [world.picture(int(number), res) for number in numbers(images)[slice(*chunk)]]
    return {name: np.stack([each[name] for each in pictures]) for name in pictures[0]}
