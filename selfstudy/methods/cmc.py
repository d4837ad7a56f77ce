"""CMC (Tian, Krishnan, Isola, ECCV 2020, arXiv 1906.05849): lightness and colour match.

One network encodes the L channel of an image and another the a and b channels. InfoNCE between
each one's feature and the other's features of the previous round, which two memory banks keep.
Published (selfstudy, arXiv 2003.14323) with ResNet-9 on CIFAR-10: 400
rounds, batches of 512.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from selfstudy import distributed
from selfstudy.losses import monitors
from selfstudy.losses.banks import bank_nce
from selfstudy.losses.contrastive import info_nce
from selfstudy.models.encoder import ImageEncoder
from selfstudy.models.resnet import ResnetModel, init_resnet
from selfstudy.registry import configurable, register
from selfstudy.tasks.base import Metrics, PretextTask, of_minibatch
from selfstudy.types import Batch, DataInfo, Features, Output
from util.errors import UserError


class LabEncoder(ImageEncoder):
    """Two networks, for L and for a and b, whose features are concatenated.

    Attributes:
        parts: D of the first network's embedding, and of the second's.
    """

    def __init__(self):
        super().__init__()
        self.l, self.ab = init_resnet(1), init_resnet(2)
        self.parts = (self.l.out_feats, self.ab.out_feats)
        self.out_feats = sum(self.parts)
        self.dense_feats = self.l.dense_feats + self.ab.dense_feats

    def forward(self, images: Tensor) -> Features:
        """Features of LAB images [B, 3, H, W]."""
        first, second = self.l(images[:, :1]), self.ab(images[:, 1:])
        return Features(
            torch.cat((first.pooled, second.pooled), 1),
            torch.cat((first.dense, second.dense), 1),
            {name: torch.cat((item, second.layers[name]), 1)
             for name, item in first.layers.items()},
        )  # fmt: skip


@register("backbone", "cmc")
@configurable(denylist=["info", "run_selfsup"])
class CMCModel(ResnetModel):
    """Two networks (of half the width by `ResNet.is_half`), and a memory bank for each.

    A bank is indexed by the image's row in the data file, so it has a row for every training
    image. Both are in the snapshot and on the device: 8 * dataset_size * D bytes.

    Args:
        info: description of the data set.
        run_selfsup: False builds the encoder only.
        dataset_size: rows of a bank; None is up to the last training row of the data file, so
            that with few labels (`BaseDataset.semisupervised`) rows between the kept ones stay
            random: easy negatives, which lower the loss.
        nce_k: K, negatives sampled from the bank for each image.
        nce_t: T.
        nce_m: decay of a bank's row when its image was seen.
        exclude_positive: never sample an image as its own negative; published: it may be.

    Raises:
        UserError: the images are not LAB, or a number is out of range.
    """

    encoded_views = 1
    encoder: LabEncoder
    bank_l: Tensor
    bank_ab: Tensor

    def __init__(
        self,
        info: DataInfo,
        run_selfsup: bool,
        dataset_size: int | None = None,
        nce_k: int = 4096,
        nce_t: float = 0.1,
        nce_m: float = 0.4,
        exclude_positive: bool = True,
    ):
        if info.space != "lab":
            raise UserError(
                f"CMC compares L with a and b and the images are {info.space}: set "
                "CIFARDataset.to_lab or SynDataset.use_lab = True, or take such a data set"
            )
        _check(dataset_size, nce_k, nce_t, nce_m)
        super().__init__(info, run_selfsup)
        self.nce_k, self.nce_t, self.nce_m = nce_k, nce_t, nce_m
        self.exclude_positive = exclude_positive
        self.new_rows: tuple[Tensor, ...] | None = None  # rows and features of this step
        self.checked = False  # whether the rows were checked against the banks' size
        if run_selfsup:
            rows = max(1 + info.last_row, info.rows.get("train", 0))
            size = max(2, rows) if dataset_size is None else dataset_size
            for name, feats in zip(("l", "ab"), self.encoder.parts, strict=True):
                most = 1 / math.sqrt(feats / 3)  # initial rows have a length of about 1
                rows = torch.empty(size, feats).uniform_(-most, most)
                self.register_buffer(f"bank_{name}", rows)

    def build(self, info: DataInfo) -> ImageEncoder:
        """Build the two networks."""
        return LabEncoder()

    def negatives(self, rows: Tensor) -> Tensor:
        """Bank rows [B, K], uniform with replacement."""
        count = len(self.bank_l) - self.exclude_positive
        drawn = distributed.draw_share(
            lambda n: torch.randint(count, (n, self.nce_k), device=rows.device), len(rows)
        )
        return drawn + (drawn >= rows[:, None]) if self.exclude_positive else drawn

    def selfsup(self, feats: tuple[Features, ...], batch: Batch) -> dict[str, Tensor]:
        """The unit features 'l' and 'ab' [B, D], and the 'loss' (nats), both ways summed.

        In training the positive is the image's row in the other network's bank, against K rows.
        Validation and test images have no rows: their positive is the other network's feature,
        against all rows of the bank, weighted as if there were K.
        """
        split = feats[0].pooled.float().split(self.encoder.parts, 1)
        light, colour = (F.normalize(part) for part in split)
        pairs = (light, colour, self.bank_ab), (colour, light, self.bank_l)
        if self.training:
            self._check_rows(batch.idxs)
            self.new_rows = batch.idxs, light.detach(), colour.detach()
            drawn = self.negatives(batch.idxs)
            ways = [bank_nce(own, bank, batch.idxs, drawn, self.nce_t)
                    for own, _, bank in pairs]  # fmt: skip
        else:
            margin = math.log(self.nce_k / len(self.bank_l))
            losses = [info_nce(own, other, self.nce_t, bank, log_margin=margin)
                      for own, other, bank in pairs]  # fmt: skip
            ways = [item.loss for item in losses]
        return {"l": light, "ab": colour, "loss": ways[0] + ways[1]}

    def _check_rows(self, idxs: Tensor) -> None:
        """Refuse rows beyond the banks; only at the first step, since it synchronises."""
        if self.checked or idxs.device.type == "meta":
            return
        self.checked, last = True, int(idxs.max())
        if last >= len(self.bank_l):
            raise UserError(
                f"CMCModel.dataset_size: the banks have {len(self.bank_l)} rows and an image "
                f"is row {last} of the data file; set it to the number of training images "
                "there are without BaseDataset.semisupervised"
            )

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the banks' rows of the images of this step towards their features."""
        if self.new_rows is None:
            return
        # Gathered, so that all processes have the same banks.
        idxs, *parts = map(distributed.gather_detached, self.new_rows)
        for bank, new in zip((self.bank_l, self.bank_ab), parts, strict=True):
            mixed = self.nce_m * bank[idxs] + (1 - self.nce_m) * new
            bank.index_copy_(0, idxs, F.normalize(mixed))
        self.new_rows = None


def _check(size: int | None, nce_k: int, nce_t: float, nce_m: float) -> None:
    for name, value, fits, expected in (
        ("dataset_size", size, size is None or size > 1, "the number of training images"),
        ("nce_k", nce_k, nce_k > 0, "1 or more, such as 4096"),
        ("nce_t", nce_t, nce_t > 0, "a positive temperature, such as 0.1"),
        ("nce_m", nce_m, 0 <= nce_m < 1, "0 up to below 1, such as 0.4"),
    ):
        if not fits:
            raise UserError(f"CMCModel.{name} = {value}: expected {expected}")


@register("task")
@configurable(denylist=["info"])
class CMCTask(PretextTask):
    """The loss that `CMCModel` computes with its banks, K and T."""

    backbone = "cmc"
    batch_dependent = of_minibatch("accuracy", "top5", "negative", "spread")

    def pretext(self, batch: Batch, out: Output) -> Metrics:
        """The loss, retrieval accuracy of ab by L in the batch, mean cosines, and spread."""
        loss = self.output(out, "loss")
        light, colour = (distributed.gather_detached(out.selfsup[name]) for name in ("l", "ab"))
        top1, top5 = monitors.retrieval(light, colour)
        return {"loss": loss, "accuracy": top1, "top5": top5,
                **monitors.health(light, colour)}  # fmt: skip
