"""Base classes of tasks; losses and metrics of the probes."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from selfstudy import distributed
from selfstudy.tasks import metrics as numbers
from selfstudy.tasks.metrics import Metric, Ratio
from selfstudy.types import IGNORED, Batch, DataInfo, Output
from util.errors import UserError

Metrics = dict[str, Tensor]  # of a pretext task, each a mean over the rows of a minibatch
States = dict[str, Metric]  # sums and counts, which add up over a split

PER_METRE = 4  # depth is learnt in units of 25 cm (published: centimetres / 25) ...
TABLE = 4096  # distinct random rows for the images of an evaluation
ORIGIN = (
    1.0  # ... relative to this depth, metres, so that a head that starts near 0 starts close
)


def probe_losses(
    batch: Batch, out: Output, target: str | None = None, use_l2: bool = False
) -> tuple[list[Tensor], States, list[Ratio]]:
    """Loss and metrics of each probe: see `classification_metrics` and `depth_errors`.

    Args:
        batch: its targets are those of the probes, by name.
        out: logits [B, K] or, dense, [B, K, h, w]; dense targets [B, H, W] are resized to
            the map by nearest neighbour.
        target: use only the probes of this target; None uses all.
        use_l2: squared instead of absolute errors of depth.

    Returns:
        The losses (cross-entropy in nats), the metrics, '<kind>_<target>_<metric>' such as
        'fc_class_accuracy', and the losses as metrics.
    """
    losses: list[Tensor] = []
    states: States = {}
    parts: list[Ratio] = []
    for name, logits in out.logits.items():
        kind, _, wanted = name.partition("/")
        truth = batch.targets.get(wanted)
        if truth is None or (target is not None and wanted != target):
            continue
        logits, truth = logits.float(), _resize(truth, logits)
        if wanted == "depth":
            loss, part, items = depth_errors(logits[:, 0], truth, use_l2)
        else:
            loss, part, items = classification_metrics(logits, truth)
        losses.append(loss)
        parts.append(part)
        states |= {f"{kind}_{wanted}_{metric}": item for metric, item in items.items()}
    return losses, states, parts


def _resize(truth: Tensor, logits: Tensor) -> Tensor:
    """A dense target resized to its logits, dtype kept; labels [B] are returned unchanged."""
    if logits.ndim != 4:
        return truth
    return F.interpolate(truth[:, None].float(), logits.shape[2:])[:, 0].to(truth.dtype)


def mean_loss(values: Tensor, where: Tensor) -> Tensor:
    """Differentiable mean of `values` where `where` (bool, same shape), 0 if nowhere.

    Over all processes: these have equally many rows, but not equally many true elements, so
    that the mean of their means would differ.
    """
    pair = torch.stack((torch.where(where, values, 0).sum(), where.sum().to(values.dtype)))
    summed, count = distributed.gather(pair[None]).sum(0)
    return summed / count.clamp_min(1)


def classification_metrics(logits: Tensor, truth: Tensor) -> tuple[Tensor, Ratio, States]:
    """Cross-entropy (nats) and accuracies of images or pixels.

    Args:
        logits: [B, K] or [B, K, h, w] float32.
        truth: [B] or [B, h, w] int64; `IGNORED` is excluded.

    Returns:
        Mean loss, 0 when no label counts; the loss as a metric; 'accuracy',
        'mean_class_accuracy' and, for pixels, 'mean_iou' and 'foreground', the accuracy on the
        objects' pixels (class above 0): with mostly background, 'accuracy' is high even if
        no object is segmented.
    """
    counted = truth != IGNORED
    losses = F.cross_entropy(logits, truth, ignore_index=IGNORED, reduction="none")
    guesses = logits.detach().argmax(1)
    hits = guesses == truth
    counts = numbers.per_class(guesses, truth, logits.shape[1])
    metrics: States = {
        "accuracy": numbers.ratio(hits, counted),
        "mean_class_accuracy": numbers.MeanAccuracy(counts),
    }
    if truth.ndim == 3:
        metrics["foreground"] = numbers.ratio(hits, truth > 0)
        metrics["mean_iou"] = numbers.MeanIoU(counts)
    return mean_loss(losses, counted), numbers.ratio(losses, counted), metrics


def depth_errors(
    output: Tensor, metres: Tensor, use_l2: bool = False
) -> tuple[Tensor, Ratio, States]:
    """L1 loss and metrics of depth, over pixels with a surface.

    Args:
        output: [B, h, w] float32, the prediction: `ORIGIN` + output / `PER_METRE` metres.
        metres: [B, h, w] float, 0 where there is no surface.
        use_l2: mean squared error instead.

    Returns:
        Mean loss in units of 25 cm (squared: of that, squared), 0 without any surface; the
        loss as a metric; 'accuracy' and 'strict', the shares of pixels whose prediction is
        less than 1.25 and 1.1 times too large or too small; 'rmse' and 'error' (mean
        absolute) in metres.
    """
    metres = metres.float()
    surface = metres > 0
    error = torch.where(surface, output - PER_METRE * (metres - ORIGIN), 0)
    losses = error.square() if use_l2 else error.abs()
    error = error.detach() / PER_METRE
    # A prediction behind the camera is always wrong.
    ratio = (ORIGIN + output.detach() / PER_METRE).clamp_min(1e-6) / metres
    ratio = torch.maximum(ratio, 1 / ratio)
    metrics: States = {
        "accuracy": numbers.ratio(ratio < 1.25, surface),
        "strict": numbers.ratio(ratio < 1.1, surface),
        "rmse": numbers.root(error.square(), surface),
        "error": numbers.ratio(error.abs(), surface),
    }
    return mean_loss(losses, surface), numbers.ratio(losses, surface), metrics


def of_minibatch(*names: str) -> frozenset[str]:
    """`Task.batch_dependent` of a pretext task, from metric names of `PretextTask.pretext`.

    'loss' includes the task's total loss.
    """
    total = {"loss"} if "loss" in names else set()
    return frozenset(f"pretext_{name}" for name in names) | total


def draw_rows(
    draw: Callable[[int], Tensor], idxs: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Random rows for the images of a minibatch.

    In evaluation (without gradients) an image's row is independent of the size and order of
    minibatches: it is looked up by row number in a table drawn from the seed.

    Args:
        draw: draws a number of rows from `generator`.
        idxs: [B], see `Batch`.
        generator: None is torch's default generator.
    """
    if torch.is_grad_enabled() or generator is None:
        return distributed.draw_share(draw, len(idxs))
    generator.manual_seed(generator.initial_seed())
    return draw(TABLE)[idxs % TABLE]


class Task:
    """Loss and metrics of a model's outputs: a plain object without weights.

    Args:
        info: description of the data set.
    """

    backbone: str | None = None  # the `Wrapper.model_choice` that the task needs
    # Metrics that compare rows within a minibatch, or scale with its size: over a split they
    # depend on the minibatches by definition. All others do not.
    batch_dependent: frozenset[str] = frozenset()

    def __init__(self, info: DataInfo):
        self.info = info

    def prepare(self, batch: Batch, generator: torch.Generator | None) -> Batch:
        """The model's input for this batch; by default the batch itself."""
        return batch

    def evaluate(self, batch: Batch, out: Output) -> tuple[Tensor, States]:
        """The scalar loss to minimise, and metric states, 'accuracy' first."""
        raise NotImplementedError


class ProbeTask(Task):
    """A supervised task: the linear and the MLP head of one target."""

    def evaluate_heads(
        self, batch: Batch, out: Output, target: str, use_l2: bool = False
    ) -> tuple[Tensor, States]:
        """Mean loss and metrics of the heads of `target`; 'accuracy' is the linear head's."""
        losses, states, parts = probe_losses(batch, out, target, use_l2)
        if not losses:
            raise UserError(
                f"no probe predicts '{target}': see Wrapper.run_classifier, "
                "Wrapper.out_classes and Wrapper.dense_pred (and SynDataset.dense, for pixels)"
            )
        total = numbers.total(parts, [1 / len(parts)] * len(parts))
        first = {"accuracy": states[f"fc_{target}_accuracy"], "loss": total}
        return torch.stack(losses).mean(), first | states


class PretextTask(Task):
    """A pretraining task: its own loss plus the mean loss of the detached probes.

    The probes measure downstream accuracy during pretraining; their features are detached, so
    no label reaches the encoder. `accuracy` is that of the linear class probe (dense:
    segmentation, else depth), or the pretext task's own without one.
    """

    def output(self, out: Output, name: str) -> Tensor:
        """An output of the method's model; a `UserError` without `Wrapper.run_selfsup`."""
        if name not in out.selfsup:
            raise UserError(f"{type(self).__name__} needs Wrapper.run_selfsup = True")
        return out.selfsup[name]

    def pretext(self, batch: Batch, out: Output) -> Metrics:
        """The method's 'loss' and, if it has one, 'accuracy'.

        0-d means over the minibatch (of all processes, or this one's share). Metrics in
        `batch_dependent` do not count for a minibatch of one image.
        """
        raise NotImplementedError

    def evaluate(self, batch: Batch, out: Output) -> tuple[Tensor, States]:
        """Pretext loss plus the mean of the probes' losses."""
        means = self.pretext(batch, out)
        own = {f"pretext_{name}": numbers.mean_of(item, self._rows(f"pretext_{name}", batch))
               for name, item in means.items()}  # fmt: skip
        losses, probes, parts = probe_losses(batch, out)
        loss = means["loss"]
        if losses:
            loss = loss + torch.stack(losses).mean()
        share = [1 / max(len(parts), 1)] * len(parts)
        total = numbers.total([own["pretext_loss"], *parts], [1.0, *share])
        names = (f"fc_{target}_accuracy" for target in ("class", "segment", "depth"))
        best = next((probes[name] for name in names if name in probes), None)
        best = best or own.get("pretext_accuracy")
        first: States = {} if best is None else {"accuracy": best}
        return loss, first | {"loss": total} | own | probes

    def _rows(self, name: str, batch: Batch) -> int:
        """Number of rows of a minibatch that count for a metric."""
        rows = len(batch.idxs)
        alone = rows * distributed.size() < 2 and name in self.batch_dependent
        return 0 if alone else rows
