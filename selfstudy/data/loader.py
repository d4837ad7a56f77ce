"""Minibatches on one device: gathered from the rows of a data set and augmented there.

On a CPU the data are the file itself, mapped; elsewhere a block is copied to the device once
and kept as stored, while the next one is read in a thread. No augmented copy is ever stored.
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
    """A 63-bit seed from any plain values, the same on every machine."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


@configurable("dataloader", denylist=["dataset", "augmentation", "device"])
class Loader:
    """Iterates over the minibatches of a round of one split.

    All randomness derives from (seed, split, round), so that a resumed run sees the same
    minibatches. A training round visits one block and drops an incomplete last minibatch,
    unless the block is smaller than one; the other splits are visited whole. Where several
    processes train one model, each has its share of the rows of every training minibatch.

    Args:
        dataset: the split.
        augmentation: bytes -> normalised views.
        device: where the minibatches are wanted.
        batch_size: images in a minibatch, of all processes together.
        num_workers: threads that read a block; 0 means one. Unused where the file is mapped.
        shuffle: visit the rows in random order; None does so for training only.

    Raises:
        UserError: a batch size or a number of threads that cannot be.
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
        """Choose the randomness and, for training, the block of a round (counted from 0)."""
        self.seed, self.round = seed, round
        self._blocks = self._blocks_of(round)

    def _blocks_of(self, round: int) -> list[np.ndarray]:
        """The rows that a round visits: one block of its epoch for training, else all."""
        epoch, part = divmod(round, self.dataset.divisions) if self.training else (round, 0)
        shuffled = self._generator("blocks", epoch, "cpu") if self.shuffle else None
        blocks = self.dataset.blocks(shuffled)
        return blocks[part : part + 1] if self.training else blocks

    def _generator(self, use: str, number: int, device: torch.device | str) -> torch.Generator:
        seed = derived_seed(f"{self.seed} {self.dataset.split} {use} {number}")
        return torch.Generator(device).manual_seed(seed)

    def __len__(self) -> int:
        return sum(len(range(0, self._used(rows), self.batch_size)) for rows in self._blocks)

    def _used(self, rows: np.ndarray) -> int:
        """How many of a block's rows make up its minibatches."""
        whole = len(rows) - len(rows) % self.batch_size
        if self.training and whole:
            return whole
        return len(rows) - len(rows) % distributed.size()

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    def batches(self, n: int = -1) -> Iterator[Batch]:
        """Exactly `n` minibatches, going round with a new order when they run out.

        Args:
            n: how many; -1 is `len(self)`, once through the round. An empty split has none.
        """
        generator = self._generator("draws", self.round, self.device)
        left = len(self) if n < 0 else n if len(self) else 0
        while left:
            for batch in islice(self._pass(generator), left):
                left -= 1
                yield batch

    def _pass(self, generator: torch.Generator) -> Iterator[Batch]:
        """Once through the blocks of the round, the next one being read meanwhile."""
        following = self._blocks[1:] + self._blocks_of(self.round + 1)[:1]
        for rows, ahead in zip(self._blocks, following, strict=True):
            block = self._reader.block(rows)
            self._reader.ahead(ahead)
            order = self._order(len(rows), generator)[: self._used(rows)]
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
        rows: [n] int64, their numbers in the file.
        columns: 'images' and targets, of these rows or, if `whole`, of the whole file.
    """

    def __init__(self, rows: Tensor, columns: dict[str, Tensor], whole: bool):
        self.rows, self.columns, self.whole = rows, columns, whole

    def gather(self, chosen: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Row numbers and columns at the positions `chosen` [B] of the block."""
        idxs = self.rows.index_select(0, chosen)
        where = idxs if self.whole else chosen
        return idxs, {name: part.index_select(0, where) for name, part in self.columns.items()}


class _Reader:
    """The block in use, and the one that is on its way to the host's memory.

    Blocks are known by the row numbers themselves, so nothing has to be kept in step.
    """

    def __init__(self, store: Store, device: torch.device, threads: int):
        self.store, self.device, self.threads = store, device, threads
        self.map = store.map() if device.type == "cpu" and store.mappable else None
        self.pool: ThreadPoolExecutor | None = None
        self.current: tuple[bytes, _Block | None] = (b"", None)
        self.coming: tuple[bytes, Future | None] = (b"", None)

    def block(self, rows: np.ndarray) -> _Block:
        """The rows on the device: as they are, read ahead, or read now."""
        key = rows.tobytes()
        if self.current[0] != key:
            self.current = (b"", None)  # free the old block before the new one comes
            self.current = (key, self._load(rows, key))
        block = self.current[1]
        assert block is not None  # it was loaded just now, or is known by its key
        return block

    def _load(self, rows: np.ndarray, key: bytes) -> _Block:
        numbers = torch.from_numpy(rows).to(self.device)
        if self.map is not None:
            return _Block(numbers, self.map, whole=True)
        expected, future = self.coming
        self.coming = (b"", None)
        host = future.result() if future and expected == key else self._read(rows)
        columns = {name: part.to(self.device, non_blocking=True) for name, part in host.items()}
        return _Block(numbers, columns, whole=False)

    def _read(self, rows: np.ndarray) -> dict[str, Tensor]:
        return self.store.read(rows, self.device.type == "cuda", self.threads)

    def ahead(self, rows: np.ndarray) -> None:
        """Begin to read the block that will be wanted next, unless it is here already."""
        key = rows.tobytes()
        if self.map is not None or key in (self.current[0], self.coming[0]):
            return
        self.pool = self.pool or ThreadPoolExecutor(1)
        self.coming = (key, self.pool.submit(self._read, rows))
