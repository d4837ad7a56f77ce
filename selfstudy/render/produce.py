"""Rendering of a data set to its HDF5 file, resumable and in any number of processes."""

import functools
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from selfstudy.render import chunks, workers
from selfstudy.render.parts import Part
from selfstudy.render.world import World
from util import hdf5
from util.errors import UserError
from util.fetch import progress

LEAST, WIDTHS = 12, (8, 1024)  # images: one per bucket; pixels
BLOCK = 10000  # images per block for the moments
# Executes a function for each task: (function, context, tasks) -> (task, result) pairs.
Spread = Callable[[Callable, Any, Iterable], Generator[tuple[Any, Any], None, None]]


def produce(
    path: Path,
    world: World,
    images: int,
    res: int,
    processes: int,
    distribute: Spread | None = None,
) -> int:
    """Render the file at `path` unless it exists; resumes an interrupted one.

    Its content depends on the world, `images` and `res` only.

    Args:
        path: of the HDF5 file.
        world: what is rendered, see `selfstudy.render.world`.
        images: number of pictures, at least one for each of the 12 buckets.
        res: width and height in pixels.
        processes: worker processes on this machine; 1 renders in this process.
        distribute: executes the chunks elsewhere, such as on a cluster.

    Returns:
        Number of pictures rendered now.

    Raises:
        UserError: an argument is out of range, the disk is full, or a process was killed.
    """
    check(images, res, processes)
    rendered = []

    def make() -> None:
        part = Part(path, arrays(world, images, res), recipe(world, images, res))
        rendered.append(_fill(part, world, images, res, distribute or _here(images, processes)))
        part.finish(_attributes(part, world, images))

    hdf5.once(path, make)
    return sum(rendered)


def seconds(objects: int, images: int, res: int) -> float:
    """Estimated rendering time on one core of 2.5 GHz (measured at 32 to 128 pixels)."""
    return images * (0.006 + 0.0065 * objects + 0.002 * (res / 64) ** 2)


def check(images: int, res: int, processes: int) -> None:
    """Refuse sizes that are out of range."""
    for text, value, least, most in (
        ("images", images, LEAST, sys.maxsize),
        ("pixels", res, *WIDTHS),
        ("processes", processes, 1, 10000),
    ):
        if not least <= value <= most:
            upper = f" to {most}" if most < sys.maxsize else " or more"
            raise UserError(f"{value} {text}: expected {least}{upper}")


def arrays(world: World, images: int, res: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape [images, ...] and dtype of the file's arrays, by name."""
    return {
        name: ((images, *shape), np.dtype(kind))
        for name, (shape, kind) in world.arrays(res).items()
    }


def recipe(world: World, images: int, res: int) -> dict[str, Any]:
    """Everything that determines the file's bytes, for its attribute 'recipe'."""
    return {"world": world.recipe(), "images": images, "res": res}


def _here(images: int, processes: int) -> Spread:
    pieces = len(chunks.chunks(images))
    return functools.partial(workers.spread, workers=min(processes, pieces))


def _fill(part: Part, world: World, images: int, res: int, distribute: Spread) -> int:
    """Render the missing chunks; returns their number of pictures."""
    if part.discarded:
        print(f"{part.path}: what was begun with other settings is thrown away",
              file=sys.stderr)  # fmt: skip
    left = [rows for rows in chunks.chunks(images) if rows not in part.done]
    first = done = images - sum(end - start for start, end in left)
    if part.done:
        print(f"{part.path}: continuing, {done} of {images} pictures are there",
              file=sys.stderr)  # fmt: skip
    _ = world.bank  # create the textures here, not in every process
    show = progress(f"rendering {part.path}", images, "pictures", done)
    with closing(distribute(chunks.render, (world, images, res), left)) as results:
        for rows, values in results:
            part.write(rows, values)
            done += rows[1] - rows[0]
            show(done)
    return done - first


def _attributes(part: Part, world: World, images: int) -> dict[str, Any]:
    splits = chunks.splits(images)
    mean, std = moments(part.map()["data"][: splits["train"]])
    return {
        "classes": list(world.classes),
        "mean": mean,
        "std": std,
        "recipe": recipe(world, images, part.arrays["data"][0][-1]),
        "space": "rgb",
        "splits": splits,
    }


def moments(data: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of bytes [N, 3, H, W], exactly."""
    counts = np.zeros((3, 256), np.int64)
    for start in range(0, len(data), BLOCK):
        block = data[start : start + BLOCK]
        counts += [np.bincount(block[:, at].ravel(), minlength=256) for at in range(3)]
    values = np.arange(256)
    total = counts.sum(1)
    mean = counts @ values / total
    std = np.sqrt(counts @ values**2 / total - mean**2)
    return mean.tolist(), std.clip(hdf5.STD_FLOOR).tolist()
