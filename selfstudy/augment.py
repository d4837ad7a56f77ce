"""Random changes of a minibatch of images, drawn per image, on whatever device it is.

A `Transform` keeps drawing and applying apart: `draw` makes one row of parameters an image,
`apply` is the plain, exact change, which dense targets and grids of parameters use too.
`Augmentation` does in few passes what the transforms would do one after another: it picks
whole rows of the stored bytes (flip, crop), marks pads and holes in an extra channel, and
folds normalisation and colour into one matrix an image.
"""

# ruff: noqa: D102 - `draw` and `apply` are documented once, in `Transform`
import math
from abc import ABC, abstractmethod

import gin
import torch
from torch import Generator, Tensor

from selfstudy.types import DataInfo
from util import color
from util.errors import UserError


class Transform(ABC):
    """One random change of images.

    Attributes:
        geometric: pixels move, so dense targets have to move along.
    """

    geometric = False

    @abstractmethod
    def draw(
        self, n: int, height: int, width: int, generator: Generator | None, device: torch.device
    ) -> Tensor:
        """Random parameters of `n` images of height x width pixels, [n, P].

        `generator` must live on `device`; None is torch's own of that device.
        """

    @abstractmethod
    def apply(self, images: Tensor, params: Tensor) -> Tensor:
        """`images` [n, C, H, W] float changed by `params` [n, P], as a new tensor.

        Geometric transforms take dense targets [n, H, W] of any type as well; these never
        mix values, and places without a source become 0 (of images too).
        """


def _uniform(
    shape: tuple[int, ...], low: float, high: float, generator: Generator | None, device
) -> Tensor:
    return torch.rand(shape, generator=generator, device=device) * (high - low) + low


def _happens(n: int, probability: float, generator: Generator | None, device) -> Tensor:
    """[n, 1] bool, each true with `probability`."""
    return torch.rand(n, 1, generator=generator, device=device) < probability


def _per_image(values: Tensor, like: Tensor) -> Tensor:
    """`values` [n] in a shape that broadcasts against `like` [n, ...]."""
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

    def __init__(self, channels: int = 3, probability: float = 0.8, strength: float = 0.25):
        self.channels, self.probability, self.strength = channels, probability, strength

    def draw(self, n, height, width, generator, device):
        noise = torch.randn(n, 2 * self.channels, generator=generator, device=device)
        noise = noise * self.strength * _happens(n, self.probability, generator, device)
        return torch.cat([noise[:, : self.channels].exp2(), noise[:, self.channels :]], 1)

    def apply(self, images, params):
        scale, shift = params[:, :, None, None].chunk(2, 1)
        return images * scale + shift


class Grayscale(Transform):
    """Replace all channels by their mean, for a quarter of the images. Parameters [n, 1]."""

    def __init__(self, probability: float = 0.25):
        self.probability = probability

    def draw(self, n, height, width, generator, device):
        return _happens(n, self.probability, generator, device)

    def apply(self, images, params):
        return torch.where(params[:, :, None, None], images.mean(1, keepdim=True), images)


class Flip(Transform):
    """Mirror left and right, for half of the images. Parameters [n, 1] bool."""

    geometric = True

    def draw(self, n, height, width, generator, device):
        return _happens(n, 0.5, generator, device)

    def apply(self, images, params):
        return torch.where(_per_image(params[:, 0], images), images.flip(-1), images)


class PadCrop(Transform):
    """Pad with zeros by an eighth of the size and cut a window of the old size.

    With padding p each of the (2p+1)^2 positions is equally likely, and there are a quarter
    as many extra options of the centre, which change nothing. Parameters [n, 2] int64: the
    window's top and left in the padded image, 0..2p; p, p changes nothing.
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


class Cutout(Transform):
    """Set a square of a quarter of the size to 0, the mean of normalised images.

    The square lies inside, each position equally likely (DeVries & Taylor 2017 let it stick
    out; selfstudy does not). Parameters [n, 2] int64: top and left. Targets keep their holes
    filled, as published, so it is not geometric.
    """

    def draw(self, n, height, width, generator, device):
        size = height // 4
        top = torch.randint(height - size + 1, (n,), generator=generator, device=device)
        left = torch.randint(width - size + 1, (n,), generator=generator, device=device)
        return torch.stack([top, left], 1)

    @staticmethod
    def holes(params: Tensor, height: int, width: int) -> Tensor:
        """True inside the squares, [n, 1, H, W]."""
        rows, columns = (
            torch.arange(size, device=params.device) - start[:, None]
            for size, start in zip((height, width), params.unbind(1), strict=True)
        )
        size = height // 4
        rows, columns = (rows >= 0) & (rows < size), (columns >= 0) & (columns < size)
        return rows[:, None, :, None] & columns[:, None, None, :]

    def apply(self, images, params):
        return images.masked_fill(self.holes(params, *images.shape[-2:]), 0)


class Rotate90(Transform):
    """Turn square images by 0, 90, 180 or 270 degrees, all equally likely.

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


class ResizedCrop(Transform):
    """Enlarge a random box to the full size, bilinearly; dense targets take the nearest.

    The box has 20 to 100 % of the area and an aspect ratio of 3/4 to 4/3, uniform in area,
    in the logarithm of the ratio and in position (Szegedy et al. 2015), with torchvision's
    rounding to whole pixels; when ten draws do not fit it is the whole image. Parameters
    [n, 4] int64: top, left, height, width.
    """

    geometric = True

    def __init__(self, scale: tuple[float, float] = (0.2, 1.0), ratio: float = 4 / 3):
        self.scale, self.ratio = scale, ratio

    def draw(self, n, height, width, generator, device):
        area = height * width * _uniform((n, 10), *self.scale, generator, device)
        limit = math.log(self.ratio)
        ratio = _uniform((n, 10), -limit, limit, generator, device).exp()
        sizes = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], -1).round().long()
        whole = color.constant((height, width), device)
        fits = ((sizes > 0) & (sizes <= whole)).all(-1)
        first = fits.int().argmax(1)[:, None, None].expand(-1, 1, 2)  # 0 when none fits
        sizes = torch.where(fits.any(1)[:, None], sizes.gather(1, first)[:, 0], whole)
        room = whole - sizes
        corner = (_uniform((n, 2), 0, 1, generator, device) * (room + 1)).long()
        return torch.cat([torch.minimum(corner, room), sizes], 1)

    @staticmethod
    def sources(start: Tensor, length: Tensor, size: int) -> Tensor:
        """Where each of `size` new pixels looks in the old ones, float [n, size].

        The same as `F.interpolate(crop, size, align_corners=False)` does in one direction.
        """
        steps = torch.arange(size, device=start.device) + 0.5
        inner = steps * (length[:, None] / size) - 0.5
        return torch.minimum(inner.clamp_min(0), length[:, None] - 1) + start[:, None]

    def apply(self, images, params):
        height, width = images.shape[-2:]
        top, left, tall, wide = params.unbind(1)
        if images.ndim == 3:
            rows, columns = (
                (
                    start[:, None]
                    + torch.arange(size, device=start.device) * length[:, None] // size
                )
                for start, length, size in ((top, tall, height), (left, wide, width))
            )
            return _pick(images, rows[:, :, None], columns[:, None])
        rows = _weights(self.sources(top, tall, height), height)
        columns = _weights(self.sources(left, wide, width), width)
        return _mix(images, rows, columns)


def _weights(sources: Tensor, size: int) -> Tensor:
    """Matrices [n, new, old = size] that interpolate linearly at `sources` [n, new]."""
    pixels = torch.arange(size, device=sources.device)
    return (1 - (sources[:, :, None] - pixels).abs()).clamp_min(0)


def _mix(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Each channel as rows @ channel @ columns^T; rows [n, H', H], columns [n, W', W]."""
    n, channels, height, width = images.shape
    wide = images.reshape(n, channels * height, width) @ columns.mT
    return rows[:, None] @ wide.view(n, channels, height, -1)


class Blur(Transform):
    """Gaussian blur of half of the images, sigma uniform in 0.1 to 2 pixels.

    The kernel spans a tenth of the size (3 taps at least, odd) and borders are mirrored, as
    in SimCLR (Chen et al. 2020). Parameters [n, 1]: sigma in pixels, 0 where nothing happens.
    """

    def __init__(self, probability: float = 0.5, sigmas: tuple[float, float] = (0.1, 2.0)):
        self.probability, self.sigmas = probability, sigmas

    def draw(self, n, height, width, generator, device):
        sigma = _uniform((n, 1), *self.sigmas, generator, device)
        return sigma * _happens(n, self.probability, generator, device)

    def along(self, values: Tensor, params: Tensor, dim: int) -> Tensor:
        """`values` [n, ...] blurred in one direction, `dim`, which is H or W long."""
        size = values.shape[dim]
        reach = min(max(1, size // 20), size - 1)
        offsets = range(-reach, reach + 1)
        distances = torch.arange(-reach, reach + 1, device=values.device)
        # The least sigma keeps "no blur" free of 0 / 0; its neighbours weigh exactly 0.
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

    Each step is torchvision's `adjust_*`, always in this order. Parameters [n, 4]: three
    factors, uniform in 1 -+ strength (1: no change), and the hue's shift in full circles.

    Args:
        strengths: of brightness, contrast, saturation (>= 0) and hue (0 to 0.5).
        probability: share of the images that change.
        exact: `Augmentation` uses `apply` and not `fast`.
    """

    def __init__(
        self,
        strengths: tuple[float, ...] | list = (0.4, 0.4, 0.4, 0.1),
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
        ranges = [(max(0, 1 - width), 1 + width) for width in factors] + [(-hue, hue)]
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
        """Nearly `apply`, as one matrix and one constant an image.

        Clamps once at the end instead of after each step, and turns the hue by
        `color.hue_rotation`. RGB 0..`white`, so that bytes need no scaling.
        """
        bright, contrast, saturation, hue = params.unbind(1)
        luma = color.constant(color.LUMA, images.device)
        gain, saturation = (bright * contrast)[:, None, None], saturation[:, None, None]
        eye = torch.eye(3, device=images.device)
        matrix = gain * (saturation * eye + (1 - saturation) * luma)
        # The contrast's constant is grey, which saturation and hue leave as it is.
        grey = (images.mean((-2, -1)) @ luma) * bright * (1 - contrast)
        mixed = torch.baddbmm(
            grey[:, None, None], color.hue_rotation(hue) @ matrix, images.flatten(2)
        )
        return mixed.clamp_(0, white).view(images.shape)


def _rows(images: Tensor, flip: Tensor | None, window: Tensor | None, pad: int) -> Tensor:
    """Mark, mirror, pad and crop images by copying whole rows, in their own type.

    Args:
        images: [n, C, H, W].
        flip: [n, 1] bool; None mirrors nothing.
        window: [n, 2], as of `PadCrop`; None for no crop, with pad 0.
        pad: pixels on each side.

    Returns:
        [n, C + 1, H, W]; the last channel is 1 within an image and 0 where padded.
    """
    n, channels, height, width = images.shape
    tall, wide = height + 2 * pad, width + 2 * pad
    padded = images.new_zeros((2 if flip is not None else 1, n, channels + 1, tall, wide))
    inner = padded[..., pad : pad + height, pad : pad + width]
    inner[:, :, channels] = 1
    inner[0, :, :channels] = images
    if flip is not None:
        inner[1, :, :channels] = images.flip(-1)
    elif window is None:
        return padded[0]

    def steps(count: int, stride: int) -> Tensor:
        return torch.arange(count, device=images.device) * stride

    start = steps(n, (channels + 1) * tall * wide)
    if flip is not None:
        start = start + flip[:, 0] * padded[0].numel()
    if window is not None:
        start = start + window[:, 0] * wide + window[:, 1]
    starts = (
        start[:, None, None] + steps(channels + 1, tall * wide)[:, None] + steps(height, wide)
    )
    # Every place of the buffer as the start of a row: the rows overlap, nothing is copied yet.
    places = padded.as_strided((padded.numel() - width + 1, width), (1, 1))
    return places.index_select(0, starts.flatten()).view(n, channels + 1, height, width)


class Augmentation:
    """Makes a model's input of stored images: normalised float32, augmented when asked to.

    Equal to applying `transforms` one after another (`resized_crop`, `blur` and
    `photo_jitter` before the normalisation, the others after it) up to rounding, except for
    `PhotoJitter.fast`.

    Args:
        info: what the images are.
        transforms: by the name of their argument in `augment`; absent ones are off.
        transform_targets: dense targets move with the first view.
        share_flip: all views of an image are mirrored alike (as AMDIM's published ones).
    """

    def __init__(
        self,
        info: DataInfo,
        transforms: dict[str, Transform],
        transform_targets: bool = False,
        share_flip: bool = True,
    ):
        self.info, self.transforms = info, transforms
        # Plain floats, because constants are kept by value.
        self.mean, self.std = (tuple(map(float, v)) for v in (info.mean, info.std))
        self.transform_targets, self.share_flip = transform_targets, share_flip
        self.bytes = info.stored == "uint8" or "photo_jitter" in transforms
        self.to_lab = info.stored == "uint8" and info.space == "lab"
        if info.stored != "uint8" and info.space == "lab" and "photo_jitter" in transforms:
            raise UserError(
                "augment.photo_jitter changes RGB, and these images are stored as normalised "
                "LAB; prepare them as bytes, or set augment.photo_jitter = None"
            )

    def __call__(
        self,
        images: Tensor,
        targets: dict[str, Tensor],
        generator: Generator | None,
        views: int = 1,
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """`views` differently drawn versions of a minibatch.

        Args:
            images: as stored, [B, C, H, W], uint8 RGB or normalised float.
            targets: by name; dense ones, [B, H, W], follow the first view when
                `transform_targets` says so, and classes stay. 'pose' [B] of a mirrored first
                view swaps its classes 1 and 3, left and right.
            generator: of the images' device; the same state gives the same views.
            views: how many.

        Returns:
            Tuple of normalised float32 [B, C, H, W], contiguous; the targets.
        """
        n, _, height, width = images.shape
        drawn = [self.draw(n, height, width, generator, images.device) for _ in range(views)]
        if self.share_flip and "flip" in self.transforms:
            for params in drawn[1:]:
                params["flip"] = drawn[0]["flip"]
        moved = self._move(targets, drawn[0], (height, width))
        return tuple(self.apply(images, params) for params in drawn), moved

    def draw(
        self, n: int, height: int, width: int, generator: Generator | None, device: torch.device
    ) -> dict[str, Tensor]:
        """Parameters of each transform by name, as `Transform.draw`."""
        return {
            name: transform.draw(n, height, width, generator, device)
            for name, transform in self.transforms.items()
        }

    def apply(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        """One view: stored images [n, C, H, W] to normalised float32, changed by `params`."""
        images, params = self._resample(images, dict(params))
        images = self._photo(images, params)
        if params.keys() & {"flip", "crop", "cutout"}:
            pad = PadCrop.pad(images.shape[-2]) if "crop" in params else 0
            images = _rows(images, params.get("flip"), params.get("crop"), pad)
        if "cutout" in params:
            images *= ~Cutout.holes(params["cutout"], *images.shape[-2:])
        return self._colour(images, params)

    def _resample(self, images: Tensor, params: dict) -> tuple[Tensor, dict]:
        """Resized crop, flip and blur as one matrix for rows and one for columns.

        Takes the parameters that it has used out of `params`.
        """
        if not {"resized_crop", "blur"} & params.keys():
            return images, params
        n, _, height, width = images.shape
        box = params.pop("resized_crop", color.constant((0, 0, height, width), images.device))
        top, left, tall, wide = box.expand(n, 4).unbind(1)
        rows = _weights(ResizedCrop.sources(top, tall, height), height)
        across = ResizedCrop.sources(left, wide, width)
        if "flip" in params:
            across = torch.where(params.pop("flip"), across.flip(1), across)
        columns = _weights(across, width)
        if "blur" in params:
            blur, sigma = self.transforms["blur"], params.pop("blur")
            rows, columns = blur.along(rows, sigma, 1), blur.along(columns, sigma, 1)
        return _mix(images.float(), rows, columns), params

    def _photo(self, images: Tensor, params: dict) -> Tensor:
        """Photo jitter in RGB 0..255; normalised images return to this range first."""
        if "photo_jitter" not in params:
            return images
        images = images.float()
        if self.info.stored == "normalised":
            mean, std = (color.constant(v, images.device) for v in (self.mean, self.std))
            images = images * std[:, None, None] + mean[:, None, None]
        jitter, drawn = self.transforms["photo_jitter"], params["photo_jitter"]
        if jitter.exact:
            return jitter.apply(images / 255, drawn) * 255
        return jitter.fast(images, drawn, 255)

    def _colour(self, images: Tensor, params: dict) -> Tensor:
        """Normalise, jitter and grey images by one matrix an image.

        `images` has C channels, or C + 1 with the marks of `_rows`. The constants are the
        matrix's last column and meet the mark, which is 0 in pads and holes, as the values
        are there: so these come out as 0, the mean.
        """
        n, _, height, width = images.shape
        channels = self.info.channels
        if self.to_lab:
            seen = color.response(images[:, :channels])
            images = torch.cat([seen, images[:, channels:]], 1)
        matrix = self._normalisation(images.device).expand(n, -1, -1)
        if "color_jitter" in params:
            scale, shift = params["color_jitter"].chunk(2, 1)
            matrix = matrix * scale[:, :, None]
            matrix[:, :, -1] += shift
        if "grayscale" in params:
            mean = matrix.mean(1, keepdim=True)
            matrix = torch.where(params["grayscale"][:, :, None], mean, matrix)
        pixels = images.float().flatten(2)
        if pixels.shape[1] > channels:
            pixels = torch.bmm(matrix, pixels)
        else:
            pixels = torch.baddbmm(matrix[:, :, -1:], matrix[:, :, :-1], pixels)
        return pixels.view(n, channels, height, width)

    def _normalisation(self, device: torch.device) -> Tensor:
        """[C, C + 1]: the matrix, and the constant in the last column."""
        channels = self.info.channels
        matrix = torch.eye(channels, channels + 1, device=device)
        if not self.bytes:
            return matrix
        if self.to_lab:
            matrix[:, :channels] = color.constant(color.LAB, device)
        mean, std = (color.constant(v, device) for v in (self.mean, self.std))
        matrix[:, -1] = -mean
        return matrix / std[:, None]

    def _move(self, targets: dict, params: dict, size: tuple[int, int]) -> dict[str, Tensor]:
        """The targets of a view with these parameters; see `__call__`."""
        targets = dict(targets)
        if "pose" in targets and "flip" in params:
            pose = targets["pose"]
            swaps = params["flip"][:, 0] & (pose % 2 == 1)
            targets["pose"] = torch.where(swaps, 4 - pose, pose)
        if not self.transform_targets:
            return targets
        for name, target in targets.items():
            if target.ndim == 3:
                targets[name] = self._move_dense(name, target, params, size)
        return targets

    def _move_dense(
        self, name: str, target: Tensor, params: dict, size: tuple[int, int]
    ) -> Tensor:
        if target.shape[-2:] != size:
            raise UserError(
                f"target '{name}' is {tuple(target.shape[-2:])} pixels and its images are "
                f"{size}: with augment.transform_targets = True both must be equal"
            )
        for key, transform in self.transforms.items():
            if transform.geometric:
                target = transform.apply(target, params[key])
        return target


@gin.configurable(denylist=["info", "train"])
def augment(
    info: DataInfo,
    train: bool,
    color_jitter: bool = True,
    grayscale: bool = True,
    flip: bool = True,
    crop: bool = True,
    cutout: bool = True,
    transform_targets: bool = False,
    do_augment: bool | None = None,
    share_flip: bool = True,
    resized_crop: bool = False,
    photo_jitter: tuple[float, ...] | list | None = None,
    exact_photo_jitter: bool = False,
    blur: bool = False,
) -> Augmentation:
    """The `Augmentation` of a split.

    Args:
        info: what the images are.
        train: the split is for training.
        color_jitter: random scale and shift of each channel; see `ColorJitter`.
        grayscale: `Grayscale`.
        flip: `Flip`.
        crop: `PadCrop`; `resized_crop` takes its place.
        cutout: `Cutout`.
        transform_targets: dense targets move along with the first view.
        do_augment: change the images; None means only those of training. Without, they are
            only normalised.
        share_flip: all views of an image are mirrored alike.
        resized_crop: `ResizedCrop`.
        photo_jitter: strengths of `PhotoJitter`, such as [0.4, 0.4, 0.4, 0.1]; None is off.
        exact_photo_jitter: as torchvision does it, which doubles the cost of the whole;
            otherwise `PhotoJitter.fast`.
        blur: `Blur`.
    """
    chosen = {
        "resized_crop": ResizedCrop() if resized_crop else None,
        "blur": Blur() if blur else None,
        "photo_jitter": PhotoJitter(photo_jitter, exact=exact_photo_jitter)
        if photo_jitter
        else None,
        "color_jitter": ColorJitter(info.channels) if color_jitter else None,
        "grayscale": Grayscale() if grayscale else None,
        "flip": Flip() if flip else None,
        "crop": PadCrop() if crop and not resized_crop else None,
        "cutout": Cutout() if cutout else None,
    }
    active = train if do_augment is None else do_augment
    transforms = {name: item for name, item in chosen.items() if item and active}
    return Augmentation(info, transforms, transform_targets, share_flip)
