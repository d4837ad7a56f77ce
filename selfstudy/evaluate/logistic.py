"""Logistic regression on frozen features, and class-balanced label cuts."""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from selfstudy.data.dataset import BaseDataset
from selfstudy.data.prepare import balanced_order
from selfstudy.types import IGNORED
from util import hdf5
from util.errors import UserError

NEVER = -1e4  # the bias of a class without examples, so that it is never predicted
BLOCK = 10000  # rows per block of a prediction


def labels(data: BaseDataset, rows: np.ndarray) -> Tensor:
    """[n] int64 classes of rows of the data file.

    Raises:
        UserError: the data have none.
    """
    if "class" not in data.store.fields:
        raise UserError(f"{data.path} has no classes to learn")
    return hdf5.read(data.path, data.store.fields["class"], rows).long()


def balanced(classes: Tensor, amount: int, seed: int = 0) -> Tensor:
    """[amount] int64: positions of a class-balanced cut, in order.

    The rows are those that a training with `BaseDataset.semisupervised = amount` would see,
    when `classes` are those of the training rows in the order of the file.

    Args:
        classes: [N] int64; `IGNORED` is never kept.
        amount: how many.
        seed: `BaseDataset.label_seed`.

    Raises:
        UserError: there are not so many.
    """
    known = (classes != IGNORED).nonzero()[:, 0]
    if not 1 <= amount <= len(known):
        raise UserError(f"{amount} labels, expected 1 to {len(known)} (those there are)")
    order = balanced_order(classes[known].numpy(), seed)
    return known[torch.from_numpy(np.sort(order[:amount]))]


@dataclass
class Classifier:
    """A linear classifier, as `torch.nn.Linear` takes it.

    Attributes:
        weight: [K, D] float32.
        bias: [K] float32.
        converged: whether the solver converged.
    """

    weight: Tensor
    bias: Tensor
    converged: bool

    def state(self) -> dict[str, Tensor]:
        """For `nn.Linear(D, K).load_state_dict`."""
        return {"weight": self.weight, "bias": self.bias}

    def accuracy(self, features: Tensor, classes: Tensor) -> float:
        """Share of rows [n, D] whose class [n] is right, in [0, 1]; NaN without any."""
        hits, counted = 0, 0
        for block, truth in zip(features.split(BLOCK), classes.split(BLOCK), strict=True):
            predicted = (block.float() @ self.weight.T + self.bias).argmax(1)
            hits += int((predicted == truth).sum())
            counted += int((truth != IGNORED).sum())
        return hits / counted if counted else float("nan")


def fit(features: Tensor, classes: Tensor, count: int, iterations: int = 500) -> Classifier:
    """Multinomial logistic regression: lbfgs, C = 1 (the penalty is half the squared weights).

    As selfstudy's (CVPR 2020); no standardisation, biases are not penalised.

    Args:
        features: [n, D].
        classes: [n] int64 below `count`.
        count: K, the number of classes, including those without rows.
        iterations: at most.

    Raises:
        UserError: all rows are of one class.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if classes.min() == classes.max():
        raise UserError(f"{len(classes)} labels are of one class: take more")
    model = LogisticRegression(C=1.0, solver="lbfgs", max_iter=iterations)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(features.double().numpy(), classes.numpy())
    weight, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # binary: split the one plane between both classes
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weights, biases = torch.zeros(count, weight.shape[1]), torch.full((count,), NEVER)
    weights[model.classes_] = torch.from_numpy(weight).float()
    biases[model.classes_] = torch.from_numpy(bias).float()
    converged = not any(issubclass(item.category, ConvergenceWarning) for item in caught)
    return Classifier(weights, biases, converged)
