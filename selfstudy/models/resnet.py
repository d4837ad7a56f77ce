"""Residual networks as encoders: images to named feature maps and one embedding.

ResNet-9 follows the small network of the DAWNBench CIFAR-10 entries (D. Page, "How to train
your ResNet", 2018) with CELU(0.075). The deep ones (He et al., arXiv 1512.03385; ResNeXt,
arXiv 1611.05431; wide, arXiv 1605.07146) are built from torchvision's blocks.
"""

from collections import OrderedDict
from typing import Annotated, Literal

import gin
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfstudy.registry import Names, register
from selfstudy.types import Batch, DataInfo, Features
from util.errors import UserError

# name -> (bottleneck blocks?, blocks per stage, groups, width per group)
DEEP = {
    "resnet18": (False, (2, 2, 2, 2), 1, 64),
    "resnet34": (False, (3, 4, 6, 3), 1, 64),
    "resnet50": (True, (3, 4, 6, 3), 1, 64),
    "resnet101": (True, (3, 4, 23, 3), 1, 64),
    "resnet152": (True, (3, 8, 36, 3), 1, 64),
    "resnext50_32x4d": (True, (3, 4, 6, 3), 32, 4),
    "resnext101_32x8d": (True, (3, 4, 23, 3), 32, 8),
    "wide_resnet50_2": (True, (3, 4, 6, 3), 1, 128),
    "wide_resnet101_2": (True, (3, 4, 23, 3), 1, 128),
}
Choice = Literal[
    "resnet9", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    "resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2",
]  # fmt: skip


class _FastCELU(torch.autograd.Function):
    """CELU from the vectorised exp: torch's own uses expm1, a third of a narrow CPU step."""

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
        """The activation, element by element; the argument may be overwritten."""
        if images.device.type == "cpu" and images.dtype == torch.float32:
            return _FastCELU.apply(images, self.alpha)
        return F.celu(images, self.alpha, inplace=True)


def _conv(channels_in: int, channels_out: int, pool: bool = False) -> nn.Sequential:
    """Convolution, batch norm and CELU, which only rises: pooling may go before it."""
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
    """The stages of ResNet-9 and its output channels; halves the size three times."""
    c = max(4, round(64 * width))
    layers = {
        "conv": _conv(channels_in, c),
        "block1": nn.Sequential(_conv(c, 2 * c, pool=True), _Residual(2 * c)),
        "block2": _conv(2 * c, 4 * c, pool=True),
        "block3": nn.Sequential(_conv(4 * c, 8 * c, pool=True), _Residual(8 * c)),
    }
    return layers, 8 * c


def _deep(
    choice: str, channels_in: int, width: float, skip_pool: bool, dilate: list[bool]
) -> tuple[dict[str, nn.Module], int]:
    """The stages of a deep network, each from torchvision's blocks, and its output channels."""
    from torchvision.models.resnet import BasicBlock, Bottleneck  # 2 s to import: only here

    bottleneck, depths, groups, per_group = DEEP[choice]
    block = Bottleneck if bottleneck else BasicBlock
    channels = round(64 * width)
    stem: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(channels_in, channels, 7, 2, 3, bias=False)),
        ("bn1", nn.BatchNorm2d(channels)),
        ("relu", nn.ReLU(inplace=True)),
    ]
    if not skip_pool:
        stem.append(("maxpool", nn.MaxPool2d(3, 2, 1)))
    layers: dict[str, nn.Module] = {"conv": nn.Sequential(OrderedDict(stem))}
    dilation = 1
    for index, depth in enumerate(depths):
        planes, stride = round(64 * width) * 2**index, 1 if index == 0 else 2
        before = dilation
        if index and dilate[index - 1]:
            dilation, stride = dilation * stride, 1
        blocks = []
        for number in range(depth):
            first, out = number == 0, planes * block.expansion
            reshape = None
            if first and (stride != 1 or channels != out):
                reshape = nn.Sequential(
                    nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
                )
            blocks.append(
                block(channels, planes, stride if first else 1, reshape, groups, per_group,
                      before if first else dilation)
            )  # fmt: skip
            channels = out
        layers[f"block{index + 1}"] = nn.Sequential(*blocks)
    for module in nn.ModuleList(layers.values()).modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return layers, channels


@gin.configurable(denylist=["in_channels", "choice"])
class ResNet(nn.Module):
    """A residual network without its classifier.

    Args:
        in_channels: C of the images.
        choice: which network, see `init_resnet`.
        feat_layer: index of the stage that features are taken from, in the order 'conv',
            'block1', ...; -1 is the last.
        freeze_at_k: the first k stages are frozen, with batch norm in evaluation mode.
        is_half: half of all widths (CMC's two networks).
        out_feats: D of the embedding, by one linear layer; None leaves the stage's channels.
        prepool_fc: apply that layer at each position before average pooling, so that the
            dense map has D channels too; otherwise the map is pooled first.
        skip_init_pool: no max pooling after the first convolution (deep networks).
        replace_stride_with_dilation: for the last three stages of a deep network.
        width: factor on all widths; 0.25 is the narrow network for CPUs.
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
        replace_stride_with_dilation: list[bool] | None = None,
        width: float = 1.0,
    ):
        super().__init__()
        if width <= 0:
            raise UserError(f"ResNet.width = {width}: expected a positive factor, such as 0.25")
        width = width / 2 if is_half else width
        dilate = list(replace_stride_with_dilation or [False] * 3)
        if len(dilate) != 3 or (choice == "resnet9" and any(dilate)):
            raise UserError(
                f"ResNet.replace_stride_with_dilation = {dilate}: expected three booleans, and "
                "a network other than resnet9"
            )
        if choice == "resnet9":
            layers, channels = _resnet9(in_channels, width)
        else:
            layers, channels = _deep(choice, in_channels, width, skip_init_pool, dilate)
        self.layers = nn.ModuleDict(layers)
        names = list(layers)
        if not -len(names) <= feat_layer < len(names):
            raise UserError(
                f"ResNet.feat_layer = {feat_layer}: {choice} has {len(names)} stages"
            )
        self.used = names[: names.index(names[feat_layer]) + 1]
        if len(self.used) < len(names):
            with torch.no_grad():
                channels = self._run(torch.zeros(2, in_channels, 32, 32))[self.used[-1]].shape[
                    1
                ]
        self.freeze_at_k = freeze_at_k or 0
        if not 0 <= self.freeze_at_k <= len(names):
            raise UserError(
                f"ResNet.freeze_at_k = {freeze_at_k}: {choice} has {len(names)} stages"
            )
        for name in names[: self.freeze_at_k]:
            self.layers[name].requires_grad_(False)
        self.prepool_fc = prepool_fc
        self.max_pool = choice == "resnet9"
        self.out_feats = out_feats or channels
        self.dense_feats = self.out_feats if prepool_fc else channels
        self.fc: nn.Module = nn.Identity()
        if out_feats and prepool_fc:
            self.fc = nn.Conv2d(channels, out_feats, 1)
        elif out_feats:
            self.fc = nn.Linear(channels, out_feats)
        self.train()

    def train(self, mode: bool = True) -> "ResNet":
        """Frozen stages stay in evaluation mode."""
        super().train(mode)
        for name in list(self.layers)[: self.freeze_at_k]:
            self.layers[name].eval()
        return self

    def _run(self, images: Tensor) -> dict[str, Tensor]:
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


@gin.configurable(denylist=["in_channels"])
def init_resnet(in_channels: int, choice: Choice = "resnet9") -> ResNet:
    """A residual network with the options of `ResNet`.

    Args:
        in_channels: C of the images.
        choice: the network, by its usual name.
    """
    return ResNet(in_channels, choice)


init_resnet.uses = ("ResNet",)


class Backbone(nn.Module):
    """What a pretraining method extends: an `encoder`, and whatever it needs beside it.

    A snapshot is matched strictly on `encoder`; everything else belongs to the method.

    Args:
        info: what the data are.
        run_selfsup: False when only the encoder is wanted.
    """

    uses: tuple[str, ...] = ()
    out_feats: int
    dense_feats: int

    def __init__(self, info: DataInfo, run_selfsup: bool):
        super().__init__()
        self.run_selfsup = run_selfsup

    def encode(self, images: Tensor) -> Features:
        """Features of [B, C, H, W] images."""
        raise NotImplementedError

    def selfsup(self, feats: tuple[Features, ...], batch: Batch) -> dict[str, Tensor]:
        """What the method's task needs for its loss; nothing for plain classification."""
        return {}

    def after_step(self, progress: float) -> None:
        """Update teachers and queues after an optimizer step; progress in [0, 1]."""


@register("backbone", "resnet")
class ResnetModel(Backbone):
    """A residual network, nothing else."""

    uses = ("init_resnet",)

    def __init__(self, info: DataInfo, run_selfsup: bool):
        super().__init__(info, run_selfsup)
        self.encoder = init_resnet(info.channels)
        self.out_feats = self.encoder.out_feats
        self.dense_feats = self.encoder.dense_feats

    def encode(self, images: Tensor) -> Features:
        """Features of [B, C, H, W] images."""
        return self.encoder(images)


BackboneName = Annotated[str, Names("backbone")]
