"""BYOL (Grill et al., NeurIPS 2020, arXiv 2006.07733): predict the EMA teacher's projection.

No negatives: a predictor maps each view's projection to the teacher's projection of the other
view. Batch norm in the MLPs prevents collapse (as do other means, arXiv 2010.10241).
"""

import torch

from selfstudy import distributed
from selfstudy.losses import monitors, redundancy
from selfstudy.models.siamese import MomentumEncoder
from selfstudy.registry import configurable, register
from selfstudy.tasks.base import Metrics, PretextTask, of_minibatch
from selfstudy.types import Batch, Output


@register("backbone", "byol")
class BYOLModel(MomentumEncoder):
    """An encoder, its momentum encoder, and a predictor (`predictor.layers = 2`)."""

    symmetric = True


@register("task")
@configurable(denylist=["info"])
class BYOLTask(PretextTask):
    """2 - 2 cos of prediction and projection, summed over both directions."""

    backbone = "byol"
    batch_dependent = of_minibatch("negative", "spread")

    def pretext(self, batch: Batch, out: Output) -> Metrics:
        """The loss, and the numbers of `monitors.health`."""
        first = self.output(out, "query0"), self.output(out, "key1")
        pairs = [first]
        if "key0" in out.selfsup:
            pairs.append((out.selfsup["query1"], out.selfsup["key0"]))
        losses = [redundancy.byol(query, key) for query, key in pairs]
        gathered = map(distributed.gather_detached, first)
        return {"loss": torch.stack(losses).sum(), **monitors.health(*gathered)}
