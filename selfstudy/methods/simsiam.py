"""SimSiam (Chen, He, CVPR 2021, arXiv 2011.10566): BYOL without the momentum encoder.

A predictor maps each view's projection to the other's, which has a stop-gradient: that prevents
collapse. Published: ResNet-50 on ImageNet, 100 epochs, 68.1 % linear accuracy, the predictor at
a constant learning rate (here all parameters follow the schedule).
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
    """An encoder, a projector and a predictor (`predictor.layers = 2`)."""

    on_sphere = False  # the loss is a cosine, which normalises

    def selfsup(self, feats: tuple[Features, ...], batch: Batch) -> dict[str, Tensor]:
        """Of each view the prediction, 'query0' and 'query1', and the projection, 'key...'."""
        check_views(batch)
        keys = [self.projector(features.pooled) for features in feats]
        queries = [self.normalise(self.predictor(z)) for z in keys]
        outputs = {f"query{view}": rows for view, rows in enumerate(queries)}
        return outputs | {
            f"key{view}": self.normalise(z).detach() for view, z in enumerate(keys)
        }


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
        gathered = map(distributed.gather_detached, (z0, z1))
        return {"loss": loss, **monitors.health(*gathered)}
