"""SimSiam (Chen, He, CVPR 2021, arXiv 2011.10566): BYOL without the momentum encoder.

A prediction of each view is to equal the projection of the other, through which no gradient
flows: that alone keeps it from collapsing. Published: ResNet-50 on ImageNet, 100 epochs,
68.1 % linear accuracy, the prediction at a constant learning rate (here all parameters have the
schedule's).
"""

from torch import Tensor

from selfstudy import distributed
from selfstudy.losses import monitors, redundancy
from selfstudy.models.siamese import Siamese, check_views
from selfstudy.registry import configurable, register
from selfstudy.tasks.base import Metrics, PretextTask, of_minibatch
from selfstudy.types import Batch, Features, Output


@register("backbone", "simsiam")
class SimSiamModel(Siamese):
    """An encoder, a projection and a prediction (`predictor.layers = 2`)."""

    on_sphere = False  # the cosine sees to that

    def selfsup(self, feats: tuple[Features, ...], batch: Batch) -> dict[str, Tensor]:
        """Of each view the prediction, 'query0' and 'query1', and the projection, 'key...'."""
        check_views(batch)
        keys = [self.projector(each.pooled) for each in feats]
        found = {f"query{view}": self.placed(self.predictor(z)) for view, z in enumerate(keys)}
        return found | {f"key{view}": self.placed(z).detach() for view, z in enumerate(keys)}


@register("task")
@configurable(denylist=["info"])
class SimSiamTask(PretextTask):
    """-cos of prediction and projection, the mean of both directions; -1 is the least."""

    backbone = "simsiam"
    batch_dependent = of_minibatch("negative", "spread")

    def pretext(self, batch: Batch, out: Output) -> Metrics:
        """The loss, and the numbers of `monitors.health`, 'spread' that of projections."""
        p0, p1 = self.output(out, "query0"), self.output(out, "query1")
        z0, z1 = out.selfsup["key0"], out.selfsup["key1"]
        loss = (redundancy.simsiam(p0, z1) + redundancy.simsiam(p1, z0)) / 2
        whole = map(distributed.gather_detached, (z0, z1))
        return {"loss": loss, **monitors.health(*whole)}
