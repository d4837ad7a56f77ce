"""VICReg (Bardes, Ponce, LeCun, ICLR 2022, arXiv 2105.04906): variance, invariance, covariance.

No negatives and no momentum encoder: the views agree, while each dimension keeps a standard
deviation of 1 over the batch and dimensions stay uncorrelated. Published: ResNet-50 on
ImageNet, 1,000 epochs, 73.2 % linear accuracy.
"""

from selfstudy import distributed
from selfstudy.losses import monitors, redundancy
from selfstudy.models.siamese import Siamese
from selfstudy.registry import configurable, register
from selfstudy.tasks.base import Metrics, PretextTask, of_minibatch
from selfstudy.types import Batch, DataInfo, Output
from util.errors import UserError


@register("backbone", "vicreg")
class VICRegModel(Siamese):
    """An encoder and a wide projector, without L2 normalisation."""

    on_sphere = False


@register("task")
@configurable(denylist=["info"])
class VICRegTask(PretextTask):
    """The weighted sum of the three terms, see `redundancy.vicreg`.

    Args:
        info: description of the data set.
        invariance: weight of the mean squared distance of the views.
        variance: weight of the hinge loss on standard deviations below 1.
        covariance: weight of the squared covariances.
        eps: in the root of the variance.
        halve_variance: the variance term is halved, as in the paper's published code; its
            equation and untitled-ai/self_supervised have no half.
    """

    backbone = "vicreg"
    batch_dependent = of_minibatch("loss", "negative", "spread")

    def __init__(
        self,
        info: DataInfo,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        eps: float = 1e-4,
        halve_variance: bool = False,
    ):
        super().__init__(info)
        named = {"invariance": invariance, "variance": variance, "covariance": covariance}
        for name, weight in named.items():
            if weight < 0:
                raise UserError(f"VICRegTask.{name} = {weight}: expected 0 or more")
        if eps <= 0:
            raise UserError(f"VICRegTask.eps = {eps}: expected a positive number")
        self.options = {**named, "eps": eps, "halve_variance": halve_variance}

    def pretext(self, batch: Batch, out: Output) -> Metrics:
        """The loss (no unit), and the numbers of `monitors.health`."""
        z0, z1 = self.output(out, "query0"), self.output(out, "query1")
        gathered = distributed.gather(z0), distributed.gather(z1)
        loss = redundancy.vicreg(z0, z1, all_z0=gathered[0], all_z1=gathered[1], **self.options)
        return {"loss": loss, **monitors.health(*gathered)}
