"""Residual networks as encoders: images to named feature maps and one embedding.

ResNet-9 follows the small network of the DAWNBench CIFAR-10 entries (D. Page, "How to train
your ResNet", 2018) with CELU(0.075). The deep ones are in `models.resnet_stages`.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfstudy.models.encoder import ImageEncoder
from selfstudy.models.resnet_stages import DEEP, deep_stages
from selfstudy.registry import Names, configurable, get, register
from selfstudy.types import Batch, DataInfo, Features
from util.errors import UserError


class _FastCELU(torch.autograd.Function):
    """CELU by the vectorised exp; torch's expm1 takes a third of a narrow net's CPU step."""

    @staticmethod
    def forward(ctx, images: Tensor, alpha: float) -> Tensor:
        below = images.clamp(max=0).mul_(1 / alpha).exp_().mul_(alpha).sub_(alpha)
        result = torch.maximum(images, below, out=below)
        ctx.alpha = alpha
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (result,) = ctx.saved_tensors
        alpha = ctx.alpha
        return torch.ops.aten.elu_backward(grad, alpha, 1.0, 1 / alpha, True, result), None


class CELU(nn.Module):
    """max(0, x) + min(0, a (exp(x / a) - 1)) (Barron, arXiv 1704.07483), fast on a CPU.

    Args:
        alpha: a.
    """

    def __init__(self, alpha: float):
        super().__init__()
        self.alpha = alpha

    def forward(self, images: Tensor) -> Tensor:
        """Elementwise activation of the same shape; may overwrite its argument."""
        if images.device.type == "cpu" and images.dtype == torch.float32:
            return _FastCELU.apply(images, self.alpha)
        return F.celu(images, self.alpha, inplace=True)


def _conv(channels_in: int, channels_out: int, pool: bool = False) -> nn.Sequential:
    """Convolution, batch norm and CELU; max pooling before the CELU, which is monotonic."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        *([nn.MaxPool2d(2)] if pool else []),
        CELU(0.075),
    )


class _Residual(nn.Module):
    """Two convolutions around a skip connection."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(_conv(channels, channels), _conv(channels, channels))

    def forward(self, images: Tensor) -> Tensor:
        return images + self.body(images)


def _resnet9(channels_in: int, width: float) -> tuple[dict[str, nn.Module], int]:
    """Stages of ResNet-9 by name, and its output channels; total stride 8."""
    c = max(4, round(64 * width))
    layers: dict[str, nn.Module] = {
        "conv": _conv(channels_in, c),
        "block1": nn.Sequential(_conv(c, 2 * c, pool=True), _Residual(2 * c)),
        "block2": _conv(2 * c, 4 * c, pool=True),
        "block3": nn.Sequential(_conv(4 * c, 8 * c, pool=True), _Residual(8 * c)),
    }
    return layers, 8 * c


def _stages(
    choice: str,
    in_channels: int,
    width: float,
    pool: bool,
    dilate: list[bool],
    small_padding: int | None,
) -> tuple[dict[str, nn.Module], int]:
    """Stages of any network by name, and its output channels; arguments as `deep_stages`."""
    if len(dilate) != 3 or (choice == "resnet9" and any(dilate)):
        raise UserError(
            f"ResNet.replace_stride_with_dilation = {dilate}: expected three booleans, and "
            "a network other than resnet9"
        )
    if choice == "resnet9":
        return _resnet9(in_channels, width)
    return deep_stages(choice, in_channels, width, pool, dilate, small_padding)


def _up_to(names: list[str], feat_layer: int, choice: str) -> list[str]:
    """Names of the stages up to and including index `feat_layer`."""
    if not -len(names) <= feat_layer < len(names):
        raise UserError(f"ResNet.feat_layer = {feat_layer}: {choice} has {len(names)} stages")
    return names[: feat_layer % len(names) + 1]


def _embedding_layer(channels: int, out_feats: int | None, prepool: bool) -> nn.Module:
    """The linear layer to the embedding, a 1x1 convolution where it precedes pooling."""
    if not out_feats:
        return nn.Identity()
    return nn.Conv2d(channels, out_feats, 1) if prepool else nn.Linear(channels, out_feats)


@configurable(denylist=["in_channels", "choice"])
class ResNet(ImageEncoder):
    """A residual network without its classifier.

    Args:
        in_channels: C of the images.
        choice: which network, see `init_resnet`.
        feat_layer: index of the stage that features are taken from, in the order 'conv',
            'block1', ...; -1 is the last.
        freeze_at_k: number of first stages that are frozen, batch norm in evaluation mode.
        is_half: half of all widths (CMC's two networks).
        out_feats: D of the embedding after one linear layer; None has no such layer.
        prepool_fc: apply that layer at each position before average pooling, so that the
            dense map has D channels too; otherwise the map is pooled first.
        skip_init_pool: no max pooling after the first convolution (deep networks).
        small_stem: begin a deep network with a 3x3 convolution of stride 1 and no pooling, for
            pictures of about 32 x 32; resnet9 always does.
        stem_padding: of that convolution, in pixels; 1 keeps the size, the code of
            untitled-ai/self_supervised has 2.
        replace_stride_with_dilation: three booleans, for the last three stages of a deep
            network.
        width: factor on all channels; 0.25 is the narrow network for CPUs, 3 the x3-wide one.
    """

    def __init__(
        self,
        in_channels: int,
        choice: str,
        feat_layer: int = -1,
        freeze_at_k: int | None = None,
        is_half: bool = False,
        out_feats: int | None = 256,
        prepool_fc: bool = False,
        skip_init_pool: bool = False,
        small_stem: bool = False,
        stem_padding: int = 1,
        replace_stride_with_dilation: list[bool] | None = None,
        width: float = 1.0,
    ):
        super().__init__()
        if width <= 0:
            raise UserError(f"ResNet.width = {width}: expected a positive factor, such as 0.25")
        layers, channels = _stages(
            choice,
            in_channels,
            width=width / 2 if is_half else width,
            pool=not skip_init_pool,
            dilate=list(replace_stride_with_dilation or [False] * 3),
            small_padding=stem_padding if small_stem else None,
        )
        self.layers = nn.ModuleDict(layers)
        self.used = _up_to(list(layers), feat_layer, choice)
        if len(self.used) < len(layers):
            channels = self._used_channels(in_channels)
        self.freeze_at_k = self._freeze(freeze_at_k or 0, choice)
        self.prepool_fc = prepool_fc
        self.max_pool = choice == "resnet9"
        self.out_feats = out_feats or channels
        self.dense_feats = self.out_feats if prepool_fc else channels
        self.fc = _embedding_layer(channels, out_feats, prepool_fc)
        self.train()

    def _used_channels(self, in_channels: int) -> int:
        """Channels of the last used stage, from a pass of two blank images."""
        with torch.no_grad():
            maps = self._run(torch.zeros(2, in_channels, 32, 32))
        return maps[self.used[-1]].shape[1]

    def _freeze(self, count: int, choice: str) -> int:
        """Exclude the first `count` stages from training; returns `count`."""
        if not 0 <= count <= len(self.layers):
            raise UserError(
                f"ResNet.freeze_at_k = {count}: {choice} has {len(self.layers)} stages"
            )
        for name in list(self.layers)[:count]:
            self.layers[name].requires_grad_(False)
        return count

    def train(self, mode: bool = True) -> "ResNet":
        """Frozen stages stay in evaluation mode."""
        super().train(mode)
        for name in list(self.layers)[: self.freeze_at_k]:
            self.layers[name].eval()
        return self

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        """Stage name -> map [B, C', h, w], of the used stages."""
        maps = {}
        for name in self.used:
            images = maps[name] = self.layers[name](images)
        return maps

    def forward(self, images: Tensor) -> Features:
        """Features of [B, C, H, W] images."""
        maps = self._run(images)
        last = maps[self.used[-1]]
        if self.prepool_fc:
            dense = self.fc(last)
            return Features(dense.mean((2, 3)), dense, maps)
        pooled = last.amax((2, 3)) if self.max_pool else last.mean((2, 3))
        return Features(self.fc(pooled), last, maps)


for _name in ("resnet9", *DEEP, "ws_resnet18", "ws_resnet50"):
    register("encoder", _name)(ResNet)


@configurable(denylist=["in_channels"])
def init_resnet(
    in_channels: int, choice: Annotated[str, Names("encoder")] = "resnet9"
) -> ImageEncoder:
    """Build a registered encoder.

    It has what `ImageEncoder` promises. Its class is called with `in_channels` and `choice`,
    since one class may implement several networks; its other arguments are gin's.

    Args:
        in_channels: C of the images.
        choice: the network: one with the options of `ResNet`, 'vit', 'amdim_ref', or
            'torchvision/' and a name of `torchvision.models`.
    """
    return get("encoder", choice)(in_channels, choice)


@register("backbone", "resnet")
class ResnetModel(nn.Module):
    """Backbone with an encoder only; base class of the pretraining methods' models.

    When a snapshot is loaded `encoder` must match it exactly; other modules are the method's
    and may be missing.

    Args:
        info: description of the data set.
        run_selfsup: build the method's own modules too; False builds the encoder only.
    """

    uses: tuple[str, ...] = ("init_resnet",)
    encoded_views: int | None = None  # number of views that are encoded; None is all

    def __init__(self, info: DataInfo, run_selfsup: bool):
        super().__init__()
        self.run_selfsup = run_selfsup
        self.encoder = self.build(info)
        self.out_feats: int = self.encoder.out_feats
        self.dense_feats: int = self.encoder.dense_feats

    def build(self, info: DataInfo) -> ImageEncoder:
        """Build the encoder."""
        return init_resnet(info.channels)

    def encode(self, images: Tensor) -> Features:
        """Features of [B, C, H, W] images."""
        return self.encoder(images)

    def selfsup(self, feats: tuple[Features, ...], batch: Batch) -> dict[str, Tensor]:
        """Tensors that the method's task computes its loss from; none for classification."""
        return {}

    def after_step(self, progress: float) -> None:
        """Update momentum encoders and queues; called after each optimizer step.

        Args:
            progress: share of the run's steps taken, 0 to 1.
        """


BackboneName = Annotated[str, Names("backbone")]
