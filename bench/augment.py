"""Augmentation against the chunk-of-options algorithm, kornia and a training step.

`python -m bench.augment` prints a Markdown table. Input: uint8 images in host memory, stored as
in a data file; output: normalised float32 images. The times include gathering the minibatch.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.common import interleave, prepare, table
from selfstudy.data.augment import augment
from selfstudy.data.transforms import PadCrop
from selfstudy.models.resnet import ResNet
from selfstudy.types import DataInfo

ROWS = 10_000
RGB = DataInfo(3, 32, "rgb", "uint8", mean=(125.32, 122.97, 113.89), std=(62.99, 62.09, 66.70))
LAB = DataInfo(3, 32, "lab", "uint8", mean=(50.84, 0.40, 5.73), std=(24.26, 10.15, 16.08))


def run(quick: bool = False) -> list[tuple]:
    """Rows (what, milliseconds a batch, images a second, ratio, goal) of all comparisons."""
    repeats = 3 if quick else 9
    store = torch.randint(0, 256, (ROWS, 3, 32, 32), dtype=torch.uint8)
    return five(store, repeats) + two_views(store, repeats) + step(store, 1 if quick else 3)


def gather(store: Tensor, batch: int) -> Tensor:
    """A random minibatch of stored images."""
    return store.index_select(0, torch.randint(len(store), (batch,)))


def five(store: Tensor, repeats: int) -> list[tuple]:
    """The published five augmentations at batch 512."""
    ours, plain = augment(RGB, True), augment(RGB, False)
    theirs = kornia_five()

    def normalise() -> Tensor:
        return plain(gather(store, 512), {}, None)[0][0]

    seconds = interleave(
        {
            "five, ours": lambda: ours(gather(store, 512), {}, None),
            "five, chunks of options": lambda: chunks_of_options(normalise()),
            "five, kornia": lambda: theirs(gather(store, 512).float() / 255),
            "only normalise, ours": normalise,
        },
        repeats,
    )
    goals = {"five, chunks of options": ">= 8", "five, kornia": ">= 4"}
    return _rows(seconds, "five, ours", goals)


def two_views(store: Tensor, repeats: int) -> list[tuple]:
    """The augmentations of contrastive methods, both views of 256 images."""
    options = dict(color_jitter=False, cutout=False, resized_crop=True, share_flip=False)
    options |= dict(photo_jitter=[0.4, 0.4, 0.4, 0.1], blur=True)
    ours, exact = (
        augment(RGB, True, **options),
        augment(RGB, True, **options, exact_photo_jitter=True),
    )
    theirs = kornia_views()

    def kornia() -> None:
        images = gather(store, 256).float() / 255
        theirs(images), theirs(images)

    seconds = interleave(
        {
            "two views, ours": lambda: ours(gather(store, 256), {}, None, views=2),
            "two views, kornia": kornia,
            "two views, ours with exact photo jitter": lambda: exact(
                gather(store, 256), {}, None, views=2
            ),
        },
        repeats,
    )
    goals = {"two views, kornia": ">= 5"}
    return _rows(seconds, "two views, ours", goals)


def step(store: Tensor, repeats: int) -> list[tuple]:
    """Share of a training step of a ResNet-9 of width 1/4 at batch 512."""
    rgb, lab = augment(RGB, True), augment(LAB, True)
    train = training_step(narrow_resnet9())
    images = augment(RGB, False)(gather(store, 512), {}, None)[0][0]
    classes = torch.randint(10, (512,))
    seconds = interleave(
        {
            "step of ResNet-9, width 1/4": lambda: train(images, classes),
            "five, share of the step": lambda: rgb(gather(store, 512), {}, None),
            "five with LAB, share of the step": lambda: lab(gather(store, 512), {}, None),
        },
        repeats,
    )
    goals = {
        "five, share of the step": "<= 0.02",
        "five with LAB, share of the step": "<= 0.04",
    }
    return _rows(seconds, "step of ResNet-9, width 1/4", goals)


def _rows(seconds: dict[str, float], base: str, goals: dict[str, str]) -> list[tuple]:
    """A row per implementation, for 512 images each; ratios are to `base`."""
    return [
        (name, value * 1e3, 512 / value, value / seconds[base], goals.get(name, ""))
        for name, value in seconds.items()
    ]


def chunks_of_options(images: Tensor) -> Tensor:
    """The original's algorithm as published: each option is applied to one part of the block.

    For each augmentation the block is shuffled and split into as many parts as there are
    options (500 at most), and each part gets one of them.
    """
    for options in (_jitters(), _greys(), _flips(), _crops(), _cutouts()):
        options = [options[i] for i in torch.randperm(len(options))[:500]]
        order = torch.randperm(len(images))
        parts = images[order].tensor_split(min(len(options), len(images)))
        changed = [option(part) for option, part in zip(options, parts, strict=False)]
        images = torch.empty_like(images)
        images[order] = torch.cat(changed)
    return images


Option = Callable[[Tensor], Tensor]


def _same(part: Tensor) -> Tensor:
    return part


def _jitters() -> list[Option]:
    def jitter() -> Option:
        scale, shift = 2 ** (0.25 * torch.randn(3, 1, 1)), 0.25 * torch.randn(3, 1, 1)
        return lambda part: part * scale + shift

    return [jitter() for _ in range(400)] + [_same] * 100


def _greys() -> list[Option]:
    return [lambda part: part.mean(1, keepdim=True).expand_as(part)] + [_same] * 3


def _flips() -> list[Option]:
    return [lambda part: part.flip(-1), _same]


def _crops() -> list[Option]:
    pad = PadCrop.pad(32)

    def crop(top: int, left: int) -> Option:
        return lambda part: nn.functional.pad(part, [pad] * 4)[
            :, :, top : top + 32, left : left + 32
        ]

    side = 2 * pad + 1
    moved = [crop(top, left) for top in range(side) for left in range(side)]
    return moved + [_same] * (len(moved) // 4)


def _cutouts() -> list[Option]:
    def cutout(top: int, left: int) -> Option:
        def cut(part: Tensor) -> Tensor:
            part = part.clone()
            part[:, :, top : top + 8, left : left + 8] = 0
            return part

        return cut

    return [cutout(top, left) for top in range(25) for left in range(25)]


def kornia_five() -> nn.Module:
    """Kornia's equivalents; its colour jitter replaces the affine one."""
    import kornia.augmentation as K

    mean, std = torch.tensor(RGB.mean) / 255, torch.tensor(RGB.std) / 255
    return nn.Sequential(
        K.ColorJitter(brightness=0.25, contrast=0.25, p=0.8),
        K.RandomGrayscale(p=0.25),
        K.Normalize(mean, std),
        K.RandomHorizontalFlip(),
        K.RandomCrop((32, 32), padding=4),
        K.RandomErasing(scale=(1 / 16, 1 / 16), ratio=(1.0, 1.0), p=1.0),
    )


def kornia_views() -> nn.Module:
    """Kornia's set for contrastive methods."""
    import kornia.augmentation as K

    mean, std = torch.tensor(RGB.mean) / 255, torch.tensor(RGB.std) / 255
    return nn.Sequential(
        K.RandomResizedCrop((32, 32), scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3)),
        K.RandomHorizontalFlip(),
        K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(p=0.25),
        K.RandomGaussianBlur((3, 3), (0.1, 2.0), p=0.5),
        K.Normalize(mean, std),
    )


def narrow_resnet9() -> nn.Module:
    """The narrow ResNet-9 with a linear classifier."""
    encoder = ResNet(3, "resnet9", width=0.25, out_feats=None)

    class Classifier(nn.Module):
        """Images [B, 3, H, W] to logits [B, 10]."""

        def __init__(self):
            super().__init__()
            self.encoder, self.head = encoder, nn.Linear(encoder.out_feats, 10)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.encoder(images).pooled)

    return Classifier().to(memory_format=torch.channels_last)


def training_step(model: nn.Module) -> Callable[[Tensor, Tensor], None]:
    """One step of SGD on images [B, C, H, W] and classes [B]."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)

    def train(images: Tensor, classes: Tensor) -> None:
        images = images.contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), classes).backward()
        optimizer.step()

    return train


if __name__ == "__main__":
    print(prepare())
    print(table(run(), ("what", "ms a batch", "images/s", "ratio", "goal")))
