"""Random transforms of images, with parameters per image, on any device.

A `Transform` separates sampling from application: `draw` samples one row of parameters per
image, `apply` is the deterministic transform, and `move` applies it to spatial targets.
"""

# ruff: noqa: D102 - `draw` and `apply` are documented once, in `Transform`
import math
from abc import ABC, abstractmethod

import torch
from torch import Generator, Tensor

from selfstudy.types import Target
from util import color
from util.errors import UserError


class Transform(ABC):
    """One random change of images.

    Attributes:
        geometric: whether it moves pixels, so that spatial targets have to be moved as well.
    """

    geometric = False

    @abstractmethod
    def draw(
        self, n: int, height: int, width: int, generator: Generator | None, device: torch.device
    ) -> Tensor:
        """Random parameters of `n` images of height x width pixels, [n, P].

        `generator` must be on `device`; None is torch's default one of that device.
        """

    @abstractmethod
    def apply(self, images: Tensor, params: Tensor) -> Tensor:
        """`images` [n, C, H, W] float transformed by `params` [n, P], as a new tensor.

        Geometric transforms also take dense targets [n, H, W] of any type, which they never
        interpolate. Pixels from outside the image become 0.
        """

    def affine(self, params: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Map of coordinates: a point p = (x, y) moves to matrix @ p + offset.

        Coordinates are those of `Target`. Only geometric transforms have such a map.

        Returns:
            Axis-aligned matrices [n, 2, 2] and offsets [n, 2] in pixels.
        """
        raise NotImplementedError

    def refuses(self, kind: Target) -> bool:
        """Whether the transform invalidates a target of this kind irrecoverably."""
        return self.geometric and kind.kind in ("vector", "angle") and not kind.invariant

    def move(
        self, target: Tensor, params: Tensor, kind: Target, size: tuple[int, int]
    ) -> Tensor:
        """Apply a geometric transform to a target of the images.

        Points that leave the image become NaN. Boxes are clipped to it, NaN if nothing is
        left. Maps take the nearest pixel, `Target.unknown` outside; their vectors rotate with
        the image, and displacements scale with it.

        Args:
            target: [n, ...], as in `kind`. Non-spatial targets are unchanged.
            params: [n, P], those of the images.
            kind: its declaration.
            size: height and width of the images.
        """
        if kind.kind == "map":
            return self._move_map(target, params, kind)
        if kind.moves:
            matrix, offset = self.affine(params, *size)
            if kind.kind == "points":
                return self._move_points(target, matrix, offset, kind, size)
            return _move_boxes(target, matrix, offset, size)
        return target

    def _move_map(self, target: Tensor, params: Tensor, kind: Target) -> Tensor:
        if target.ndim == 3:
            moved = self.apply(target, params)
        else:
            moved = torch.stack([self.apply(part, params) for part in target.unbind(1)], 1)
        if kind.vectors:
            matrix, _ = self.affine(params, *target.shape[-2:])
            moved = _turn(moved, matrix, kind.vectors)
        if kind.unknown == 0:  # the fill value of `apply`
            return moved
        size = target.shape[-2:]
        inside = torch.ones(len(target), *size, dtype=torch.uint8, device=target.device)
        shown = self.apply(inside, params) > 0
        return torch.where(shown if target.ndim == 3 else shown[:, None], moved, kind.unknown)

    def _move_points(
        self,
        points: Tensor,
        matrix: Tensor,
        offset: Tensor,
        kind: Target,
        size: tuple[int, int],
    ) -> Tensor:
        moved = _places(points, matrix, offset)
        if kind.mirror:
            order = color.constant(kind.mirror, points.device)
            mirrored = _per_image(_mirrors(matrix), moved)
            moved = torch.where(mirrored, moved.index_select(1, order), moved)
        limits = moved.new_tensor(size[::-1])
        inside = ((moved >= 0) & (moved <= limits)).all(-1, keepdim=True)
        return torch.where(inside, moved, math.nan)


def _places(points: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """Points (x, y) [n, K, 2] mapped as by `Transform.affine`; the dtype is kept."""
    moved = (matrix[:, None] * points.float()[..., None, :]).sum(-1) + offset[:, None]
    return moved.to(points.dtype)


def _mirrors(matrix: Tensor) -> Tensor:
    """[n] bool: the map is a reflection."""
    return matrix[:, 0, 0] * matrix[:, 1, 1] < matrix[:, 0, 1] * matrix[:, 1, 0]


def _move_boxes(boxes: Tensor, matrix: Tensor, offset: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes [n, M, 5] under axis-aligned maps, clipped to the image; NaN if nothing is left."""
    corner, opposite = (_places(boxes[..., at : at + 2], matrix, offset) for at in (0, 2))
    limits = corner.new_tensor(size[::-1])
    low = torch.minimum(corner, opposite).clamp_min(0)
    high = torch.minimum(torch.maximum(corner, opposite), limits)
    moved = torch.cat([low, high, boxes[..., 4:]], -1)
    return torch.where((low < high).all(-1, keepdim=True), moved, math.nan)


def _turn(vectors: Tensor, matrix: Tensor, use: str) -> Tensor:
    """Vector maps [n, C, H, W], already moved, with each vector rotated like its image.

    Flow (right, down) also scales with the image; normals (right, up, towards the camera) not.
    """
    if use == "normals":
        matrix = matrix.sign() * matrix.new_tensor([[1, -1], [-1, 1]])
    matrix = matrix if vectors.is_floating_point() else matrix.to(vectors.dtype)
    x, y = vectors[:, 0], vectors[:, 1]
    turned = [_per_image(row[:, 0], x) * x + _per_image(row[:, 1], y) * y
              for row in matrix.unbind(1)]  # fmt: skip
    return torch.cat([torch.stack(turned, 1).to(vectors.dtype), vectors[:, 2:]], 1)


def _diagonal(x: Tensor, y: Tensor) -> Tensor:
    """Matrices [n, 2, 2] with diagonal (x, y), each [n]."""
    return torch.diag_embed(torch.stack([x, y], -1).float())


def _uniform(
    shape: tuple[int, ...], low: float, high: float, generator: Generator | None, device
) -> Tensor:
    return torch.rand(shape, generator=generator, device=device) * (high - low) + low


def _happens(n: int, probability: float, generator: Generator | None, device) -> Tensor:
    """[n, 1] bool, each true with `probability`."""
    return torch.rand(n, 1, generator=generator, device=device) < probability


def _per_image(values: Tensor, like: Tensor) -> Tensor:
    """`values` [n] reshaped to broadcast against `like` [n, ...]."""
    return values.view(-1, *[1] * (like.ndim - 1))


def _pick(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The pixels at `rows`, `columns` (int64, both broadcast to [n, H, W]); 0 outside."""
    height, width = images.shape[-2:]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    index = (rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)).flatten(1)
    if images.ndim == 4:
        index, inside = index[:, None].expand(-1, images.shape[1], -1), inside[:, None]
    picked = images.flatten(-2).gather(-1, index).view(images.shape)
    return torch.where(inside, picked, 0)


class ColorJitter(Transform):
    """Scale and shift each channel of normalised images at random, for 80 % of the images.

    Parameters [n, 2 C]: C scales 2^(.25 N(0, 1)), then C shifts .25 N(0, 1); 1 and 0 where
    nothing happens. Distribution of selfstudy (Newell & Deng 2020), there drawn per chunk.
    """

    def __init__(self, channels: int = 3):
        self.channels = channels

    def draw(self, n, height, width, generator, device):
        noise = torch.randn(n, 2 * self.channels, generator=generator, device=device)
        noise = noise * 0.25 * _happens(n, 0.8, generator, device)
        return torch.cat([noise[:, : self.channels].exp2(), noise[:, self.channels :]], 1)

    def apply(self, images, params):
        scale, shift = params[:, :, None, None].chunk(2, 1)
        return images * scale + shift


class Grayscale(Transform):
    """Replace all channels by their mean, for a quarter of the images. Parameters [n, 1]."""

    def __init__(self, probability: float = 0.25):
        if not 0 <= probability <= 1:
            raise UserError(f"augment.grayscale = {probability}: expected a share, 0 to 1")
        self.probability = probability

    def draw(self, n, height, width, generator, device):
        return _happens(n, self.probability, generator, device)

    def apply(self, images, params):
        return torch.where(params[:, :, None, None], images.mean(1, keepdim=True), images)


class Flip(Transform):
    """Flip horizontally, for half of the images. Parameters [n, 1] bool."""

    geometric = True

    def draw(self, n, height, width, generator, device):
        return _happens(n, 0.5, generator, device)

    def apply(self, images, params):
        return torch.where(_per_image(params[:, 0], images), images.flip(-1), images)

    def affine(self, params, height, width):
        flipped = params[:, 0].float()
        same = torch.ones_like(flipped)
        offset = torch.stack([width * flipped, 0 * flipped], -1)
        return _diagonal(1 - 2 * flipped, same), offset


class PadCrop(Transform):
    """Pad with zeros by an eighth of the size, then crop to the original size.

    With padding p each of the (2p+1)^2 positions is equally likely, plus a quarter as many
    extra draws of the centre, the identity. Parameters [n, 2] int64: the window's top and
    left in the padded image, 0..2p; (p, p) is the identity.
    """

    geometric = True

    @staticmethod
    def pad(height: int) -> int:
        """Padding on each side, in pixels."""
        return height // 8

    def draw(self, n, height, width, generator, device):
        side = 2 * self.pad(height) + 1
        options = side**2 + side**2 // 4
        choice = torch.randint(options, (n,), generator=generator, device=device)
        choice = torch.where(choice < side**2, choice, side**2 // 2)
        return torch.stack([choice // side, choice % side], 1)

    def apply(self, images, params):
        height, width = images.shape[-2:]
        top, left = (params - self.pad(height))[:, :, None, None].unbind(1)
        rows = top + torch.arange(height, device=images.device)[:, None]
        columns = left + torch.arange(width, device=images.device)
        return _pick(images, rows, columns)

    def refuses(self, kind):
        return super().refuses(kind) and kind.kind != "angle"  # no rotation

    def affine(self, params, height, width):
        offset = (self.pad(height) - params.flip(-1)).float()
        same = torch.ones_like(offset)
        return torch.diag_embed(same), offset


class Cutout(Transform):
    """Set a square of a quarter of the size to 0, the mean of normalised images.

    The square lies inside the image, each position equally likely (in DeVries & Taylor 2017
    it may exceed the border; not in selfstudy). Parameters [n, 2] int64: top and left. Targets
    are not cut, as published, so it is not geometric.
    """

    @staticmethod
    def size(height: int) -> int:
        """The square's side, in pixels."""
        return height // 4

    def draw(self, n, height, width, generator, device):
        positions = (side - self.size(height) + 1 for side in (height, width))
        return torch.stack(
            [torch.randint(p, (n,), generator=generator, device=device) for p in positions], 1
        )

    def apply(self, images, params):
        height, width = images.shape[-2:]
        rows = span(params[:, 0], self.size(height), height)
        columns = span(params[:, 1], self.size(height), width)
        return images.masked_fill(rows[:, None, :, None] & columns[:, None, None], 0)


class Rotate90(Transform):
    """Rotate square images by 0, 90, 180 or 270 degrees, all equally likely.

    Parameters [n, 1] int64: quarter turns counter-clockwise, like `torch.rot90`.
    """

    geometric = True

    def draw(self, n, height, width, generator, device):
        return torch.randint(4, (n, 1), generator=generator, device=device)

    def apply(self, images, params):
        if images.shape[-2] != images.shape[-1]:
            raise ValueError(f"only square images can turn, not {tuple(images.shape)}")
        n = len(images)
        turned = torch.cat([torch.rot90(images, k, (-2, -1)) for k in range(4)])
        return turned.index_select(0, params[:, 0] * n + torch.arange(n, device=images.device))

    def affine(self, params, height, width):
        turned = ((1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0))
        corners = ((0, 0), (0, width), (width, height), (height, 0))
        matrices = color.constant(turned, params.device)[params[:, 0]].view(-1, 2, 2)
        return matrices.float(), color.constant(corners, params.device)[params[:, 0]].float()


class ResizedCrop(Transform):
    """Resize a random box to the full size, bilinearly; dense targets by nearest neighbour.

    The box has 20 to 100 % of the area (`scale`) and an aspect ratio of 3/4 to 4/3, uniform in
    area, in the logarithm of the ratio and in position (Szegedy et al. 2015), with
    torchvision's rounding to whole pixels; if ten draws do not fit, it is the whole image.
    Parameters [n, 4] int64: top, left, height, width.
    """

    geometric = True

    def __init__(self, scale: tuple[float, float] = (0.2, 1.0), ratio: float = 4 / 3):
        if not 0 < scale[0] <= scale[1] <= 1:
            raise UserError(
                f"augment.crop_scale = {scale[0]}: expected a share above 0, up to 1"
            )
        self.scale, self.ratio = scale, ratio

    def draw(self, n, height, width, generator, device):
        area = height * width * _uniform((n, 10), *self.scale, generator, device)
        limit = math.log(self.ratio)
        ratio = _uniform((n, 10), -limit, limit, generator, device).exp()
        sizes = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], -1).round().long()
        full = color.constant((height, width), device)
        fits = ((sizes > 0) & (sizes <= full)).all(-1)
        first = fits.int().argmax(1)[:, None, None].expand(-1, 1, 2)  # 0 when none fits
        sizes = torch.where(fits.any(1)[:, None], sizes.gather(1, first)[:, 0], full)
        room = full - sizes
        corner = (_uniform((n, 2), 0, 1, generator, device) * (room + 1)).long()
        return torch.cat([torch.minimum(corner, room), sizes], 1)

    @staticmethod
    def sources(start: Tensor, length: Tensor, size: int) -> Tensor:
        """Source coordinate of each of `size` output pixels, float [n, size].

        As `F.interpolate(crop, size, align_corners=False)` in one direction.
        """
        steps = torch.arange(size, device=start.device) + 0.5
        inner = steps * (length[:, None] / size) - 0.5
        return torch.minimum(inner.clamp_min(0), length[:, None] - 1) + start[:, None]

    @staticmethod
    def nearest(start: Tensor, length: Tensor, size: int) -> Tensor:
        """Nearest source pixel of each of `size` output pixels, int64 [n, size]."""
        twice = 2 * torch.arange(size, device=start.device) + 1
        return start[:, None] + twice * length[:, None] // (2 * size)

    def apply(self, images, params):
        height, width = images.shape[-2:]
        top, left, tall, wide = params.unbind(1)
        if images.ndim == 3:
            rows = self.nearest(top, tall, height)
            columns = self.nearest(left, wide, width)
            return _pick(images, rows[:, :, None], columns[:, None])
        rows = weights(self.sources(top, tall, height), height)
        columns = weights(self.sources(left, wide, width), width)
        return mix(images, rows, columns)

    def affine(self, params, height, width):
        top, left, tall, wide = params.float().unbind(1)
        x, y = width / wide, height / tall
        return _diagonal(x, y), torch.stack([-left * x, -top * y], -1)


def weights(sources: Tensor, size: int) -> Tensor:
    """Matrices [n, new, old = size] that interpolate linearly at `sources` [n, new]."""
    pixels = torch.arange(size, device=sources.device)
    return (1 - (sources[:, :, None] - pixels).abs()).clamp_min(0)


def mix(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Resample each channel: rows [n, H', H] @ channel @ columns^T, columns [n, W', W]."""
    n, channels, height, width = images.shape
    wide = images.reshape(n, channels * height, width) @ columns.mT
    return rows[:, None] @ wide.view(n, channels, height, -1)


class Blur(Transform):
    """Gaussian blur of half of the images, sigma uniform in 0.1 to 2 pixels.

    The kernel spans a tenth of the size (odd, at least 3 taps) with reflection padding, as in
    SimCLR (Chen et al. 2020). Parameters [n, 1]: sigma in pixels, 0 for no blur.
    """

    def __init__(self, probability: float = 0.5, sigmas: tuple[float, float] = (0.1, 2.0)):
        self.probability, self.sigmas = probability, sigmas

    def draw(self, n, height, width, generator, device):
        sigma = _uniform((n, 1), *self.sigmas, generator, device)
        return sigma * _happens(n, self.probability, generator, device)

    def along(self, values: Tensor, params: Tensor, dim: int) -> Tensor:
        """`values` [n, ...] blurred along one spatial dimension, `dim`."""
        size = values.shape[dim]
        reach = min(max(1, size // 20), size - 1)
        offsets = range(-reach, reach + 1)
        distances = torch.arange(-reach, reach + 1, device=values.device)
        # The minimum sigma avoids 0 / 0 for "no blur": neighbours then get weight 0.
        taps = torch.exp(-((distances / params.clamp_min(1e-3)) ** 2) / 2)
        taps = taps / taps.sum(1, keepdim=True)
        total = torch.zeros_like(values)
        for tap, offset in zip(taps.unbind(1), offsets, strict=True):
            places = (torch.arange(size, device=values.device) + offset).abs()
            places = size - 1 - (size - 1 - places).abs()
            total += _per_image(tap, values) * values.index_select(dim, places)
        return total

    def apply(self, images, params):
        return self.along(self.along(images, params, 2), params, 3)


class PhotoJitter(Transform):
    """Brightness, contrast, saturation and hue of RGB images 0..1, for 80 % of the images.

    Each step is torchvision's `adjust_*`, in this fixed order. Parameters [n, 4]: three
    factors, uniform in 1 -+ strength (1: no change), and the hue shift in full circles.

    Args:
        strengths: of brightness, contrast, saturation (>= 0) and hue (0 to 0.5).
        probability: of a change, per image.
        exact: `Augmentation` uses `apply` instead of `fast`.
    """

    def __init__(
        self,
        strengths: tuple[float, ...] | list[float] = (0.4, 0.4, 0.4, 0.1),
        probability: float = 0.8,
        exact: bool = False,
    ):
        if len(strengths) != 4 or min(strengths) < 0 or strengths[3] > 0.5:
            raise UserError(
                f"augment.photo_jitter is {strengths!r}; it must be four strengths "
                "(brightness, contrast, saturation, hue up to 0.5), such as "
                "[0.4, 0.4, 0.4, 0.1]"
            )
        self.strengths, self.probability, self.exact = tuple(strengths), probability, exact

    def draw(self, n, height, width, generator, device):
        *factors, hue = self.strengths
        ranges = [(max(0, 1 - most), 1 + most) for most in factors] + [(-hue, hue)]
        drawn = [_uniform((n,), *limits, generator, device) for limits in ranges]
        same = color.constant((1.0, 1.0, 1.0, 0.0), device)
        happens = _happens(n, self.probability, generator, device)
        return torch.where(happens, torch.stack(drawn, 1), same)

    def apply(self, images, params):
        bright, contrast, saturation = params[:, :3, None, None, None].unbind(1)
        images = (images * bright).clamp(0, 1)
        mean = color.luma(images).mean((-2, -1), keepdim=True)
        images = (images * contrast + mean * (1 - contrast)).clamp(0, 1)
        images = images * saturation + color.luma(images) * (1 - saturation)
        return color.shift_hue(images.clamp(0, 1), params[:, 3, None, None])

    def fast(self, images: Tensor, params: Tensor, white: float) -> Tensor:
        """Approximation of `apply` by one affine colour transform per image.

        Clamps once at the end instead of after each step, and rotates the hue by
        `color.hue_rotation`. RGB is 0..`white`, so that bytes need no scaling.
        """
        bright, contrast, saturation, hue = params.unbind(1)
        luma = color.constant(color.LUMA, images.device)
        gain, saturation = (bright * contrast)[:, None, None], saturation[:, None, None]
        eye = torch.eye(3, device=images.device)
        matrix = gain * (saturation * eye + (1 - saturation) * luma)
        # The contrast's constant is grey, which saturation and hue do not change.
        grey = (images.mean((-2, -1)) @ luma) * bright * (1 - contrast)
        mixed = torch.baddbmm(
            grey[:, None, None], color.hue_rotation(hue) @ matrix, images.flatten(2)
        )
        return mixed.clamp_(0, white).view(images.shape)


def span(start: Tensor, length: int | Tensor, size: int) -> Tensor:
    """Mask [n, size] bool, true at the `length` positions from `start` [n]."""
    places = torch.arange(size, device=start.device) - start[:, None]
    return (places >= 0) & (places < length)
