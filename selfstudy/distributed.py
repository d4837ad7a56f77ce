"""Collectives of one trial's processes; other code never asks how many there are.

Each process has a copy of the model and its share of every minibatch: rows lie in the order of
the ranks. Without a process group, and inside `single_process`, there is one process, and
everything here returns what it was given. What is random in a model is drawn by `draw_share`,
so that two processes with half a minibatch each do what one does with all of it.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from util.errors import UserError

_BUCKET = 2**24  # numbers per all-reduce: 64 MiB of float32

_alone = False


class Lost(RuntimeError):
    """A collective failed: another process is gone or out of step."""


def size() -> int:
    """World size: how many processes train the model."""
    together = not _alone and dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if together else 1


def rank() -> int:
    """Rank of this process, from 0."""
    return dist.get_rank() if size() > 1 else 0


@contextlib.contextmanager
def single_process() -> Iterator[None]:
    """A `with` block with world size 1, in which nothing is exchanged (evaluation)."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def _call(function: Callable, *args: Any, **kwargs: Any) -> None:
    """Run a collective; a failure becomes `Lost`."""
    try:
        function(*args, **kwargs)
    except RuntimeError as error:
        raise Lost(str(error)) from error


def share(count: int) -> slice:
    """Slice of this process among `count` rows; the remainder is dropped."""
    rows = count // size()
    return slice(rank() * rows, (rank() + 1) * rows)


def offset(rows: Tensor) -> int:
    """Index of this process's first row among the rows of all."""
    return rank() * len(rows)


def draw_share(draw: Callable[[int], Tensor], count: int) -> Tensor:
    """The share of this process in random rows that all processes draw alike.

    Args:
        draw: draws that many rows, from a generator in the same state in all processes (as
            torch's default one is).
        count: rows of this process.
    """
    rows = draw(count * size())
    return rows[share(len(rows))]


class _Gather(torch.autograd.Function):
    """All-gather of rows with gradients: backward all-reduces and takes the own slice."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        ctx.where = share(len(rows) * size())
        return _gathered(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        _call(dist.all_reduce, grad)
        return grad[ctx.where]


def _gathered(rows: Tensor) -> Tensor:
    rows = rows.detach().contiguous()
    everyone = rows.new_empty(size() * len(rows), *rows.shape[1:])
    _call(dist.all_gather, list(everyone.chunk(size())), rows)
    return everyone


def gather(rows: Tensor) -> Tensor:
    """The rows of all processes, [N, ...] of [B, ...] each, with gradients.

    Backward sums the gradients of all processes' losses with respect to this process's rows.
    Since gradients of weights are averaged afterwards, they are those of the mean loss.
    """
    return _Gather.apply(rows) if size() > 1 else rows


def gather_detached(rows: Tensor) -> Tensor:
    """The rows of all processes, [N, ...], without gradient."""
    return _gathered(rows) if size() > 1 else rows.detach()


def all_to_all(rows: Tensor) -> Tensor:
    """A minibatch of equal parts of all processes' rows, without gradient.

    Applied twice it is the identity. It shuffles batch norm (MoCo, arXiv 1911.05722, section
    3.3): minibatches are in random order anyway, so that a fixed exchange is as good as a
    random permutation, and each row travels once.

    Raises:
        UserError: the processes do not divide the rows.
    """
    if size() == 1:
        return rows
    if len(rows) % size():
        raise UserError(
            f"MomentumEncoder.shuffle_batch_norm: {size()} processes cannot exchange equal "
            f"parts of {len(rows)} images each; make dataloader.batch_size a multiple of "
            f"{size() ** 2}"
        )
    mixed = torch.empty_like(rows := rows.detach().contiguous())
    _call(dist.all_to_all_single, mixed, rows)
    return mixed


@torch.no_grad()
def all_reduce_mean_(tensors: Iterable[Tensor]) -> None:
    """All-reduce tensors to their means over the processes, in place."""
    if size() == 1:
        return
    for bucket in _buckets(tensors):
        flat = torch.cat([item.reshape(-1) for item in bucket])
        _call(dist.all_reduce, flat)
        flat /= size()
        parts = flat.split([item.numel() for item in bucket])
        torch._foreach_copy_(
            bucket, [part.view(item.shape) for part, item in zip(parts, bucket, strict=True)]
        )


def average_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Average the gradients of all processes.

    Before they are unscaled, so that all processes see the same inf and NaN.
    """
    params = (item for group in optimizer.param_groups for item in group["params"])
    all_reduce_mean_(item.grad for item in params if item.grad is not None)


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Groups of tensors of one type, about `_BUCKET` numbers each."""
    bucket: list[Tensor] = []
    count = 0
    for item in tensors:
        if bucket and (count >= _BUCKET or bucket[0].dtype != item.dtype):
            yield bucket
            bucket, count = [], 0
        bucket.append(item)
        count += item.numel()
    if bucket:
        yield bucket


@torch.no_grad()
def broadcast_(tensors: Iterable[Tensor]) -> None:
    """Broadcast tensors of rank 0, in place."""
    if size() == 1:
        return
    for item in tensors:
        whole = item.contiguous()
        _call(dist.broadcast, whole, 0)
        item.copy_(whole)


def broadcast_object(value: Any) -> Any:
    """The object of rank 0: plain values and CPU tensors."""
    if size() == 1:
        return value
    held = [value]
    _call(dist.broadcast_object_list, held, 0)
    return held[0]


def gather_objects(value: Any) -> list[Any]:
    """The objects of all processes, by rank: plain values and CPU tensors."""
    if size() == 1:
        return [value]
    objects: list[Any] = [None] * size()
    _call(dist.all_gather_object, objects, value)
    return objects


class SyncBatchNorm(nn.SyncBatchNorm):
    """Batch norm over the minibatches of all processes; torch's own has no CPU kernel."""

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, ...] to the same."""
        if size() == 1 or not self.training:
            return nn.modules.batchnorm._BatchNorm.forward(self, images)
        if images.device.type != "cpu":
            return super().forward(images)
        narrow = images.dtype in (torch.float16, torch.bfloat16)
        wide, over = images.float() if narrow else images, [0, *range(2, images.ndim)]
        variance, mean = torch.var_mean(wide, over, correction=0)
        mean, variance = pool_moments(mean, variance)
        self._remember(mean.detach(), variance.detach(), size() * wide[:, 0].numel())
        scale = (variance + self.eps).rsqrt()
        shift = -mean * scale
        if self.affine:
            scale, shift = scale * self.weight, shift * self.weight + self.bias
        shape = (-1, *[1] * (images.ndim - 2))
        return (wide * scale.view(shape) + shift.view(shape)).to(images.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.running_mean is None:
            return
        assert self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        keep = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, keep)
        self.running_var.lerp_(variance * (count / (count - 1)), keep)


def pool_moments(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over all processes, from those of this process, with gradients.

    Each process has the same count of numbers.
    """
    means, variances = gather(torch.stack((mean, variance))[None]).unbind(1)
    return means.mean(0), variances.mean(0) + means.var(0, correction=0)


def synchronise(model: nn.Module) -> None:
    """Convert batch norms to synchronised ones, where there are several processes.

    Torch's change their class to `SyncBatchNorm` in place and keep weights, types, modes and
    hooks. Norms of our own have an attribute `synchronised`, which is set.
    """
    if size() == 1:
        return
    norm: Any
    for norm in model.modules():
        if type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            norm.__class__, norm.process_group = SyncBatchNorm, None
        elif hasattr(norm, "synchronised"):
            norm.synchronised = True
