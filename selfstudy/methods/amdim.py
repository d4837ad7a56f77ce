"""AMDIM (Bachman, Hjelm, Buchwalter, NeurIPS 2019, arXiv 1906.00910).

Global features of a view predict the local features of the other view at two scales, against
those of all other images; and local features predict local ones. 'amdim' uses the same encoder
as the other methods (selfstudy, arXiv 2003.14323; ResNet-9 on CIFAR-10: 400 rounds, batches of
384), 'amdim_ref' the paper's.
"""

import copy
import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfstudy import distributed
from selfstudy.losses import monitors
from selfstudy.losses.banks import amdim_nce
from selfstudy.models.amdim_ref import AmdimEncoder
from selfstudy.models.encoder import ImageEncoder
from selfstudy.models.resnet import ResnetModel
from selfstudy.models.siamese import check_views
from selfstudy.registry import configurable, register
from selfstudy.tasks.base import Metrics, PretextTask, draw_rows, of_minibatch
from selfstudy.types import Batch, DataInfo, Features, Output
from util.errors import UserError

COARSE, FINE = 5, 7  # cells on a side of the two maps


def map_channels(encoder: nn.Module, info: DataInfo) -> dict[str, int]:
    """Stage -> channels of its map, from a copy on the device 'meta'."""
    twin = copy.deepcopy(encoder).to("meta")
    images = torch.zeros(2, info.channels, info.input_res, info.input_res, device="meta")
    with torch.no_grad():
        return {name: item.shape[1] for name, item in twin(images).layers.items()}


@register("backbone", "amdim")
class AMDIMModel(ResnetModel):
    """An encoder, and 1x1 convolutions that project maps of two stages to the embedding's D."""

    stages = (-1, -2)  # indices of the encoder's stages for the coarse and the fine map

    def __init__(self, info: DataInfo, run_selfsup: bool):
        super().__init__(info, run_selfsup)
        if not run_selfsup:
            return
        channels = map_channels(self.encoder, info)
        names = list(channels)
        if len(names) < -min(self.stages):
            raise UserError(
                f"AMDIM compares maps of two stages and this encoder gives {names}: see "
                "ResNet.feat_layer and init_resnet.choice"
            )
        self.names = [names[stage] for stage in self.stages]
        self.coarse, self.fine = (
            nn.Conv2d(channels[name], self.out_feats, 1) for name in self.names
        )

    def selfsup(self, feats: tuple[Features, ...], batch: Batch) -> dict[str, Tensor]:
        """Of each view 0, 1: 'global' [B, D], 'coarse' [B, D, 25], 'fine' [B, D, 49]."""
        check_views(batch)
        outputs = {}
        for view, features in enumerate(feats):
            outputs[f"global{view}"] = features.pooled
            for name, layer, side in zip(
                ("coarse", "fine"), (self.coarse, self.fine), (COARSE, FINE), strict=True
            ):
                stage = features.layers[self.names[name == "fine"]]
                # Averaging commutes with a linear layer (published: the layer first), which
                # then has fewer cells to compute.
                cells = layer(F.adaptive_avg_pool2d(stage, side))
                outputs[f"{name}{view}"] = cells.flatten(2)
        return outputs


@register("backbone", "amdim_ref")
class AMDIMRefModel(AMDIMModel):
    """AMDIM with the paper's encoder, whose maps are 5 x 5 and 7 x 7 already."""

    uses = ("AmdimEncoder",)
    stages = (-2, -3)  # the last one is the embedding

    def build(self, info: DataInfo) -> ImageEncoder:
        """Build the paper's encoder."""
        return AmdimEncoder(info.channels)


@register("task")
@configurable(denylist=["info"])
class AMDIMTask(PretextTask):
    """Three NCE losses, each in both directions: global to coarse, to fine, coarse to coarse.

    Args:
        info: description of the data set.
        tclip: scores s are clipped softly to tclip * tanh(s / tclip).
    """

    backbone = "amdim"
    batch_dependent = of_minibatch(
        "loss", "accuracy", "top5", "nce", "penalty", "negative", "spread"
    )

    def __init__(self, info: DataInfo, tclip: float = 30.0):
        super().__init__(info)
        if tclip <= 0:
            raise UserError(f"AMDIMTask.tclip = {tclip}: expected a positive bound, such as 30")
        self.tclip = tclip

    def prepare(self, batch: Batch, generator: torch.Generator | None) -> Batch:
        """Draw the cell of each view that predicts the other's cells: 'cell0', 'cell1' [B].

        Drawn here, since `generator` makes evaluation repeatable.
        """
        idxs = batch.idxs

        def draw(n: int) -> Tensor:
            return torch.randint(COARSE**2, (n, 2), generator=generator, device=idxs.device)

        drawn = draw_rows(draw, idxs, generator)
        cells = {f"cell{view}": drawn[:, view] for view in (0, 1)}
        return dataclasses.replace(batch, targets=batch.targets | cells)

    def pretext(self, batch: Batch, out: Output) -> Metrics:
        """The loss and its parts, retrieval accuracy, and the numbers of `monitors.health`.

        'nce' (nats) is the mean over both directions of the sum of the three losses, 'penalty'
        half of the sum of all six penalties of large scores.
        """
        first = distributed.gather_detached(self.output(out, "global0"))
        second = distributed.gather_detached(out.selfsup["global1"])
        parts = [self._one_way(batch, out, view) for view in (0, 1)]
        nce, penalty = torch.stack(parts).mean(0)
        top1, top5 = monitors.retrieval(first, second)
        return {"loss": nce + penalty, "accuracy": top1, "top5": top5, "nce": nce,
                "penalty": penalty, **monitors.health(first, second)}  # fmt: skip

    def _one_way(self, batch: Batch, out: Output, view: int) -> Tensor:
        """Sums [2] of losses and penalties of predicting the other view from `view`."""
        pooled, cells = out.selfsup[f"global{view}"], out.selfsup[f"coarse{view}"]
        chosen = batch.targets[f"cell{view}"][:, None, None].expand(-1, cells.shape[1], 1)
        if len(pooled) < 2 and not torch.is_grad_enabled():
            return pooled.new_zeros(
                2
            )  # no negatives: the last image of a split, alone in its minibatch
        cell, offset = cells.gather(2, chosen)[:, :, 0], distributed.offset(pooled)
        pairs = []
        for name, sources in (("coarse", (pooled, cell)), ("fine", (pooled,))):
            target = out.selfsup[f"{name}{1 - view}"]
            every = distributed.gather(target)
            pairs += [
                torch.stack(amdim_nce(source, target, self.tclip, all_trg=every, offset=offset))
                for source in sources
            ]
        return torch.stack(pairs).sum(0)
