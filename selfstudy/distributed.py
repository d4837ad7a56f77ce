"""What the processes of one trial say to each other; inner code never asks how many there are.

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

_BUCKET = 2**24  # numbers that are averaged at a time: 64 MiB of float32

_alone = False


class Lost(RuntimeError):
    """Another process has gone, or does not do what this one does."""


def size() -> int:
    """How many processes train the model."""
    together = not _alone and dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if together else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if size() > 1 else 0


@contextlib.contextmanager
def single_process() -> Iterator[None]:
    """A `with` block in which this process works by itself, as an evaluation does."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def _call(function: Callable, *args: Any, **kwargs: Any) -> None:
    """Do what all processes do together."""
    try:
        function(*args, **kwargs)
    except RuntimeError as error:
        raise Lost(str(error)) from error


def share(count: int) -> slice:
    """Which of `count` rows are this process's; a rest that cannot be divided is nobody's."""
    rows = count // size()
    return slice(rank() * rows, (rank() + 1) * rows)


def offset(rows: Tensor) -> int:
    """The place of this process's `rows` among those of all."""
    return rank() * len(rows)


def draw_share(draw: Callable[[int], Tensor], count: int) -> Tensor:
    """Random rows of this process, out of what is drawn for the whole minibatch.

    Args:
        draw: makes so many rows, from a generator that is in the same state in all processes
            (torch's own is).
        count: rows of this process.
    """
    rows = draw(count * size())
    return rows[share(len(rows))]


class _Gather(torch.autograd.Function):
    """Rows of all; the gradient that all processes have for a row is added up."""

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
    found = rows.new_empty(size() * len(rows), *rows.shape[1:])
    _call(dist.all_gather, list(found.chunk(size())), rows)
    return found


def gather(rows: Tensor) -> Tensor:
    """The rows of all processes, [N, ...] of [B, ...] each, with gradients.

    Backward adds up what the losses of all processes say of this process's rows. As the
    gradients of the weights are averaged afterwards, they are those of the mean of the
    processes' losses.
    """
    return _Gather.apply(rows) if size() > 1 else rows


def gather_detached(rows: Tensor) -> Tensor:
    """The rows of all processes, [N, ...], without gradient."""
    return _gathered(rows) if size() > 1 else rows.detach()


def all_to_all(rows: Tensor) -> Tensor:
    """A minibatch mixed of equal parts of all processes' rows, without gradient.

    A second time undoes it. Batch norm so sees other images together than it otherwise does
    (MoCo's shuffled keys, arXiv 1911.05722, section 3.3). As a minibatch is in random order
    anyway, a fixed exchange shuffles as well as a drawn one, and each row travels once.

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
    found = torch.empty_like(rows := rows.detach().contiguous())
    _call(dist.all_to_all_single, found, rows)
    return found


@torch.no_grad()
def all_reduce_mean_(tensors: Iterable[Tensor]) -> None:
    """Replace tensors, the same ones in all processes, by their means over the processes."""
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
    """Tensors of one type in groups of about `_BUCKET` numbers."""
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
    """Replace tensors by those of process 0."""
    if size() == 1:
        return
    for item in tensors:
        whole = item.contiguous()
        _call(dist.broadcast, whole, 0)
        item.copy_(whole)


def broadcast_object(value: Any) -> Any:
    """The plain value (also with tensors on the CPU) that process 0 gives."""
    if size() == 1:
        return value
    held = [value]
    _call(dist.broadcast_object_list, held, 0)
    return held[0]


def gather_objects(value: Any) -> list[Any]:
    """The plain values of all processes, tensors on the CPU included."""
    if size() == 1:
        return [value]
    found: list[Any] = [None] * size()
    _call(dist.all_gather_object, found, value)
    return found


class SyncBatchNorm(nn.SyncBatchNorm):
    """Batch norm over the minibatches of all processes; torch's own knows no CPU."""

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
    """Mean and biased variance of the numbers of all processes, from those of this one's.

    With gradients. Each process has as many numbers.
    """
    means, variances = gather(torch.stack((mean, variance))[None]).unbind(1)
    return means.mean(0), variances.mean(0) + means.var(0, correction=0)


def synchronise(model: nn.Module) -> None:
    """Make batch norms see the minibatches of all processes, where there are several.

    Torch's change their class to `SyncBatchNorm` and stay what they are otherwise: weights,
    types, modes, hooks. Norms of our own have an attribute `synchronised`, which is set.
    """
    if size() == 1:
        return
    norm: Any
    for norm in model.modules():
        if type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            norm.__class__, norm.process_group = SyncBatchNorm, None
        elif hasattr(norm, "synchronised"):
            norm.synchronised = True
