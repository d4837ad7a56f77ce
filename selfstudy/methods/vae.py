"""A variational autoencoder (Kingma, Welling, ICLR 2014, arXiv 1312.6114), and inpainting.

Two linear layers map the embedding to the mean and log-variance of a code, from which a decoder
reconstructs the image. With `VAEModel.inpainting` the encoder's input is partly erased.
Published (selfstudy, arXiv 2003.14323) with ResNet-9 on CIFAR-10: 400 rounds.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfstudy import distributed
from selfstudy.data.transforms import ResizedCrop, span
from selfstudy.losses import monitors
from selfstudy.losses.precision import full_precision
from selfstudy.models.resnet import ResnetModel
from selfstudy.registry import configurable, register
from selfstudy.tasks.base import Metrics, PretextTask, of_minibatch
from selfstudy.types import Batch, DataInfo, Features, Output
from util.errors import UserError

CHANNELS = 256  # of the decoder's first three maps; halved with each later one
# Random erasing (Zhong et al., arXiv 1708.04896): share of the area, and ratio of the sides.
HOLES = ResizedCrop((0.02, 0.33), 1 / 0.3)
ERASED = 0.5  # share of the images


def erase_boxes(images: Tensor) -> Tensor:
    """Images [B, C, H, W], half of them with a box of normal noise (arXiv 1708.04896)."""
    count, *shape = images.shape
    height, width = shape[1:]
    device = images.device
    boxes, happens, noise = (
        distributed.draw_share(draw, count)
        for draw in (
            lambda n: HOLES.draw(n, height, width, None, device),
            lambda n: torch.rand(n, 1, device=device) < ERASED,
            lambda n: torch.randn(n, *shape, dtype=images.dtype, device=device),
        )
    )
    top, left, tall, wide = boxes[:, :, None].unbind(1)
    rows = span(top[:, 0], tall, height) & happens
    hole = rows[:, None, :, None] & span(left[:, 0], wide, width)[:, None, None]
    return torch.where(hole, noise, images)


def decoder(feats: int, channels: int, res: int, width: float) -> nn.Sequential:
    """Build the decoder: codes [B, D, 1, 1] to images [B, C, res, res], upsampling by 2."""
    layers: list[nn.Module] = []
    before, side = feats, 2
    while side < res:
        side *= 2
        after = max(4, round(width * (CHANNELS >> max(0, side.bit_length() - 5))))
        layers += [
            nn.ConvTranspose2d(before, after, 4, 2, 0 if side == 4 else 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
        ]
        before = after
    return nn.Sequential(*layers, nn.Conv2d(before, channels, 1))


@register("backbone", "vae")
@configurable(denylist=["info", "run_selfsup"])
class VAEModel(ResnetModel):
    """An encoder, two linear layers for the code's distribution, and a decoder.

    Codes are sampled, and images erased, in training only; evaluation uses the mean code of the
    whole image.

    Args:
        info: description of the data set.
        run_selfsup: False builds the encoder only.
        output_res: side of the reconstruction in pixels, a power of two; None is the images'
            side, rounded down to a power of two.
        inpainting: replace a box by noise in half of the encoder's input images.
        do_reparameterize: sample the code from its distribution; otherwise use the mean.
        width: factor on the decoder's channels (256, 256, 256, 128, 64 from 4 to 64 pixels).
    """

    encoded_views = 1

    def __init__(
        self,
        info: DataInfo,
        run_selfsup: bool,
        output_res: int | None = None,
        inpainting: bool = False,
        do_reparameterize: bool = True,
        width: float = 1.0,
    ):
        super().__init__(info, run_selfsup)
        self.inpainting, self.do_reparameterize = inpainting and run_selfsup, do_reparameterize
        self.output_res = output_res or 1 << (info.input_res.bit_length() - 1)
        if self.output_res < 4 or self.output_res & (self.output_res - 1):
            raise UserError(
                f"VAEModel.output_res = {self.output_res}: expected a power of two from 4 on, "
                "such as 32"
            )
        if width <= 0:
            raise UserError(f"VAEModel.width = {width}: expected a positive factor")
        if run_selfsup:
            self.mean = nn.Linear(self.out_feats, self.out_feats)
            self.log_variance = nn.Linear(self.out_feats, self.out_feats)
            self.decoder = decoder(self.out_feats, info.channels, self.output_res, width)

    def encode(self, images: Tensor) -> Features:
        """Features of [B, C, H, W] images; in training of the erased ones when inpainting."""
        return super().encode(
            erase_boxes(images) if self.inpainting and self.training else images
        )

    def selfsup(self, feats: tuple[Features, ...], batch: Batch) -> dict[str, Tensor]:
        """Reconstructions and their targets, and the code's distribution.

        Returns:
            'drawn' and 'truth' [B, C, res, res], the latter resized by nearest neighbour;
            'mean' and 'log_variance' [B, D].
        """
        mean = self.mean(feats[0].pooled).float()
        log_variance = self.log_variance(feats[0].pooled).float()
        code = mean
        if self.do_reparameterize and self.training:
            noise = distributed.draw_share(
                lambda n: torch.randn(n, *mean.shape[1:], device=mean.device), len(mean)
            )
            code = mean + (log_variance / 2).exp() * noise
        return {
            "drawn": self.decoder(code[:, :, None, None]),
            "truth": F.interpolate(batch.views[0], [self.output_res] * 2),
            "mean": mean,
            "log_variance": log_variance,
        }


@full_precision
def kl_to_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL divergence in nats of N(mean, e^log_variance) from N(0, 1) for each row of [B, D].

    In closed form (arXiv 1312.6114, appendix B).
    """
    return (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2


@register("task")
@configurable(denylist=["info"])
class VAETask(PretextTask):
    """Mean squared error of the reconstruction, plus the weighted KL divergence of the code.

    Args:
        info: description of the data set.
        lmd: weight of the divergence (nats) beside the error, a mean over values.
        kl_sum_over_batch: sum the divergence over the images of a batch, as published, so that
            the weight grows with the batch; otherwise it is their mean. L with the sum over
            batches of B images is L * B with the mean: the published 1e-5 at 512 is 0.00512.
    """

    backbone = "vae"

    def __init__(self, info: DataInfo, lmd: float = 1e-3, kl_sum_over_batch: bool = False):
        super().__init__(info)
        if lmd < 0:
            raise UserError(f"VAETask.lmd = {lmd}: expected 0 or more")
        self.lmd, self.kl_sum_over_batch = lmd, kl_sum_over_batch
        sums = ("loss",) if kl_sum_over_batch else ()
        self.batch_dependent = of_minibatch("spread", *sums)

    def pretext(self, batch: Batch, out: Output) -> Metrics:
        """The loss, its 'error', the 'kl' of an image in nats, the 'spread' of the codes."""
        drawn, truth = self.output(out, "drawn").float(), self.output(out, "truth")
        mean = out.selfsup["mean"]
        error = F.mse_loss(drawn, truth)
        kl = kl_to_normal(mean, out.selfsup["log_variance"])
        weighed = kl.mean()
        if self.kl_sum_over_batch:
            weighed = weighed * len(kl) * distributed.size()  # the images of all processes
        return {"loss": error + self.lmd * weighed, "error": error, "kl": kl.mean(),
                "spread": monitors.feature_std(distributed.gather_detached(mean))}  # fmt: skip
