"""The stages of deep residual networks, built from torchvision's blocks.

He et al., arXiv 1512.03385; ResNeXt, arXiv 1611.05431; wide, arXiv 1605.07146. The prefix 'ws_'
means weight standardisation with group norm (Qiao et al., arXiv 1903.10520).
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

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
STANDARDISED = "ws_"  # prefix of such a name: standardised weights


def _group_norm(channels: int) -> nn.GroupNorm:
    """Group norm with 32 groups, or fewer so that each has at least two channels."""
    return nn.GroupNorm(max(1, min(math.gcd(32, channels), channels // 2)), channels)


def _standardise_convolutions(layers: nn.Module) -> None:
    """Replace every convolution by a weight-standardised one of the same shape."""
    for parent in list(layers.modules()):
        for name, conv in parent.named_children():
            if type(conv) is nn.Conv2d:
                same = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride,
                        conv.padding, conv.dilation, conv.groups)  # fmt: skip
                # torch annotates the sizes it keeps as tuples of any length
                replacement = StandardisedConv2d(*same, bias=False)  # pyright: ignore[reportArgumentType]
                setattr(parent, name, replacement)


def _stem(
    channels_in: int, channels: int, norm: Callable, pool: bool, small_padding: int | None
) -> nn.Sequential:
    """Layers before the blocks; with `small_padding` the stem for small images."""
    small = small_padding is not None
    kernel, stride, padding = (3, 1, small_padding) if small else (7, 2, 3)
    stem: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(channels_in, channels, kernel, stride, padding, bias=False)),
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
    """Stages of a deep network by name, and its output channels.

    Args:
        choice: a name of `DEEP`, or one with `STANDARDISED` before it.
        channels_in: C of the images.
        width: factor on all channels.
        pool: max pooling in the stem.
        dilate: for each of the last three stages, replace its stride by dilation.
        small_padding: padding of a 3x3 stem of stride 1; None is the 7x7 stem of stride 2.

    Raises:
        UserError: `width` is so small that a group has no channels.
    """
    from torchvision.models.resnet import BasicBlock, Bottleneck  # 2 s to import: only here

    standardised = choice.startswith(STANDARDISED)
    norm = _group_norm if standardised else nn.BatchNorm2d
    bottleneck, depths, groups, per_group = DEEP[choice.removeprefix(STANDARDISED)]
    make_block = partial(
        Bottleneck if bottleneck else BasicBlock,
        groups=groups,
        base_width=per_group,
        norm_layer=norm,
    )
    expansion = (Bottleneck if bottleneck else BasicBlock).expansion
    channels = planes = round(64 * width)
    if channels * per_group < 64:  # the blocks would have no channels inside
        raise UserError(
            f"ResNet.width: {choice} needs at least {1 / per_group:g}, not {width:g}"
        )
    layers: dict[str, nn.Module] = {
        "conv": _stem(channels_in, channels, norm, pool, small_padding)
    }
    dilation = 1
    for number, (depth, dilated) in enumerate(zip(depths, [False, *dilate], strict=True), 1):
        stride = 1 if number == 1 else 2
        previous = dilation
        if dilated:
            dilation, stride = dilation * stride, 1
        out = planes * expansion
        shortcut = _shortcut(channels, out, stride, norm)
        blocks = [make_block(channels, planes, stride, shortcut, dilation=previous)]
        blocks += [make_block(out, planes, dilation=dilation) for _ in range(depth - 1)]
        layers[f"block{number}"] = nn.Sequential(*blocks)
        channels, planes = out, 2 * planes
    _initialise(nn.ModuleList(layers.values()), standardised)
    return layers, channels


def _shortcut(channels: int, out: int, stride: int, norm: Callable) -> nn.Module | None:
    """The 1x1 convolution of a stage's first skip connection; None where shapes agree."""
    if stride == 1 and channels == out:
        return None
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), norm(out))


def _initialise(layers: nn.Module, standardised: bool) -> None:
    """Draw the convolutions' weights (He initialisation), standardised ones put in before."""
    if standardised:
        _standardise_convolutions(layers)
    for module in layers.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
