"""Augmentation of a minibatch: stored bytes to normalised, randomly transformed images.

`Augmentation` fuses the transforms of `transforms.py` into few passes: it copies whole rows of
the stored bytes (flip, crop), combines normalisation and colour into one matrix per image, and
zeroes padding and cutout holes with one mask.
"""

from typing import Any

import torch
from torch import Generator, Tensor

from selfstudy import distributed
from selfstudy.data.transforms import (
    Blur,
    ColorJitter,
    Cutout,
    Flip,
    Grayscale,
    PadCrop,
    PhotoJitter,
    ResizedCrop,
    Transform,
    mix,
    span,
    weights,
)
from selfstudy.registry import configurable
from selfstudy.types import DataInfo
from util import color
from util.errors import UserError


def _rows(images: Tensor, flip: Tensor | None, window: Tensor | None) -> Tensor:
    """Mirror, pad and crop images by copying whole rows; the dtype is kept.

    Args:
        images: [n, C, H, W].
        flip: [n, 1] bool, parameters of `Flip`; None for no flip.
        window: [n, 2], parameters of `PadCrop`; None for no crop.
    """
    n, channels, height, width = images.shape
    pad = 0 if window is None else PadCrop.pad(height)
    tall, wide = height + 2 * pad, width + 2 * pad
    padded = images.new_zeros((1 if flip is None else 2, n, channels, tall, wide))
    inner = padded[..., pad : pad + height, pad : pad + width]
    inner[0] = images
    if flip is not None:
        inner[1] = images.flip(-1)

    def steps(count: int, stride: int) -> Tensor:
        return torch.arange(count, device=images.device) * stride

    start = steps(n, channels * tall * wide)
    if flip is not None:
        start = start + flip[:, 0] * padded[0].numel()
    if window is not None:
        start = start + window[:, 0] * wide + window[:, 1]
    starts = start[:, None, None] + steps(channels, tall * wide)[:, None] + steps(height, wide)
    # A view with an overlapping row at each position of the buffer; nothing is copied yet.
    windows = padded.as_strided((padded.numel() - width + 1, width), (1, 1))
    return windows.index_select(0, starts.flatten()).view(images.shape)


def _parts(images: Tensor) -> list[slice]:
    """Slices of a batch whose temporaries fit in a CPU's cache; on other devices one slice.

    Large temporaries are also returned to the operating system after each use, and their page
    faults took longer than the arithmetic.
    """
    n, _, height, width = images.shape
    size = max(1, 2**17 // (height * width)) if images.device.type == "cpu" else n
    return [slice(start, start + size) for start in range(0, n, size)]


class Augmentation:
    """Converts stored images to a model's input: normalised float32, optionally augmented.

    Equal to applying `transforms` one after another (`resized_crop`, `blur` and
    `photo_jitter` before the normalisation, the others after it) up to rounding, except for
    `PhotoJitter.fast`.

    Args:
        info: description of the data set.
        transforms: enabled ones, keyed by their argument name in `augment`.
        transform_targets: apply geometric transforms of the first view to spatial targets
            (maps, key points, boxes) as well.
        share_flip: all views of an image share one flip (as in AMDIM's published code).
        relabel_pose: a mirrored image swaps the pose classes 1 and 3.

    Raises:
        UserError: an impossible combination, such as a crop without its spatial targets, or
            targets that mirroring makes invalid.
    """

    def __init__(
        self,
        info: DataInfo,
        transforms: dict[str, Transform],
        transform_targets: bool = False,
        share_flip: bool = True,
        relabel_pose: bool = True,
    ):
        self.info = info
        self.transforms: dict[str, Any] = (
            transforms  # Any: some have methods beyond `Transform`
        )
        # Plain floats: `color.constant` caches by value.
        self.mean, self.std = (tuple(map(float, v)) for v in (info.mean, info.std))
        self.transform_targets, self.share_flip = transform_targets, share_flip
        self.relabel_pose = relabel_pose
        self.bytes = info.stored == "uint8" or "photo_jitter" in transforms
        self.to_lab = info.stored == "uint8" and info.space == "lab"
        if info.stored != "uint8" and info.space == "lab" and "photo_jitter" in transforms:
            raise UserError(
                "augment.photo_jitter changes RGB, and these images are stored as normalised "
                "LAB; prepare them as bytes, or set augment.photo_jitter = None"
            )
        self._check_targets()

    def _check_targets(self) -> None:
        kinds = {name: self.info.kind(name) for name in self.info.targets}
        moved = [name for name, kind in kinds.items() if kind.moves]
        moving = [name for name, item in self.transforms.items() if item.geometric]
        if moved and moving and not self.transform_targets:
            raise UserError(
                f"augment.{moving[0]} = True moves the images away from their targets "
                f"({', '.join(moved)}): set augment.transform_targets = True, or switch it off"
            )
        for argument, transform in self.transforms.items():
            for name, kind in kinds.items():
                if transform.refuses(kind):
                    raise UserError(
                        f"augment.{argument} = True changes what the target '{name}' "
                        f"({kind.kind}) says of an image, and it cannot be worked out: set "
                        f"augment.{argument} = False, leave the target out "
                        "(BaseDataset.targets), or declare it invariant"
                    )

    def __call__(
        self,
        images: Tensor,
        targets: dict[str, Tensor],
        generator: Generator | None,
        views: int = 1,
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Independently augmented views of a minibatch.

        Args:
            images: as stored, [B, C, H, W], uint8 RGB or normalised float; or samples of F
                frames, [B, F, C, H, W].
            targets: by name; with `transform_targets` spatial ones are transformed with the
                first view (see `Transform.move`). Where that view is mirrored, 'pose' [B]
                swaps its classes 1 and 3 (left and right).
            generator: on the images' device; the same state gives the same views.
            views: number of views.

        Returns:
            Tuple of normalised float32 [B, C, H, W], contiguous; the targets. All frames of a
            view share their parameters, so that motion between frames is preserved; the
            frames of the first view come first.
        """
        frames = images[:, None] if images.ndim == 4 else images
        n, _, _, height, width = frames.shape
        drawn = [self.draw(n, height, width, generator, images.device) for _ in range(views)]
        if self.share_flip and "flip" in self.transforms:
            for params in drawn[1:]:
                params["flip"] = drawn[0]["flip"]
        moved = self._move(targets, drawn[0], (height, width))
        changed = [self.apply(frame, params) for params in drawn for frame in frames.unbind(1)]
        return tuple(changed), moved

    def draw(
        self, n: int, height: int, width: int, generator: Generator | None, device: torch.device
    ) -> dict[str, Tensor]:
        """Random parameters of each transform, by name (`Transform.draw`)."""

        def draw_params(transform: Transform) -> Tensor:
            return distributed.draw_share(
                lambda count: transform.draw(count, height, width, generator, device), n
            )

        return {name: draw_params(transform) for name, transform in self.transforms.items()}

    def apply(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        """One view: stored images [n, C, H, W] transformed by `params`, normalised float32."""
        images, params = self._resample(images, dict(params))
        images = self._photo(images, params)
        if params.keys() & {"flip", "crop"}:
            images = _rows(images, params.get("flip"), params.get("crop"))
        matrix, kept = self._matrix(images, params), self._visible(images, params)
        result = images.new_empty(images.shape, dtype=torch.float32)
        for part in _parts(images):
            out = result[part]
            self._colour(images[part], matrix[part], out)
            if kept is not None:
                out *= kept[part]
        return result

    def _resample(self, images: Tensor, params: dict) -> tuple[Tensor, dict]:
        """Resized crop, flip and blur as one matrix for rows and one for columns.

        Removes the parameters that it applied from `params`.
        """
        if not {"resized_crop", "blur"} & params.keys():
            return images, params
        n, _, height, width = images.shape
        box = params.pop("resized_crop", color.constant((0, 0, height, width), images.device))
        top, left, tall, wide = box.expand(n, 4).unbind(1)
        rows = weights(ResizedCrop.sources(top, tall, height), height)
        across = ResizedCrop.sources(left, wide, width)
        if "flip" in params:
            across = torch.where(params.pop("flip"), across.flip(1), across)
        columns = weights(across, width)
        if "blur" in params:
            blur, sigma = self.transforms["blur"], params.pop("blur")
            rows, columns = blur.along(rows, sigma, 1), blur.along(columns, sigma, 1)
        return mix(images.float(), rows, columns), params

    def _photo(self, images: Tensor, params: dict) -> Tensor:
        """Photo jitter in RGB 0..255; normalised images are converted to that range first."""
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

    def _matrix(self, images: Tensor, params: dict) -> Tensor:
        """Normalisation, colour jitter and grey as one matrix per image, [n, C, C + 1].

        The last column holds the constants.
        """
        matrix = self._normalisation(images.device).expand(len(images), -1, -1)
        if "color_jitter" in params:
            scale, shift = params["color_jitter"].chunk(2, 1)
            matrix = matrix * scale[:, :, None]
            matrix[:, :, -1] += shift
        if "grayscale" in params:
            mean = matrix.mean(1, keepdim=True)
            matrix = torch.where(params["grayscale"][:, :, None], mean, matrix)
        return matrix

    def _colour(self, images: Tensor, matrix: Tensor, out: Tensor) -> None:
        """Apply each image's colour matrix; the result is written to `out`."""
        pixels = (color.response(images) if self.to_lab else images.float()).flatten(2)
        constant, matrix = matrix[:, :, -1:], matrix[:, :, :-1]
        torch.baddbmm(constant, matrix, pixels, out=out.flatten(2))

    @staticmethod
    def _visible(images: Tensor, params: dict) -> Tensor | None:
        """Mask [n, 1, H, W] float: 0 in padding and cutout holes, else 1; None if all 1.

        The image's rectangle minus the hole's, each an outer product of rows and columns.
        """
        if not params.keys() & {"crop", "cutout"}:
            return None
        n, _, *sizes = images.shape
        rectangles = []
        for axis, size in enumerate(sizes):
            shown = torch.ones(n, size, device=images.device)
            hole = torch.zeros_like(shown)
            if "crop" in params:
                shown *= span(PadCrop.pad(sizes[0]) - params["crop"][:, axis], size, size)
            if "cutout" in params:
                hole = shown * span(params["cutout"][:, axis], Cutout.size(sizes[0]), size)
            rectangles.append(torch.stack([shown, hole], 2))
        rows, columns = rectangles
        rows[:, :, 1] *= -1
        return (rows @ columns.mT)[:, None]

    def _normalisation(self, device: torch.device) -> Tensor:
        """Normalisation as a matrix [C, C + 1], the constants in the last column."""
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
        """Targets transformed by the parameters of a view; see `__call__`."""
        targets = dict(targets)
        if self.relabel_pose and "pose" in targets and "flip" in params:
            pose = targets["pose"]
            swaps = params["flip"][:, 0] & (pose % 2 == 1)
            targets["pose"] = torch.where(swaps, 4 - pose, pose)
        if not self.transform_targets:
            return targets
        for name, target in targets.items():
            targets[name] = self._move_one(name, target, params, size)
        return targets

    def _move_one(
        self, name: str, target: Tensor, params: dict, size: tuple[int, int]
    ) -> Tensor:
        kind = self.info.kind(name)
        if kind.kind == "map" and target.shape[-2:] != size:
            raise UserError(
                f"target '{name}' is {tuple(target.shape[-2:])} pixels and its images are "
                f"{size}: with augment.transform_targets = True both must be equal"
            )
        for key, transform in self.transforms.items():
            if transform.geometric:
                target = transform.move(target, params[key], kind, size)
        return target


@configurable(denylist=["info", "train"])
def augment(
    info: DataInfo,
    train: bool,
    color_jitter: bool = True,
    grayscale: bool | float = True,
    flip: bool = True,
    crop: bool = True,
    cutout: bool = True,
    transform_targets: bool = False,
    do_augment: bool | None = None,
    share_flip: bool = True,
    relabel_pose: bool = True,
    resized_crop: bool = False,
    crop_scale: float = 0.2,
    photo_jitter: tuple[float, ...] | list[float] | None = None,
    exact_photo_jitter: bool = False,
    blur: bool = False,
) -> Augmentation:
    """Build the `Augmentation` of a split.

    Args:
        info: description of the data set.
        train: whether it is the training split.
        color_jitter: random scale and shift of each channel; see `ColorJitter`.
        grayscale: `Grayscale`; a number is its probability, True is 0.25.
        flip: `Flip`.
        crop: `PadCrop`; ignored with `resized_crop`.
        cutout: `Cutout`.
        transform_targets: apply geometric transforms of the first view to spatial targets
            (maps such as segmentation or depth, key points, boxes) as well; required when
            there are such targets and geometric transforms.
        do_augment: transform the images, otherwise only normalise them; None is the training
            split only.
        share_flip: all views of an image share one flip.
        relabel_pose: a mirrored image swaps the pose classes 1 and 3; False keeps the label,
            wrong for mirrored images, as published.
        resized_crop: `ResizedCrop`.
        crop_scale: smallest share of the image's area in a resized crop; the largest is 1.
        photo_jitter: strengths of `PhotoJitter`, such as [0.4, 0.4, 0.4, 0.1]; None is off.
        exact_photo_jitter: as torchvision computes it, at twice the cost of all augmentation;
            otherwise `PhotoJitter.fast`.
        blur: `Blur`.
    """
    photo = PhotoJitter(photo_jitter, exact=exact_photo_jitter) if photo_jitter else None
    chosen = {
        "resized_crop": ResizedCrop((crop_scale, 1.0)) if resized_crop else None,
        "blur": Blur() if blur else None,
        "photo_jitter": photo,
        "color_jitter": ColorJitter(info.channels) if color_jitter else None,
        "grayscale": Grayscale(0.25 if grayscale is True else grayscale) if grayscale else None,
        "flip": Flip() if flip else None,
        "crop": PadCrop() if crop and not resized_crop else None,
        "cutout": Cutout() if cutout else None,
    }
    active = train if do_augment is None else do_augment
    transforms = {name: item for name, item in chosen.items() if item and active}
    return Augmentation(info, transforms, transform_targets, share_flip, relabel_pose)
