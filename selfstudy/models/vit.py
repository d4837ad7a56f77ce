"""A small vision transformer (Dosovitskiy et al., arXiv 2010.11929), such as for DINO."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfstudy.models.encoder import ImageEncoder
from selfstudy.registry import configurable, register
from selfstudy.types import Features
from util.errors import UserError

QUARTERS = 4  # of the depth: a map is returned after each


class _Block(nn.Module):
    """Pre-norm transformer block: self-attention, and an MLP of four times the width."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        tokens = tokens + self._attend(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))

    def _attend(self, tokens: Tensor) -> Tensor:
        parts = self.qkv(tokens).unflatten(-1, (3, self.heads, -1))  # [B, T, 3, heads, D/heads]
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.out(attended.transpose(1, 2).flatten(2))


@register("encoder", "vit")
@configurable(denylist=["in_channels", "choice"])
class ViT(ImageEncoder):
    """A vision transformer without its classifier.

    The embedding is the class token after the last norm, the dense map the patch tokens. 'conv'
    is the map of embedded patches, 'block1' ... 'block4' are those of the patch tokens after
    each quarter of the depth, before the last norm.

    Args:
        in_channels: C of the images.
        choice: its registered name.
        patch: side of a patch in pixels; must divide the images' sides.
        width: D of the tokens.
        depth: number of blocks.
        heads: attention heads, of width / heads features each.
        grid: patches on a side of the learned position embedding, 8 for images of 32 pixels;
            interpolated for other sizes.
    """

    def __init__(
        self,
        in_channels: int,
        choice: str = "vit",
        patch: int = 4,
        width: int = 192,
        depth: int = 6,
        heads: int = 3,
        grid: int = 8,
    ):
        super().__init__()
        if min(patch, width, depth, heads, grid) < 1 or width % heads:
            raise UserError(
                f"ViT.width = {width}, heads = {heads}: expected positive sizes, and a width "
                "that the heads can share, such as 192 and 3"
            )
        self.patch = patch
        self.embed = nn.Conv2d(in_channels, width, patch, patch)
        self.token = nn.Parameter(torch.empty(1, 1, width))
        self.position = nn.Parameter(torch.empty(1, 1 + grid * grid, width))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.out_feats = self.dense_feats = width
        self._initialise()

    def _initialise(self) -> None:
        """Truncated normal weights (standard deviation 0.02), zero biases, as published."""
        for item in (self.token, self.position, self.embed.weight):
            nn.init.trunc_normal_(item, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def _positions(self, height: int, width: int) -> Tensor:
        """Position embedding of the class token and height x width patches, [1, 1 + hw, D]."""
        token, grid = self.position[:, :1], self.position[:, 1:]
        side = round(grid.shape[1] ** 0.5)
        if (height, width) == (side, side):
            return self.position
        grid = grid.transpose(1, 2).unflatten(2, (side, side))
        grid = F.interpolate(grid, (height, width), mode="bicubic", align_corners=False)
        return torch.cat([token, grid.flatten(2).transpose(1, 2)], 1)

    def forward(self, images: Tensor) -> Features:
        """Features of [B, C, H, W] images."""
        if images.shape[2] % self.patch or images.shape[3] % self.patch:
            raise UserError(
                f"ViT.patch = {self.patch} does not divide images of {images.shape[2]} x "
                f"{images.shape[3]} pixels"
            )
        embedded = self.embed(images)
        size = embedded.shape[2:]
        maps = {"conv": embedded}
        token = self.token.expand(len(images), -1, -1)
        tokens = torch.cat([token, embedded.flatten(2).transpose(1, 2)], 1)
        tokens = tokens + self._positions(*size)
        after = [-(-len(self.blocks) * part // QUARTERS) for part in range(1, QUARTERS + 1)]
        for number, block in enumerate(self.blocks, 1):
            tokens = block(tokens)
            for quarter, last in enumerate(after, 1):
                if number == last:
                    maps[f"block{quarter}"] = _as_map(tokens, size)
        tokens = self.norm(tokens)
        return Features(tokens[:, 0], _as_map(tokens, size), maps)


def _as_map(tokens: Tensor, size: Sequence[int]) -> Tensor:
    """Patch tokens of [B, 1 + hw, D] as a map [B, D, h, w]."""
    return tokens[:, 1:].transpose(1, 2).unflatten(2, tuple(size))
