"""SimCLR (Chen et al., ICML 2020, arXiv 2002.05709): contrast two views within the batch.

Both views pass through the same encoder and projector; NT-Xent classifies each one's other view
among all views in the batch.
"""

from selfstudy import distributed
from selfstudy.losses import contrastive, monitors
from selfstudy.models.siamese import Siamese
from selfstudy.registry import configurable, register
from selfstudy.tasks.base import Metrics, PretextTask, of_minibatch
from selfstudy.types import Batch, DataInfo, Output
from util.errors import UserError


@register("backbone", "simclr")
class SimCLRModel(Siamese):
    """An encoder and a projector, shared by both views."""


@register("task")
@configurable(denylist=["info"])
class SimCLRTask(PretextTask):
    """NT-Xent.

    Args:
        info: description of the data set.
        temperature: T.
        same_view_negatives: each view has 2 B - 1 candidates, as published; otherwise only
            those of the other view, B (as in untitled-ai/self_supervised).
        factor: multiplies the loss; 2 adds the directions, as that code does.
    """

    backbone = "simclr"
    batch_dependent = of_minibatch("loss", "accuracy", "top5", "negative", "spread")

    def __init__(
        self,
        info: DataInfo,
        temperature: float = 0.2,
        same_view_negatives: bool = True,
        factor: float = 1.0,
    ):
        super().__init__(info)
        if temperature <= 0:
            raise UserError(f"SimCLRTask.temperature = {temperature}: expected a positive one")
        self.temperature, self.factor = temperature, factor
        self.loss = contrastive.nt_xent if same_view_negatives else contrastive.cross_view

    def pretext(self, batch: Batch, out: Output) -> Metrics:
        """The loss (nats), retrieval accuracy of the other view, mean cosines, and spread."""
        z0, z1 = self.output(out, "query0"), self.output(out, "query1")
        all0, all1 = distributed.gather(z0), distributed.gather(z1)
        offset = distributed.offset(z0)
        loss = self.factor * self.loss(z0, z1, self.temperature, all0, all1, offset)
        top1, top5 = monitors.retrieval(z0, z1, all1, offset)
        return {"loss": loss, "accuracy": top1, "top5": top5, **monitors.health(all0, all1)}
