"""Preparation of a data file: resizing, splits, normalisation constants, writing."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import torch
from torch.nn import functional as F

from selfstudy.types import Target
from util import hdf5
from util.errors import UserError
from util.fetch import progress


@dataclass
class Source:
    """Images and targets to be written to a data file.

    Attributes:
        count: N.
        images: blocks [n, 3, H, W] uint8 RGB, N rows in all; for samples of several pictures
            [n, F, 3, H, W].
        targets: array name in the file -> [N] int64, or as declared (`BaseDataset.declare`):
            an array [N, ...] or its blocks [n, ...].
        splits: rows per split in file order; without 'valid', it is cut off the end of
            'train' when the file is opened.
        fit: number of leading rows from which mean and std are computed.
        classes: names of the classes; empty when there are no labels.
    """

    count: int
    images: Iterable[np.ndarray]
    targets: Mapping[str, np.ndarray | Iterable[np.ndarray]]
    splits: dict[str, int]
    fit: int
    classes: list[str] = field(default_factory=list)


def _ranks(labels: np.ndarray, draw: np.random.RandomState) -> np.ndarray:
    """[N] random rank of each row within its class, from 0."""
    order = draw.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    ranks = np.empty(len(labels), np.int64)
    ranks[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return ranks


def balanced_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Row order of which every prefix has equally many rows of each class (+-1).

    An exhausted class is skipped. `RandomState` is frozen: the order is the same with every
    version of numpy.
    """
    draw = np.random.RandomState(seed)
    ranks = _ranks(labels, draw)
    turn = draw.permutation(int(labels.max()) + 1)
    return np.lexsort((turn[labels], ranks))


def stratified_order(labels: np.ndarray, sizes: dict[str, int], seed: int) -> np.ndarray:
    """[N] row numbers, split after split, each with the class proportions of the whole.

    Args:
        labels: [N] int64; constant where there are none.
        sizes: rows of 'train', 'valid' and 'test', N in all.
        seed: of the assignment; the order within a split is random, too.
    """
    draw = np.random.RandomState(seed)
    ranks = _ranks(labels, draw)
    order = np.argsort((ranks + draw.uniform(size=len(labels))) / np.bincount(labels)[labels])
    ends = np.cumsum([sizes["test"], sizes["valid"]])
    test, valid, train = (draw.permutation(part) for part in np.split(order, ends))
    return np.concatenate([train, valid, test])


def resize(images: np.ndarray, res: int) -> np.ndarray:
    """Bytes [..., C, h, w] as RGB bytes [..., 3, res, res]: bilinear, grey repeated."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).flatten(0, -4)
    if tuple(pixels.shape[2:]) != (res, res):
        pixels = F.interpolate(pixels.float(), (res, res), mode="bilinear", antialias=True)
        pixels = pixels.round().clamp(0, 255).byte()
    return pixels.expand(-1, 3, -1, -1).numpy().reshape(*images.shape[:-3], 3, res, res)


def fill(
    file: h5py.File, path: Path, source: Source, kinds: Mapping[str, Target] | None = None
) -> None:
    """Write the images, targets, normalisation and splits of `source` into a new file.

    Args:
        file: open for writing.
        path: its final name, for messages.
        source: what to write.
        kinds: array -> its kind; other arrays are classes.
    """
    file.attrs["splits"] = json.dumps(source.splits)
    file.attrs["classes"] = json.dumps(source.classes)
    file.attrs["space"] = "rgb"
    kinds = kinds or {}
    if missing := [name for name in kinds if name not in source.targets]:
        raise UserError(
            f"{path}: the data set declares '{missing[0]}' and its source has no such target"
        )
    declared = {name: item for name, item in source.targets.items() if name in kinds}
    for name, values in source.targets.items():
        if name not in declared:
            file[name] = np.asarray(values, np.int64)
    show = progress(f"preparing {path}", source.count)
    sums, squares, pixels, done = np.zeros(3), np.zeros(3), 0, 0
    data: h5py.Dataset | None = None
    for block in source.images:
        if data is None:
            data = file.create_dataset("data", (source.count, *block.shape[1:]), np.uint8)
        data[done : done + len(block)] = block
        fit = block[: max(0, source.fit - done)].astype(np.float64)
        fit = fit.reshape(-1, *fit.shape[-3:])  # all frames alike
        sums += fit.sum((0, 2, 3))
        squares += (fit**2).sum((0, 2, 3))
        pixels += fit[:, 0].size
        done += len(block)
        show(done)
    mean = sums / pixels
    file.attrs["mean"] = mean
    file.attrs["std"] = np.sqrt(squares / pixels - mean**2).clip(hdf5.STD_FLOOR)
    for name, values in declared.items():
        height, width = hdf5.array(file, "data").shape[-2:]
        shape = kinds[name].shape(source.count, height, width)
        _write(file, name, values, shape, kinds[name].stored)


def _write(
    file: h5py.File,
    name: str,
    values: np.ndarray | Iterable[np.ndarray],
    shape: tuple[int, ...],
    dtype: str,
) -> None:
    """Write a declared target, given as an array or as blocks, in its kind's dtype."""
    array, done = file.create_dataset(name, shape, dtype), 0
    for block in [values] if isinstance(values, np.ndarray) else values:
        if block.shape[1:] != shape[1:] or done + len(block) > len(array):
            raise UserError(
                f"target '{name}' comes as {list(block.shape)} behind {done} rows: expected "
                f"{list(shape)} in all, as declared"
            )
        array[done : done + len(block)] = _convert(name, block, np.dtype(dtype))
        done += len(block)
    if done != len(array):
        raise UserError(f"target '{name}' has {done} rows and there are {len(array)} images")


def _convert(name: str, values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Cast `values` to `dtype`; an integer type must represent them exactly."""
    with np.errstate(invalid="ignore", over="ignore"):
        converted = values.astype(dtype)
    if dtype.kind in "iu" and not np.array_equal(converted, values):
        raise UserError(
            f"target '{name}' has values of {values.min():g} to {values.max():g} that are no "
            f"{dtype}: declare another dtype (Target.dtype)"
        )
    return converted


def in_blocks(images: np.ndarray, convert: Callable) -> Iterator[np.ndarray]:
    """Yield `convert(block)` for blocks of the images, to save memory."""
    for start in range(0, len(images), 1000):
        yield convert(images[start : start + 1000])
