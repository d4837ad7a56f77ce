"""The encoder that AMDIM was published with (Bachman et al., arXiv 1906.00910, section 3).

Its convolutions are not padded, which limits the receptive field of a cell of the 7 x 7 map to
a part of the image, so that the features compared across scales stay local.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from selfstudy.models.encoder import ImageEncoder
from selfstudy.registry import configurable, register
from selfstudy.types import Features
from util.errors import UserError

# Image size -> (stem convolutions: kernel, stride, padding), (blocks down to the 7 x 7 map:
# kernel, stride); channels double with each block but the first.
SIZES = {
    32: (((3, 1, 0),), ((1, 1), (4, 2), (2, 2))),
    64: (((3, 1, 0),), ((4, 2), (4, 2), (2, 2))),
    128: (((5, 2, 2), (3, 1, 0)), ((4, 2), (4, 2), (2, 2))),
}


def _norm(channels: int, use: bool) -> nn.Module:
    return nn.BatchNorm2d(channels) if use else nn.Identity()


class _Residual(nn.Module):
    """Residual unit: an unpadded convolution and a 1x1 one, added to the average-pooled input.

    The skip connection pads missing channels with zeros. The 1x1 convolution is initialised to
    zero; without norms, activations of a deep stack would otherwise explode or vanish.
    """

    def __init__(self, before: int, after: int, kernel: int, stride: int, use_bn: bool):
        super().__init__()
        self.kernel, self.stride, self.new_channels = kernel, stride, after - before
        first = nn.Conv2d(before, after, kernel, stride, bias=not use_bn)
        last = nn.Conv2d(after, after, 1)
        self.body = nn.Sequential(first, _norm(after, use_bn), nn.ReLU(inplace=True), last)
        nn.init.kaiming_normal_(first.weight, nonlinearity="relu")
        for item in last.parameters():
            nn.init.zeros_(item)

    def forward(self, images: Tensor) -> Tensor:
        skip = images if self.kernel == 1 else F.avg_pool2d(images, self.kernel, self.stride)
        return F.relu(self.body(images) + F.pad(skip, (0, 0, 0, 0, 0, self.new_channels)))


def _block(before: int, after: int, kernel: int, stride: int, depth: int, use_bn: bool):
    """A residual unit that changes the map's size, and depth - 1 pointwise (1x1) ones."""
    first = _Residual(before, after, kernel, stride, use_bn)
    return nn.Sequential(
        first, *(_Residual(after, after, 1, 1, use_bn) for _ in range(depth - 1))
    )


@register("encoder", "amdim_ref")
@configurable(denylist=["in_channels", "choice"])
class AmdimEncoder(ImageEncoder):
    """AMDIM's reference encoder: maps of 7 x 7, 5 x 5 and 1 x 1 cells.

    For images of `size` pixels, the maps are 'block1' (14 x 14), 'block2' (7 x 7), 'block3'
    (5 x 5) and 'block4' (1 x 1, the embedding); for larger images the last map is larger and is
    averaged.

    Args:
        in_channels: C of the images.
        choice: its registered name.
        size: side of the images in pixels.
        ndf: channels of the first convolution.
        n_rkhs: D of the embedding.
        n_depth: residual units per block.
        use_bn: batch norm in the blocks; the embedding always has it.
    """

    def __init__(
        self,
        in_channels: int,
        choice: str = "amdim_ref",
        size: Literal[32, 64, 128] = 32,
        ndf: int = 64,
        n_rkhs: int = 512,
        n_depth: int = 3,
        use_bn: bool = False,
    ):
        super().__init__()
        self.size = size
        stem, blocks = SIZES[size]
        first = nn.Sequential()
        channels = in_channels
        for kernel, stride, padding in stem:
            first.append(nn.Conv2d(channels, ndf, kernel, stride, padding))
            first.append(nn.ReLU(inplace=True))
            channels = ndf
        units = []
        for kernel, stride in blocks:
            after = channels if kernel == 1 else 2 * channels
            depth = 1 if kernel == 1 else n_depth
            units.append(_block(channels, after, kernel, stride, depth, use_bn))
            channels = after
        layers: dict[str, nn.Module] = {"conv": first}
        layers["block1"] = nn.Sequential(*units[:-1])
        layers["block2"] = nn.Sequential(units[-1], _norm(channels, use_bn))
        layers["block3"] = _block(channels, channels, 3, 1, n_depth, use_bn)
        layers["block4"] = nn.Sequential(
            _block(channels, channels, 3, 1, n_depth, use_bn),
            nn.Conv2d(channels, n_rkhs, 3, bias=False),
            nn.BatchNorm2d(n_rkhs),
        )
        self.layers = nn.ModuleDict(layers)
        self.out_feats = self.dense_feats = n_rkhs

    def forward(self, images: Tensor) -> Features:
        """Features of [B, C, H, W] images."""
        if min(images.shape[2:]) < self.size:
            raise UserError(
                f"AmdimEncoder.size = {self.size} needs images of as many pixels, not of "
                f"{min(images.shape[2:])}; see BaseDataset.input_res"
            )
        maps = {}
        for name, layer in self.layers.items():
            images = maps[name] = layer(images)
        return Features(images.mean((2, 3)), images, maps)
