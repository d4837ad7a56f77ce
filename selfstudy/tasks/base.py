"""What every task shares: probe losses and metrics, and the form of a pretext task."""

import torch
import torch.nn.functional as F
from torch import Tensor

from selfstudy import distributed
from selfstudy.types import IGNORED, Batch, DataInfo, Output
from util.errors import UserError

Metrics = dict[str, Tensor]

PER_METRE = 4  # depth is learnt in units of 25 cm (published: centimetres / 25) ...
ORIGIN = 1.0  # ... from here on, metres: a head that starts near 0 need not climb there first


def probe_losses(
    batch: Batch, out: Output, target: str | None = None, use_l2: bool = False
) -> tuple[list[Tensor], Metrics]:
    """The loss of each probe and its metrics: see `classified` and `depth_errors`.

    Args:
        batch: with the targets that the probes are named after.
        out: logits [B, K] or, dense, [B, K, h, w]; dense targets [B, H, W] are resized to
            the map by nearest neighbour.
        target: only the probes of this target.
        use_l2: squared instead of absolute errors of depth.

    Returns:
        The losses (cross-entropy in nats), and the metrics, '<kind>_<target>_<metric>' such
        as 'fc_class_accuracy'.
    """
    losses, metrics = [], {}
    for name, logits in out.logits.items():
        kind, _, wanted = name.partition("/")
        truth = batch.targets.get(wanted)
        if truth is None or (target is not None and wanted != target):
            continue
        logits, truth = logits.float(), _resized(truth, logits)
        if wanted == "depth":
            loss, found = depth_errors(logits[:, 0], truth, use_l2)
        else:
            loss, found = classified(logits, truth)
        losses.append(loss)
        metrics |= {f"{kind}_{wanted}_{metric}": item for metric, item in found.items()}
    return losses, metrics


def _resized(truth: Tensor, logits: Tensor) -> Tensor:
    """A dense target at the size of its logits, in its own type; labels [B] as they are."""
    if logits.ndim != 4:
        return truth
    return F.interpolate(truth[:, None].float(), logits.shape[2:])[:, 0].to(truth.dtype)


def means(values: list[Tensor], places: list[Tensor]) -> tuple[Tensor, ...]:
    """Mean of each of `values` over its places (bool, same shape), 0 when there are none.

    Over those of all processes, which have as many rows, but not as many places: the mean of
    their means would be another number. With gradients where the values have them.
    """
    sums = [
        torch.where(where, item.float(), 0).sum()
        for item, where in zip(values, places, strict=True)
    ]
    counts = [where.sum(dtype=torch.float32) for where in places]
    sums, counts = distributed.gather(torch.stack((*sums, *counts))[None]).sum(0).chunk(2)
    found = (sums / counts.clamp_min(1)).unbind()
    return tuple(
        mean if item.requires_grad else mean.detach()
        for mean, item in zip(found, values, strict=True)
    )


def classified(logits: Tensor, truth: Tensor) -> tuple[Tensor, Metrics]:
    """Cross-entropy (nats) and accuracy, of images or of pixels.

    Args:
        logits: [B, K] or [B, K, h, w] float32.
        truth: [B] or [B, h, w] int64; `IGNORED` counts nowhere.

    Returns:
        Mean loss, 0 when no label counts; 'accuracy' and, of pixels, 'foreground', the share
        of the objects' pixels (class above 0) that are right: background is most of a
        picture, so that 'accuracy' is high when no object is found at all.
    """
    counted = truth != IGNORED
    losses = F.cross_entropy(logits, truth, ignore_index=IGNORED, reduction="none")
    hits = logits.detach().argmax(1) == truth
    if truth.ndim == 3:
        loss, *found = means([losses, hits, hits], [counted, counted, truth > 0])
    else:
        loss, *found = means([losses, hits], [counted, counted])
    return loss, dict(zip(("accuracy", "foreground"), found, strict=False))


def depth_errors(
    output: Tensor, metres: Tensor, use_l2: bool = False
) -> tuple[Tensor, Metrics]:
    """L1 loss and metrics of depth where there is a surface; elsewhere nothing counts.

    Args:
        output: [B, h, w] float32, the prediction: `ORIGIN` + output / `PER_METRE` metres.
        metres: [B, h, w] float, 0 where there is no surface.
        use_l2: mean squared error instead.

    Returns:
        Mean loss in units of 25 cm (squared: of that, squared); 'accuracy' and 'strict', the
        shares of pixels whose prediction is less than 1.25 and 1.1 times too large or too
        small; 'rmse' and 'error' (mean absolute) in metres. All are 0 without any surface.
    """
    metres = metres.float()
    surface = metres > 0
    error = torch.where(surface, output - PER_METRE * (metres - ORIGIN), 0)
    losses = error.square() if use_l2 else error.abs()
    error = error.detach() / PER_METRE
    # What is predicted behind the camera is wrong however its ratio looks.
    ratio = (ORIGIN + output.detach() / PER_METRE).clamp_min(1e-6) / metres
    ratio = torch.maximum(ratio, 1 / ratio)
    values = [losses, ratio < 1.25, ratio < 1.1, error.square(), error.abs()]
    loss, near, strict, square, mean = means(values, [surface] * len(values))
    return loss, {"accuracy": near, "strict": strict, "rmse": square.sqrt(), "error": mean}


class Task:
    """What is predicted: a plain object without weights.

    Args:
        info: what the data are.
    """

    backbone: str | None = None  # the `Wrapper.model_choice` that the task needs

    def __init__(self, info: DataInfo):
        self.info = info

    def prepare(self, batch: Batch, generator: torch.Generator | None) -> Batch:
        """The batch that the model is to see; by default the one that came."""
        return batch

    def evaluate(self, batch: Batch, out: Output) -> tuple[Tensor, Metrics]:
        """The scalar loss, and 0-d metrics on the device, 'accuracy' first."""
        raise NotImplementedError


class ProbeTask(Task):
    """A supervised task: the linear and the MLP head of one target, nothing else."""

    def trained(
        self, batch: Batch, out: Output, target: str, use_l2: bool = False
    ) -> tuple[Tensor, Metrics]:
        """Mean loss of the heads of `target`, and their metrics; 'accuracy' is the linear's."""
        losses, metrics = probe_losses(batch, out, target, use_l2)
        if not losses:
            raise UserError(
                f"no probe predicts '{target}': see Wrapper.run_classifier, "
                "Wrapper.out_classes and Wrapper.dense_pred (and SynDataset.dense, for pixels)"
            )
        loss = torch.stack(losses).mean()
        accuracy = metrics[f"fc_{target}_accuracy"]
        return loss, {"accuracy": accuracy, "loss": loss.detach()} | metrics


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
        """The method's 'loss' and, where there is one, its 'accuracy'."""
        raise NotImplementedError

    def evaluate(self, batch: Batch, out: Output) -> tuple[Tensor, Metrics]:
        """Pretext loss plus the mean of the probes' losses."""
        own = self.pretext(batch, out)
        losses, probes = probe_losses(batch, out)
        loss = own["loss"] + torch.stack(losses).mean() if losses else own["loss"]
        names = (f"fc_{target}_accuracy" for target in ("class", "segment", "depth"))
        best = next((probes[name] for name in names if name in probes), own.get("accuracy"))
        metrics = {} if best is None else {"accuracy": best}
        metrics |= {"loss": loss.detach()}
        metrics |= {f"pretext_{name}": item.detach() for name, item in own.items()}
        return loss, metrics | probes
