"""The stages of deep residual networks, built from torchvision's blocks.

He et al., arXiv 1512.03385; ResNeXt, arXiv 1611.05431; wide, arXiv 1605.07146. 'ws_' stands for
standardised weights with group norm (Qiao et al., arXiv 1903.10520).
"""

import math
from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from selfstudy.models.heads import StandardisedConv2d
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
STANDARDISED = "ws_"  # before the name of one of these


def _group_norm(channels: int) -> nn.GroupNorm:
    """Group norm of 32 groups, of fewer where these would have less than two channels each."""
    return nn.GroupNorm(max(1, min(math.gcd(32, channels), channels // 2)), channels)


def _standardised(layers: nn.Module) -> None:
    """Put weight-standardised convolutions in the places of plain ones."""
    for parent in list(layers.modules()):
        for name, conv in parent.named_children():
            if type(conv) is nn.Conv2d:
                same = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride,
                        conv.padding, conv.dilation, conv.groups)  # fmt: skip
                setattr(parent, name, StandardisedConv2d(*same, bias=False))


def _stem(
    channels_in: int, channels: int, norm: Callable, pool: bool, small_padding: int | None
) -> nn.Sequential:
    """What comes before the blocks; with a `small_padding` the form for small pictures."""
    small = small_padding is not None
    conv = (3, 1, small_padding) if small else (7, 2, 3)  # size, stride, padding
    stem: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(channels_in, channels, *conv, bias=False)),
        ("bn1", norm(channels)),
        ("relu", nn.ReLU(inplace=True)),
    ]
    if pool and not small:
        stem.append(("maxpool", nn.MaxPool2d(3, 2, 1)))
    return nn.Sequential(OrderedDict(stem))


def deep_stages(
    choice: str,
    channels_in: int,
    width: float,
    pool: bool,
    dilate: list[bool],
    small_padding: int | None,
) -> tuple[dict[str, nn.Module], int]:
    """The stages of a deep network and its output channels.

    Args:
        choice: a name of `DEEP`, or one with `STANDARDISED` before it.
        channels_in: C of the images.
        width: factor on all widths.
        pool: max pooling in the stem.
        dilate: for each of the last three stages, dilation in the place of its stride.
        small_padding: padding of a 3x3 stem of stride 1; None has the 7x7 one of stride 2.

    Raises:
        UserError: so narrow that a group has no channels.
    """
    from torchvision.models.resnet import BasicBlock, Bottleneck  # 2 s to import: only here

    standardised = choice.startswith(STANDARDISED)
    norm = _group_norm if standardised else nn.BatchNorm2d
    bottleneck, depths, groups, per_group = DEEP[choice.removeprefix(STANDARDISED)]
    block = Bottleneck if bottleneck else BasicBlock
    channels = round(64 * width)
    if channels * per_group < 64:  # the blocks would have no channels inside
        raise UserError(
            f"ResNet.width: {choice} needs at least {1 / per_group:g}, not {width:g}"
        )
    layers: dict[str, nn.Module] = {
        "conv": _stem(channels_in, channels, norm, pool, small_padding)
    }
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
                    nn.Conv2d(channels, out, 1, stride, bias=False), norm(out)
                )
            blocks.append(
                block(channels, planes, stride if first else 1, reshape, groups, per_group,
                      before if first else dilation, norm)
            )  # fmt: skip
            channels = out
        layers[f"block{index + 1}"] = nn.Sequential(*blocks)
    if standardised:
        _standardised(nn.ModuleList(layers.values()))
    for module in nn.ModuleList(layers.values()).modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return layers, channels
