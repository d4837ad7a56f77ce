"""Metrics over a split: states that add up over minibatches and processes, finished once.

A ratio, a root or a mean over classes is taken last, so that a number depends neither on the
size and order of minibatches nor on the number of processes. Where nothing counted it is NaN.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfstudy.types import IGNORED


@dataclass(frozen=True)
class Metric:
    """An additive state and how to make a number of it.

    Attributes:
        state: sums and counts, float64 (MPS has float32 only), on the device of the minibatch.
    """

    state: Tensor

    def finish(self) -> float:
        """The number of the state, NaN where nothing counted; `state` is on the CPU."""
        raise NotImplementedError


@dataclass(frozen=True)
class Ratio(Metric):
    """A mean: `state` is [sum, count]."""

    def finish(self) -> float:
        """Sum / count."""
        return (self.state[0] / self.state[1]).item()


@dataclass(frozen=True)
class Root(Metric):
    """A root mean square: `state` is [sum of squares, count]."""

    def finish(self) -> float:
        """Root of sum / count."""
        return (self.state[0] / self.state[1]).sqrt().item()


@dataclass(frozen=True)
class Total(Metric):
    """A weighted sum of means, such as a loss of several parts: `state` is [P, 2].

    Its columns are weight * sum, and count. A part that counted nothing adds 0, as it does to
    the loss of a minibatch, unless no part counted anything.
    """

    def finish(self) -> float:
        """Sum of the parts' means."""
        sums, counts = self.state.unbind(1)
        if not (counts > 0).any():
            return float("nan")
        return torch.where(counts > 0, sums / counts, 0).sum().item()


@dataclass(frozen=True)
class MeanAccuracy(Metric):
    """Balanced accuracy, the mean over classes of their accuracies: `state` is `per_class`.

    Classes that do not occur in the truth are left out, as in scikit-learn.
    """

    def finish(self) -> float:
        """Mean over the classes that occur."""
        return class_accuracies(self.state).nanmean().item()


@dataclass(frozen=True)
class MeanIoU(Metric):
    """Mean intersection over union: `state` is `per_class`.

    Over the classes that occur in the truth or in the prediction of counted places, the
    background (class 0) among them.
    """

    def finish(self) -> float:
        """Mean over the classes that occur."""
        return class_ious(self.state).nanmean().item()


def total(parts: Sequence[Metric], weights: Sequence[float]) -> Total:
    """The sum of weighted `Ratio`s or `Total`s as one metric."""
    rows = []
    for part, weight in zip(parts, weights, strict=True):
        state = part.state.reshape(-1, 2)
        rows.append(torch.stack((weight * state[:, 0], state[:, 1]), 1))
    return Total(torch.cat(rows))


def wide(device: torch.device) -> torch.dtype:
    """The type of sums on a device."""
    return torch.float32 if device.type == "mps" else torch.float64


def ratio(values: Tensor, where: Tensor) -> Ratio:
    """Mean of `values` over the places `where` (bool, same shape)."""
    return Ratio(_sums(values, where))


def root(squares: Tensor, where: Tensor) -> Root:
    """Root of the mean of `squares` over the places `where` (bool, same shape)."""
    return Root(_sums(squares, where))


def _sums(values: Tensor, where: Tensor) -> Tensor:
    dtype = wide(values.device)
    kept = torch.where(where, values.detach().float(), 0)
    return torch.stack((kept.sum(dtype=dtype), where.sum(dtype=dtype)))


def mean_of(value: Tensor, rows: int) -> Ratio:
    """A 0-d mean over `rows` rows, to be averaged with those of other minibatches."""
    count = torch.full_like(value.detach(), rows, dtype=wide(value.device))
    return Ratio(torch.stack((torch.where(count > 0, value.detach() * count, 0), count)))


def per_class(guesses: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Per class: places that are right, truly of it, and predicted as it; [K, 3].

    Args:
        guesses: predicted classes, int64.
        truth: true classes, int64 of the same shape; `IGNORED` counts nowhere.
        classes: K.
    """
    counted = (truth != IGNORED).flatten()
    guesses, truth = guesses.flatten(), torch.where(counted, truth.flatten(), 0)
    one = counted.to(wide(guesses.device))
    counts = one.new_zeros(3, classes)
    counts[0].scatter_add_(0, truth, one * (guesses == truth))
    counts[1].scatter_add_(0, truth, one)
    counts[2].scatter_add_(0, guesses, one)
    return counts.T


def confusion(guesses: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Counts [K, K] int64 of (true class, predicted class); `IGNORED` counts nowhere.

    Matrices of minibatches add up. Arguments as those of `per_class`.
    """
    counted = (truth != IGNORED).flatten()
    truth = torch.where(counted, truth.flatten(), 0)
    matrix = torch.zeros(classes**2, dtype=torch.int64, device=truth.device)
    matrix.scatter_add_(0, truth * classes + guesses.flatten(), counted.long())
    return matrix.view(classes, classes)


def from_confusion(matrix: Tensor) -> Tensor:
    """The `per_class` counts [K, 3] of a confusion matrix."""
    return torch.stack((matrix.diagonal(), matrix.sum(1), matrix.sum(0)), 1).double()


def class_accuracies(counts: Tensor) -> Tensor:
    """Accuracy of each class [K], NaN where it does not occur, of `per_class` counts."""
    return counts[:, 0] / counts[:, 1]


def class_ious(counts: Tensor) -> Tensor:
    """Intersection over union of each class [K], NaN where it occurs nowhere."""
    return counts[:, 0] / (counts[:, 1] + counts[:, 2] - counts[:, 0])
