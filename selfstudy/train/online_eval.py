"""Online evaluation of pretraining: feature quality on the first validation images.

Unlike the losses of methods, these metrics are comparable and reveal a collapse. They are
computed from detached features and do not influence the training.
"""

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from selfstudy import distributed
from selfstudy.losses import monitors
from selfstudy.registry import configurable
from selfstudy.tasks.base import PretextTask, Task
from selfstudy.types import IGNORED, Batch, Features
from util.errors import UserError

HEALTH = ("valid_rank_me", "valid_feature_std")
CLASSES = ("valid_knn_accuracy", "train_class_acc", "valid_class_acc")

# Below this spread, features collapsed to a point: cosines between images are above 0.999. On
# digits it is 0.01 to 0.03 where BYOL or SimSiam collapses, and above 0.1 where they learn.
POINT = 0.03
LINE = 1.2  # RankMe of features on a line


@configurable("monitor", denylist=["task"])
class Monitor:
    """Collects features of the first validation images and evaluates them afterwards.

    The features are embeddings of the first view before `Task.prepare` (which may rotate it).
    'valid_rank_me' is their effective rank, 'valid_feature_std' their spread on the sphere.
    With classes, the first half of the images is the training set of two classifiers of the
    second half: 'valid_knn_accuracy' is that of k nearest neighbours, 'valid_class_acc' that of
    a logistic regression, and 'train_class_acc' the latter's accuracy on the first half. These
    are NaN if the first half has labels of one class only.

    Args:
        task: the trained task; only pretext tasks are evaluated.
        every: rounds between two evaluations, the last round included; 0 is never.
        rows: images at most; 2,000 with 256 features and 10 classes take 0.5 s of one core.
        neighbours: k of the nearest neighbours.
        temperature: of the neighbours' votes.
        probe: fit the logistic regression, which takes nearly all of the time; it grows with
            images, features and classes.

    Raises:
        UserError: a number is out of its range.
    """

    def __init__(
        self,
        task: Task,
        every: int = 1,
        rows: int = 2000,
        neighbours: int = 20,
        temperature: float = 0.07,
        probe: bool = True,
    ):
        for name, value, fits, expected in (
            ("every", every, every >= 0, "0 for never, or a number of rounds"),
            ("rows", rows, rows > 1, "2 images or more"),
            ("neighbours", neighbours, neighbours > 0, "1 or more"),
            ("temperature", temperature, temperature > 0, "a positive one, such as 0.07"),
        ):
            if not fits:
                raise UserError(f"monitor.{name} = {value}: expected {expected}")
        # A validation may repeat images; none may be its own neighbour.
        self.rows = min(rows, task.info.rows.get("valid", rows))
        watched = isinstance(task, PretextTask) and self.rows > 1
        self.every = every if watched else 0
        self.neighbours, self.temperature, self.probe = neighbours, temperature, probe
        self.classes = task.info.targets.get("class", 0)
        self._wanted = 0
        self._kept: list[tuple[int, Tensor, Tensor]] = []

    def names(self) -> list[str]:
        """Names of the metrics in every round with a validation."""
        return self._names() if self.every == 1 else []

    def _names(self) -> list[str]:
        known = CLASSES if self.probe else CLASSES[:1]
        return [*HEALTH, *(known if self.classes else ())]

    def begin(self, number: int, rounds: float) -> None:
        """Called before validation of round `number` (1-based) of `rounds`."""
        due = self.every and (number % self.every == 0 or number >= rounds)
        self._wanted, self._kept = self.rows if due else 0, []

    def wants(self, step: int, batch: Batch) -> bool:
        """Whether a minibatch, the validation's `step`-th, is among the first images."""
        return step * len(batch.idxs) < self._wanted

    def keep(self, step: int, batch: Batch, feats: Features) -> None:
        """Keep the features [B, D] of a minibatch's first views, if it `wants` them."""
        if self.wants(step, batch):
            unknown = torch.full_like(batch.idxs, IGNORED)
            classes = batch.targets.get("class", unknown)
            self._kept.append((step, feats.pooled.float(), classes))

    def numbers(self) -> dict[str, float]:
        """Evaluate the features kept from the validation; the same in all processes.

        Returns:
            The metrics by name, empty in a round without evaluation.
        """
        if not self._wanted:
            return {}
        kept, self._kept = self._kept, []
        if distributed.size() > 1:
            kept = [(step, *(part.cpu() for part in parts)) for step, *parts in kept]
            kept = [item for part in distributed.gather_objects(kept) for item in part]
        metrics = self._measure(kept) if distributed.rank() == 0 else None
        return distributed.broadcast_object(metrics)

    def _measure(self, kept: list[tuple[int, Tensor, Tensor]]) -> dict[str, float]:
        if not kept:
            return {}
        _, features, classes = zip(*sorted(kept, key=lambda item: item[0]), strict=True)
        features = torch.cat(features)[: self._wanted]
        classes = torch.cat(classes)[: self._wanted]
        if not features.isfinite().all():  # diverged
            return dict.fromkeys(self._names(), math.nan)
        measured = [monitors.rank_me(features).item(), monitors.feature_std(features).item()]
        if self.classes:
            counted = classes != IGNORED
            measured += self._class_accuracies(features[counted], classes[counted])
        return dict(zip(self._names(), measured, strict=True))

    def _class_accuracies(self, features: Tensor, classes: Tensor) -> list[float]:
        """Accuracies in the order of `CLASSES`, without those of the probe if it is off."""
        half = len(features) // 2
        known, bank = classes[:half], features[:half]
        if known.unique().numel() < 2:
            return [math.nan] * (len(self._names()) - len(HEALTH))
        options = self.neighbours, self.temperature
        guesses = monitors.nearest_classes(features[half:], bank, known, *options)
        accuracies = [(guesses == classes[half:]).float().mean().item()]
        return accuracies + (half_half(features, classes) if self.probe else [])


def half_half(features: Tensor, classes: Tensor) -> list[float]:
    """Accuracies of a logistic regression fitted to the first half, on both halves.

    With liblinear, one-vs-rest, at most 100 iterations, as in the code of the contrastive
    family (untitled-ai/self_supervised); features are not standardised.

    Args:
        features: [N, D].
        classes: [N] int64, at least two of them in the first half.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    half = len(features) // 2
    x, y = features.cpu().double().numpy(), classes.cpu().numpy()
    # A fixed seed, else it would draw from numpy's global state.
    binary = LogisticRegression(solver="liblinear", max_iter=100, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = OneVsRestClassifier(binary).fit(x[:half], y[:half])
    return [float(model.score(x[part], y[part])) for part in (slice(half), slice(half, None))]


def has_collapsed(numbers: dict[str, Any]) -> bool:
    """Whether a round's metrics indicate a representation collapse.

    The embedding is nearly a point or a line, or the method's projection nearly a point:
    'pretext_spread' of validation, else of training.
    """
    own = "valid_pretext_spread"
    own = own if own in numbers else "train_pretext_spread"
    alike = any(numbers.get(name, math.inf) < POINT for name in ("valid_feature_std", own))
    return alike or numbers.get("valid_rank_me", math.inf) < LINE
