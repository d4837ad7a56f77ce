"""Barlow Twins (Zbontar et al., ICML 2021, arXiv 2103.03230): dimensions do not correlate.

The cross-correlation matrix of the views' dimensions over the batch is driven to the identity.
Published: ResNet-50 on ImageNet, 1,000 epochs, 73.2 % linear accuracy.
"""

from selfstudy import distributed
from selfstudy.losses import monitors, redundancy
from selfstudy.models.siamese import Siamese
from selfstudy.registry import configurable, register
from selfstudy.tasks.base import Metrics, PretextTask, of_minibatch
from selfstudy.types import Batch, DataInfo, Output
from util.errors import UserError


@register("backbone", "barlow")
class BarlowModel(Siamese):
    """An encoder and a wide projector, without L2 normalisation."""

    on_sphere = False


@register("task")
@configurable(denylist=["info"])
class BarlowTask(PretextTask):
    """Squared differences of the correlations from the identity.

    Args:
        info: description of the data set.
        off_diagonal: weight of the correlations between different dimensions, lambda.
    """

    backbone = "barlow"
    batch_dependent = of_minibatch("loss", "negative", "spread")

    def __init__(self, info: DataInfo, off_diagonal: float = 5e-3):
        super().__init__(info)
        if off_diagonal < 0:
            raise UserError(f"BarlowTask.off_diagonal = {off_diagonal}: expected 0 or more")
        self.off_diagonal = off_diagonal

    def pretext(self, batch: Batch, out: Output) -> Metrics:
        """The loss (no unit), and the numbers of `monitors.health`."""
        z0, z1 = self.output(out, "query0"), self.output(out, "query1")
        gathered = distributed.gather(z0), distributed.gather(z1)
        loss = redundancy.barlow_twins(z0, z1, self.off_diagonal, *gathered)
        return {"loss": loss, **monitors.health(*gathered)}
