"""What every task shares: probe losses and metrics, and the form of a pretext task."""

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
TABLE = 4096  # different draws among the images of an evaluation
ORIGIN = 1.0  # ... from here on, metres: a head that starts near 0 need not climb there first


def probe_losses(
    batch: Batch, out: Output, target: str | None = None, use_l2: bool = False
) -> tuple[list[Tensor], States, list[Ratio]]:
    """The loss of each probe and its metrics: see `classified` and `depth_errors`.

    Args:
        batch: with the targets that the probes are named after.
        out: logits [B, K] or, dense, [B, K, h, w]; dense targets [B, H, W] are resized to
            the map by nearest neighbour.
        target: only the probes of this target.
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
        logits, truth = logits.float(), _resized(truth, logits)
        if wanted == "depth":
            loss, part, items = depth_errors(logits[:, 0], truth, use_l2)
        else:
            loss, part, items = classified(logits, truth)
        losses.append(loss)
        parts.append(part)
        states |= {f"{kind}_{wanted}_{metric}": item for metric, item in items.items()}
    return losses, states, parts


def _resized(truth: Tensor, logits: Tensor) -> Tensor:
    """A dense target at the size of its logits, in its own type; labels [B] as they are."""
    if logits.ndim != 4:
        return truth
    return F.interpolate(truth[:, None].float(), logits.shape[2:])[:, 0].to(truth.dtype)


def mean_loss(values: Tensor, where: Tensor) -> Tensor:
    """Mean of `values` over the places `where` (bool, same shape), 0 when there are none.

    With gradients. Over the places of all processes, which have as many rows, but not as many
    places: the mean of their means would be another number.
    """
    pair = torch.stack((torch.where(where, values, 0).sum(), where.sum().to(values.dtype)))
    summed, count = distributed.gather(pair[None]).sum(0)
    return summed / count.clamp_min(1)


def classified(logits: Tensor, truth: Tensor) -> tuple[Tensor, Ratio, States]:
    """Cross-entropy (nats) and accuracy, of images or of pixels.

    Args:
        logits: [B, K] or [B, K, h, w] float32.
        truth: [B] or [B, h, w] int64; `IGNORED` counts nowhere.

    Returns:
        Mean loss, 0 when no label counts; the loss as a metric; 'accuracy',
        'mean_class_accuracy' and, of pixels, 'mean_iou' and 'foreground', the share of the
        objects' pixels (class above 0) that are right: background is most of a picture, so
        that 'accuracy' is high when no object is found at all.
    """
    counted = truth != IGNORED
    losses = F.cross_entropy(logits, truth, ignore_index=IGNORED, reduction="none")
    guesses = logits.detach().argmax(1)
    hits = guesses == truth
    counts = numbers.per_class(guesses, truth, logits.shape[1])
    found: States = {
        "accuracy": numbers.ratio(hits, counted),
        "mean_class_accuracy": numbers.MeanAccuracy(counts),
    }
    if truth.ndim == 3:
        found["foreground"] = numbers.ratio(hits, truth > 0)
        found["mean_iou"] = numbers.MeanIoU(counts)
    return mean_loss(losses, counted), numbers.ratio(losses, counted), found


def depth_errors(
    output: Tensor, metres: Tensor, use_l2: bool = False
) -> tuple[Tensor, Ratio, States]:
    """L1 loss and metrics of depth where there is a surface; elsewhere nothing counts.

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
    # What is predicted behind the camera is wrong however its ratio looks.
    ratio = (ORIGIN + output.detach() / PER_METRE).clamp_min(1e-6) / metres
    ratio = torch.maximum(ratio, 1 / ratio)
    found: States = {
        "accuracy": numbers.ratio(ratio < 1.25, surface),
        "strict": numbers.ratio(ratio < 1.1, surface),
        "rmse": numbers.root(error.square(), surface),
        "error": numbers.ratio(error.abs(), surface),
    }
    return mean_loss(losses, surface), numbers.ratio(losses, surface), found


def of_minibatch(*names: str) -> frozenset[str]:
    """`Task.batch_dependent` of a pretext task, by the names of `PretextTask.pretext`.

    With its 'loss' the whole loss of the task is one, too.
    """
    whole = {"loss"} if "loss" in names else set()
    return frozenset(f"pretext_{name}" for name in names) | whole


def draw_rows(
    draw: Callable[[int], Tensor], idxs: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Random rows for the images of a minibatch.

    In evaluation (without gradients) an image gets the same row whatever the size and order
    of minibatches: that of its place in the data file, in a table drawn from the seed.

    Args:
        draw: draws that many rows from `generator`.
        idxs: [B], see `Batch`.
        generator: None is torch's default one.
    """
    if torch.is_grad_enabled() or generator is None:
        return distributed.draw_share(draw, len(idxs))
    generator.manual_seed(generator.initial_seed())
    return draw(TABLE)[idxs % TABLE]


class Task:
    """What is predicted: a plain object without weights.

    Args:
        info: what the data are.
    """

    backbone: str | None = None  # the `Wrapper.model_choice` that the task needs
    # Metrics that compare the rows of a minibatch, or whose weight grows with it: over a split
    # they depend on how it is cut into minibatches, by their definition. All others do not.
    batch_dependent: frozenset[str] = frozenset()

    def __init__(self, info: DataInfo):
        self.info = info

    def prepare(self, batch: Batch, generator: torch.Generator | None) -> Batch:
        """The batch that the model is to see; by default the one that came."""
        return batch

    def evaluate(self, batch: Batch, out: Output) -> tuple[Tensor, States]:
        """The scalar loss to be minimised, and states of metrics, 'accuracy' first."""
        raise NotImplementedError


class ProbeTask(Task):
    """A supervised task: the linear and the MLP head of one target, nothing else."""

    def trained(
        self, batch: Batch, out: Output, target: str, use_l2: bool = False
    ) -> tuple[Tensor, States]:
        """Mean loss of the heads of `target`, and their metrics; 'accuracy' is the linear's."""
        losses, states, parts = probe_losses(batch, out, target, use_l2)
        if not losses:
            raise UserError(
                f"no probe predicts '{target}': see Wrapper.run_classifier, "
                "Wrapper.out_classes and Wrapper.dense_pred (and SynDataset.dense, for pixels)"
            )
        whole = numbers.total(parts, [1 / len(parts)] * len(parts))
        first = {"accuracy": states[f"fc_{target}_accuracy"], "loss": whole}
        return torch.stack(losses).mean(), first | states


class PretextTask(Task):
    """A pretraining task: its own loss plus the mean loss of the detached probes.

    The probes tell downstream accuracy while the method trains; since they read detached
    features, no label reaches the encoder. `accuracy` is that of the linear class probe
    (dense: segmentation, or else depth), or the pretext task's own when there is none.
    """

    def output(self, out: Output, name: str) -> Tensor:
        """What the method's model made for its task; a `UserError` when it was switched off."""
        if name not in out.selfsup:
            raise UserError(f"{type(self).__name__} needs Wrapper.run_selfsup = True")
        return out.selfsup[name]

    def pretext(self, batch: Batch, out: Output) -> Metrics:
        """The method's 'loss' and, where there is one, its 'accuracy'.

        0-d means over the rows of the minibatch (of all processes, or of this one's share). A
        minibatch of one image, in which nothing can be compared, leaves out those that
        `batch_dependent` names.
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
        whole = numbers.total([own["pretext_loss"], *parts], [1.0, *share])
        names = (f"fc_{target}_accuracy" for target in ("class", "segment", "depth"))
        best = next((probes[name] for name in names if name in probes), None)
        best = best or own.get("pretext_accuracy")
        first: States = {} if best is None else {"accuracy": best}
        return loss, first | {"loss": whole} | own | probes

    def _rows(self, name: str, batch: Batch) -> int:
        """The rows that a metric counts in a minibatch."""
        rows = len(batch.idxs)
        alone = rows * distributed.size() < 2 and name in self.batch_dependent
        return 0 if alone else rows
