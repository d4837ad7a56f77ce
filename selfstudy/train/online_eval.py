"""What a pretraining's features are worth while it trains, from a validation's first images.

Losses of methods cannot be compared, and a collapse can look like success; these numbers can,
and tell it. They are read from frozen features and change nothing in the training.
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

# Spread of features that are nearly a point: the cosine between images is above 0.999. On
# digits it is 0.01 to 0.03 where BYOL or SimSiam collapses, and above 0.1 where they learn.
POINT = 0.03
LINE = 1.2  # RankMe of features that differ in one direction only


@configurable("monitor", denylist=["task"])
class Monitor:
    """Keeps the features of a validation's first images, and measures them after it.

    They are embeddings of the first view as the data set has it, before the task prepares it
    (rotation turns it).
    'valid_rank_me' is their effective rank, 'valid_feature_std' their spread on the sphere.
    Where there are classes, the first half of the images is learnt from: 'valid_knn_accuracy'
    is how often its nearest neighbours tell the class of the second half, 'train_class_acc' and
    'valid_class_acc' how often a logistic regression tells those of the first and the second.
    These are NaN when all labels of the first half are of one class.

    Args:
        task: what is trained; only a pretext task is watched.
        every: rounds between two measurements, of which the last round has one; 0 is none.
        rows: images at most; 2,000 with 256 features and 10 classes take 0.5 s of one core.
        neighbours: k of the nearest neighbours.
        temperature: of their votes.
        probe: fit the logistic regression. It takes nearly all of the time, which grows with
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
        # A validation may go round more than once; no image is to be its own neighbour.
        self.rows = min(rows, task.info.rows.get("valid", rows))
        watched = isinstance(task, PretextTask) and self.rows > 1
        self.every = every if watched else 0
        self.neighbours, self.temperature, self.probe = neighbours, temperature, probe
        self.classes = task.info.targets.get("class", 0)
        self._wanted = 0
        self._kept: list[tuple[int, Tensor, Tensor]] = []

    def names(self) -> list[str]:
        """The numbers that each round with a validation has."""
        return self._names() if self.every == 1 else []

    def _names(self) -> list[str]:
        known = CLASSES if self.probe else CLASSES[:1]
        return [*HEALTH, *(known if self.classes else ())]

    def begin(self, number: int, rounds: float) -> None:
        """Told before the validation of round `number`, counted from 1, of so many."""
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
        """What was kept of the validation, measured; the same in all processes.

        Returns:
            As `names`, in a round that is due and has a validation; otherwise nothing.
        """
        if not self._wanted:
            return {}
        kept, self._kept = self._kept, []
        if distributed.size() > 1:
            kept = [(step, *(part.cpu() for part in parts)) for step, *parts in kept]
            kept = [each for found in distributed.gather_objects(kept) for each in found]
        found = self._measured(kept) if distributed.rank() == 0 else None
        return distributed.broadcast_object(found)

    def _measured(self, kept: list[tuple[int, Tensor, Tensor]]) -> dict[str, float]:
        if not kept:
            return {}
        _, features, classes = zip(*sorted(kept, key=lambda each: each[0]), strict=True)
        features = torch.cat(features)[: self._wanted]
        classes = torch.cat(classes)[: self._wanted]
        if not features.isfinite().all():  # the network has diverged
            return dict.fromkeys(self._names(), math.nan)
        found = [monitors.rank_me(features).item(), monitors.feature_std(features).item()]
        if self.classes:
            counted = classes != IGNORED
            found += self._classified(features[counted], classes[counted])
        return dict(zip(self._names(), found, strict=True))

    def _classified(self, features: Tensor, classes: Tensor) -> list[float]:
        """The accuracies of `CLASSES` that are wanted."""
        half = len(features) // 2
        known, bank = classes[:half], features[:half]
        if known.unique().numel() < 2:
            return [math.nan] * (len(self._names()) - len(HEALTH))
        options = self.neighbours, self.temperature
        guesses = monitors.nearest_classes(features[half:], bank, known, *options)
        found = [(guesses == classes[half:]).float().mean().item()]
        return found + (half_half(features, classes) if self.probe else [])


def half_half(features: Tensor, classes: Tensor) -> list[float]:
    """Accuracies on both halves of a logistic regression that was fitted to the first.

    With liblinear, one class against the rest, at most 100 iterations, as in the contrastive
    family's code; features are taken as they are.

    Args:
        features: [N, D].
        classes: [N] int64, at least two of them in the first half.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    half = len(features) // 2
    x, y = features.cpu().double().numpy(), classes.cpu().numpy()
    # A seed of its own, or it would draw from numpy's.
    binary = LogisticRegression(solver="liblinear", max_iter=100, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = OneVsRestClassifier(binary).fit(x[:half], y[:half])
    return [float(model.score(x[part], y[part])) for part in (slice(half), slice(half, None))]


def collapsed(numbers: dict[str, Any]) -> bool:
    """Whether a round's numbers tell that the network sees hardly a difference between images.

    Its embedding is nearly a point or a line, or what the method makes of that is nearly a
    point: 'pretext_spread' of the validation or, where there is none, of the training.
    """
    own = "valid_pretext_spread"
    own = own if own in numbers else "train_pretext_spread"
    alike = any(numbers.get(name, math.inf) < POINT for name in ("valid_feature_std", own))
    return alike or numbers.get("valid_rank_me", math.inf) < LINE
