"""Metrics over a split: states summed over minibatches and processes, finished once at the end.

The ratio, root or mean over classes is taken last, so that the result depends neither on the
size and order of minibatches nor on the number of processes. It is NaN where nothing counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfstudy.types import IGNORED


@dataclass(frozen=True)
class Metric:
    """An additive state, and the function from the summed state to the metric.

    Attributes:
        state: sums and counts, float64 (MPS has float32 only), on the device of the minibatch.
    """

    state: Tensor

    def finish(self) -> float:
        """The metric's value, NaN where nothing counts; `state` is on the CPU."""
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
    """A weighted sum of means, such as a loss of several terms: `state` is [P, 2].

    Its columns are weight * sum, and count. A term without counts adds 0, as in the loss of a
    minibatch; NaN if no term has any.
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

    Classes without true labels are left out, as in scikit-learn.
    """

    def finish(self) -> float:
        """Mean over the classes that occur."""
        return class_accuracies(self.state).nanmean().item()


@dataclass(frozen=True)
class MeanIoU(Metric):
    """Mean intersection over union: `state` is `per_class`.

    Over the classes, background (0) included, that occur in the truth or the predictions.
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
    """Dtype of sums on a device."""
    return torch.float32 if device.type == "mps" else torch.float64


def ratio(values: Tensor, where: Tensor) -> Ratio:
    """Mean of `values` where `where` (bool, same shape) is true."""
    return Ratio(_sums(values, where))


def root(squares: Tensor, where: Tensor) -> Root:
    """Root of the mean of `squares` where `where` (bool, same shape) is true."""
    return Root(_sums(squares, where))


def _sums(values: Tensor, where: Tensor) -> Tensor:
    dtype = wide(values.device)
    kept = torch.where(where, values.detach().float(), 0)
    return torch.stack((kept.sum(dtype=dtype), where.sum(dtype=dtype)))


def mean_of(value: Tensor, rows: int) -> Ratio:
    """A minibatch's 0-d mean over `rows` rows as an additive metric."""
    count = torch.full_like(value.detach(), rows, dtype=wide(value.device))
    return Ratio(torch.stack((torch.where(count > 0, value.detach() * count, 0), count)))


def per_class(guesses: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Counts [K, 3] per class: true positives, true labels, predictions.

    Args:
        guesses: predicted classes, int64.
        truth: true classes, int64 of the same shape; `IGNORED` is excluded.
        classes: K.
    """
    counted = (truth != IGNORED).flatten()
    guesses, truth = guesses.flatten(), torch.where(counted, truth.flatten(), 0)
    weight = counted.to(wide(guesses.device))
    counts = weight.new_zeros(3, classes)
    counts[0].scatter_add_(0, truth, weight * (guesses == truth))
    counts[1].scatter_add_(0, truth, weight)
    counts[2].scatter_add_(0, guesses, weight)
    return counts.T


def confusion(guesses: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Confusion matrix [K, K] int64 of (true class, predicted class), without `IGNORED`.

    Matrices of minibatches add up. Arguments as in `per_class`.
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
    """Accuracy of each class [K] from `per_class` counts, NaN where it does not occur."""
    return counts[:, 0] / counts[:, 1]


def class_ious(counts: Tensor) -> Tensor:
    """Intersection over union of each class [K], NaN where it does not occur."""
    return counts[:, 0] / (counts[:, 1] + counts[:, 2] - counts[:, 0])
