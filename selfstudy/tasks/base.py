"""What every task shares: probe losses and metrics, and the form of a pretext task."""

import torch
import torch.nn.functional as F
from torch import Tensor

from selfstudy.types import Batch, DataInfo, Output
from util.errors import UserError

Metrics = dict[str, Tensor]


def probe_losses(
    batch: Batch, out: Output, target: str | None = None
) -> tuple[list[Tensor], Metrics]:
    """Cross-entropy of each probe and its accuracy.

    Args:
        batch: with the targets that the probes are named after.
        out: logits [B, K] or, dense, [B, K, h, w]; dense targets [B, H, W] are resized to
            the map by nearest neighbour.
        target: only the probes of this target.

    Returns:
        The losses (nats), and the metrics: '<kind>_<target>_accuracy' in [0, 1].
    """
    losses, metrics = [], {}
    for name, logits in out.logits.items():
        kind, _, wanted = name.partition("/")
        truth = batch.targets.get(wanted)
        if truth is None or (target is not None and wanted != target):
            continue
        if logits.ndim == 4:
            truth = F.interpolate(truth[:, None].float(), logits.shape[2:])[:, 0].long()
        losses.append(F.cross_entropy(logits.float(), truth))
        hits = logits.detach().argmax(1) == truth
        metrics[f"{kind}_{wanted}_accuracy"] = hits.float().mean()
    return losses, metrics


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


class PretextTask(Task):
    """A pretraining task: its own loss plus the mean loss of the detached probes.

    The probes tell downstream accuracy while the method trains; since they read detached
    features, no label reaches the encoder. `accuracy` is that of the linear class probe, or
    the pretext task's own when the data have no labels.
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
        best = probes.get("fc_class_accuracy", own.get("accuracy"))
        metrics = {} if best is None else {"accuracy": best}
        metrics |= {"loss": loss.detach()}
        metrics |= {f"pretext_{name}": item.detach() for name, item in own.items()}
        return loss, metrics | probes
