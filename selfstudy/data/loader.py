"""Minibatches, gathered from the rows of a data set and augmented on the device.

On a CPU the file is memory-mapped; for other devices a block is copied to the device once, as
stored, while a thread prefetches the next one. Augmented images are never stored.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfstudy import distributed
from selfstudy.data.augment import Augmentation
from selfstudy.data.dataset import BaseDataset, Store
from selfstudy.registry import configurable
from selfstudy.types import Batch
from util.errors import UserError


def derived_seed(*parts: Any) -> int:
    """A 63-bit seed hashed from plain values, the same on every machine."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


@configurable("dataloader", denylist=["dataset", "augmentation", "device"])
class Loader:
    """Iterates over the minibatches of a round of one split.

    All randomness derives from (seed, split, round), so that a resumed run sees the same
    minibatches. A training round visits one block and drops an incomplete last minibatch,
    unless the block is smaller than one; the other splits are visited completely. With
    several processes, each gets its share of the rows of every training minibatch.

    Args:
        dataset: the split.
        augmentation: bytes -> normalised views.
        device: of the minibatches.
        batch_size: images per minibatch, over all processes.
        num_workers: threads that read a block; 0 means one. Unused if the file is mapped.
        shuffle: visit the rows in random order; None does so for training only.

    Raises:
        UserError: the batch size or number of threads is out of range.
    """

    def __init__(
        self,
        dataset: BaseDataset,
        augmentation: Augmentation,
        device: torch.device,
        batch_size: int = 128,
        num_workers: int = 0,
        shuffle: bool | None = None,
    ):
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
        ):
            if value < least:
                raise UserError(f"dataloader.{name} = {value}: expected at least {least}")
        processes = distributed.size()
        if dataset.split == "train" and batch_size % processes:
            raise UserError(
                f"dataloader.batch_size = {batch_size}: {processes} processes cannot share it "
                f"evenly; take {batch_size - batch_size % processes or processes}"
            )
        self.dataset = dataset
        self.augmentation = augmentation
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.training = dataset.split == "train"
        self.shuffle = self.training if shuffle is None else shuffle
        self.draws = 2 if dataset.double_sample else 1
        self.views = self.draws * dataset.info.frames  # of a minibatch
        self._reader = _Reader(dataset.store, self.device, max(1, num_workers))
        self.set_round(0, 0)

    def set_round(self, seed: int, round: int) -> None:
        """Set the random state and, for training, the block of a round (0-based)."""
        self.seed, self.round = seed, round
        self._blocks = self._blocks_of(round)

    def _blocks_of(self, round: int) -> list[np.ndarray]:
        """Blocks of rows visited in a round: one for training, else all."""
        epoch, part = divmod(round, self.dataset.divisions) if self.training else (round, 0)
        shuffled = self._generator("blocks", epoch, "cpu") if self.shuffle else None
        blocks = self.dataset.blocks(shuffled)
        return blocks[part : part + 1] if self.training else blocks

    def _generator(self, use: str, number: int, device: torch.device | str) -> torch.Generator:
        seed = derived_seed(f"{self.seed} {self.dataset.split} {use} {number}")
        return torch.Generator(device).manual_seed(seed)

    def __len__(self) -> int:
        return sum(len(range(0, self._usable(rows), self.batch_size)) for rows in self._blocks)

    def _usable(self, rows: np.ndarray) -> int:
        """Number of a block's rows used in its minibatches."""
        complete = len(rows) - len(rows) % self.batch_size
        if self.training and complete:
            return complete
        return len(rows) - len(rows) % distributed.size()

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    def batches(self, n: int = -1) -> Iterator[Batch]:
        """Exactly `n` minibatches, starting over in a new order at the end of the rows.

        Args:
            n: number of minibatches; -1 is `len(self)`, one pass. An empty split has none.
        """
        generator = self._generator("draws", self.round, self.device)
        left = len(self) if n < 0 else n if len(self) else 0
        while left:
            for batch in islice(self._pass(generator), left):
                left -= 1
                yield batch

    def _pass(self, generator: torch.Generator) -> Iterator[Batch]:
        """One pass over the blocks of the round, with the next one prefetched."""
        following = self._blocks[1:] + self._blocks_of(self.round + 1)[:1]
        for rows, ahead in zip(self._blocks, following, strict=True):
            block = self._reader.block(rows)
            self._reader.ahead(ahead)
            order = self._order(len(rows), generator)[: self._usable(rows)]
            for chosen in order.split(self.batch_size):
                mine = chosen[distributed.share(len(chosen))]
                yield self._batch(block, mine, generator)

    def _order(self, count: int, generator: torch.Generator) -> Tensor:
        if self.shuffle:
            return torch.randperm(count, generator=generator, device=self.device)
        return torch.arange(count, device=self.device)

    def _batch(self, block: "_Block", chosen: Tensor, generator: torch.Generator) -> Batch:
        idxs, columns = block.gather(chosen)
        images, info = columns.pop("images"), self.dataset.info
        targets = {name: info.kind(name).loaded(part) for name, part in columns.items()}
        views, targets = self.augmentation(images, targets, generator, self.draws)
        return Batch(views, targets, idxs)


class _Block:
    """Rows on the device.

    Args:
        rows: [n] int64, row numbers in the file.
        columns: 'images' and targets, of these rows or, with `has_all_rows`, of the file.
    """

    def __init__(self, rows: Tensor, columns: dict[str, Tensor], has_all_rows: bool):
        self.rows, self.columns, self.has_all_rows = rows, columns, has_all_rows

    def gather(self, chosen: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Row numbers and columns at the positions `chosen` [B] of the block."""
        idxs = self.rows.index_select(0, chosen)
        where = idxs if self.has_all_rows else chosen
        return idxs, {name: part.index_select(0, where) for name, part in self.columns.items()}


class _Reader:
    """Current block and the prefetched next one.

    Blocks are identified by their row numbers, so that no index has to be synchronised.
    """

    def __init__(self, store: Store, device: torch.device, threads: int):
        self.store, self.device, self.threads = store, device, threads
        self.map = store.map() if device.type == "cpu" and store.mappable else None
        self.pool: ThreadPoolExecutor | None = None
        self.current: tuple[bytes, _Block | None] = (b"", None)
        self.coming: tuple[bytes, Future | None] = (b"", None)

    def block(self, rows: np.ndarray) -> _Block:
        """The block on the device: the current one, the prefetched one, or read now."""
        key = rows.tobytes()
        if self.current[0] != key:
            self.current = (b"", None)  # free the old block before allocating the new one
            self.current = (key, self._load(rows, key))
        block = self.current[1]
        assert block is not None  # loaded just now, or matched by its key
        return block

    def _load(self, rows: np.ndarray, key: bytes) -> _Block:
        numbers = torch.from_numpy(rows).to(self.device)
        if self.map is not None:
            return _Block(numbers, self.map, has_all_rows=True)
        expected, future = self.coming
        self.coming = (b"", None)
        host = future.result() if future and expected == key else self._read(rows)
        columns = {name: part.to(self.device, non_blocking=True) for name, part in host.items()}
        return _Block(numbers, columns, has_all_rows=False)

    def _read(self, rows: np.ndarray) -> dict[str, Tensor]:
        return self.store.read(rows, self.device.type == "cuda", self.threads)

    def ahead(self, rows: np.ndarray) -> None:
        """Start to prefetch the next block, unless it is already loaded."""
        key = rows.tobytes()
        if self.map is not None or key in (self.current[0], self.coming[0]):
            return
        self.pool = self.pool or ThreadPoolExecutor(1)
        self.coming = (key, self.pool.submit(self._read, rows))
