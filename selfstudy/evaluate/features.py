"""Feature cache: every row of a split through a frozen encoder, once.

A table is an HDF5 file beside the snapshot (or elsewhere), memory mapped when it is read, so
that neither writing nor reading needs memory for all of it. Its name ends in a hash of all
inputs, so that a stale table is never read.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import torch
from torch import Tensor, nn

from selfstudy.data.dataset import BaseDataset
from selfstudy.evaluate.encoder import Encoder, Pixels
from selfstudy.types import IGNORED
from util import hdf5
from util.errors import UserError
from util.fetch import progress

SCHEMA = 1  # part of the cache key; raise it when tables change otherwise
SETTLING = 5000
BATCH, BATCH_PIXELS = 256, 2**22  # images together, at most, and their pixels


@dataclass(frozen=True)
class Table:
    """Features on the disk.

    Attributes:
        path: the file; an array a layer, and 'rows'.
    """

    path: Path

    @property
    def rows(self) -> np.ndarray:
        """[N] int64, the row of the data file that each feature belongs to."""
        return hdf5.open_map(self.path, "rows").numpy()

    def layer(self, name: str = "embedding") -> Tensor:
        """[N, D] (a map: [N, D, h, w]), sharing the file's memory."""
        return hdf5.open_map(self.path, name)


def table(
    encoder: Encoder | Pixels,
    data: BaseDataset,
    layers: tuple[str, ...] = ("embedding",),
    rows: np.ndarray | None = None,
    folder: Path | None = None,
    dtype: Literal["float16", "float32"] = "float16",
) -> Table:
    """The features of a split, from the cache if they are there.

    Args:
        encoder: the frozen network.
        data: the split; bytes of any data set, or images normalised as the encoder's were.
        layers: names of the encoder's outputs.
        rows: of the data file, sorted; None takes the split's, each once.
        folder: where the file goes; None is the snapshot's folder.
        dtype: as which they are stored.

    Raises:
        UserError: an unknown layer, data that the encoder cannot read, features that are not
            finite as `dtype`, or a folder that cannot be written.
    """
    rows = np.unique(data.rows) if rows is None else rows
    check(encoder, data)
    folder = folder or encoder.snapshot.folder
    name = f"features_{data.split}_{key(encoder, data, layers, rows, dtype)}.h5"

    def fill(file: h5py.File) -> None:
        file["rows"] = rows
        file.attrs["snapshot"], file.attrs["data"] = encoder.snapshot.name, str(data.path)
        show, done = progress(f"features of the {data.split} images", len(rows)), 0
        for block in _blocks(encoder, data, layers, rows):
            for layer, values in block.items():
                stored = values.to(getattr(torch, dtype)).cpu().numpy()
                _write(file, layer, done, len(rows), stored)
            done += len(values)
            show(done)

    hdf5.create(folder / name, fill)
    return Table(folder / name)


def key(
    encoder: Encoder | Pixels,
    data: BaseDataset,
    layers: tuple[str, ...],
    rows: np.ndarray,
    dtype: str,
) -> str:
    """Cache key: the first 12 hex digits of a hash of all inputs."""
    about = data.path.stat()
    content = data.attributes.get("sha256") or (
        str(data.path),
        about.st_size,
        about.st_mtime_ns,
    )
    weights = encoder.kind, encoder.snapshot.card["sha256"], encoder.snapshot.config
    weights += (encoder.info,)
    rows_hash = hashlib.sha256(np.ascontiguousarray(rows, np.int64).tobytes()).hexdigest()
    text = repr((SCHEMA, weights, content, data.split, rows_hash, layers, dtype))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def check(encoder: Encoder | Pixels, data: BaseDataset) -> None:
    """Refuse stored images that were normalised differently, which cannot be undone exactly."""
    ours, theirs = encoder.info, data.info
    same = (ours.space, ours.mean, ours.std) == (theirs.space, theirs.mean, theirs.std)
    if theirs.stored != "uint8" and not same:
        raise UserError(
            f"{data.path} holds normalised {theirs.space} images and {encoder.snapshot.name} "
            f"wants {ours.space} ones of mean {ours.mean}: use a file of bytes"
        )


def _blocks(
    encoder: Encoder | Pixels, data: BaseDataset, layers: tuple[str, ...], rows: np.ndarray
) -> Iterator[dict[str, Tensor]]:
    """Layer -> features, of up to `BATCH` rows at a time."""
    step = max(1, min(BATCH, BATCH_PIXELS // data.info.input_res**2))
    array = data.store.fields["images"]
    for start in range(0, len(rows), step):
        images = hdf5.read(data.path, array, rows[start : start + step])
        outputs = encoder.from_bytes(images) if images.dtype == torch.uint8 else encoder(images)
        if unknown := [name for name in layers if name not in outputs]:
            raise UserError(f"no layer is called '{unknown[0]}' (known: {', '.join(outputs)})")
        yield {name: outputs[name] for name in layers}


def settle(encoder: Encoder, data: BaseDataset) -> None:
    """Set an untrained network's batch norm statistics from up to `SETTLING` images.

    Without it the features are worse, a baseline too easy to beat.
    """
    for module in encoder.backbone.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # the plain mean over all minibatches
    rows = np.unique(data.rows)
    spread = np.linspace(0, len(rows) - 1, min(SETTLING, len(rows))).astype(np.int64)
    encoder.backbone.train()
    for _ in _blocks(encoder, data, (), rows[spread]):
        pass
    encoder.backbone.eval()


def _write(file: h5py.File, layer: str, at: int, total: int, values: np.ndarray) -> None:
    """Features [n, ...] of one layer at their place in the file."""
    if not np.isfinite(values).all():
        raise UserError(f"'{layer}' has values that are no {values.dtype}: try float32")
    array = file.require_dataset(layer, (total, *values.shape[1:]), values.dtype)
    array[at : at + len(values)] = values


def pixels(
    maps: Tensor, classes: Tensor, images: Tensor, count: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Random positions of feature maps, each at most once, and the classes there.

    Args:
        maps: [N, D, h, w].
        classes: [N, h, w] int64; positions of the class -100 are never chosen.
        images: [n] int64, which of the maps to draw from.
        count: of positions, as far as there are so many.
        seed: of the choice.

    Returns:
        Features [P, D] and classes [P].
    """
    shape = classes.shape[1:]
    known = (classes[images].flatten() != IGNORED).nonzero()[:, 0]
    chosen = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))[:count]
    image, row, column = torch.unravel_index(known[chosen].sort().values, (len(images), *shape))
    image = images[image]
    return maps[image, :, row, column], classes[image, row, column]
