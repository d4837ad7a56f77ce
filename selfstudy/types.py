"""The values that travel between datasets, loaders, tasks and models.

Letters in shapes: B batch, C channels, H W pixels, h w cells of a feature map, D features,
K classes, N rows, F frames of a sample.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

IGNORED = -100  # the label of what has none; it counts in no loss and no metric
DENSE = ("segment", "depth", "normals")  # targets with a value at each pixel

Kind = Literal["class", "labels", "vector", "angle", "points", "boxes", "map"]


@dataclass(frozen=True)
class Target:
    """What one target of a data set is, from which everything else about it follows.

    Places are (x, y) in pixels of the stored image, x to the right and y down; pixel i covers
    i to i + 1, so that the image's corners are (0, 0) and (W, H). What is unknown is
    `IGNORED` among integers and NaN among floats; it counts in no loss and no metric.

    Attributes:
        kind: 'class' [N]; 'labels' [N, K], 1 for each class that holds and 0 for the others;
            'vector' and 'angle' [N, K] numbers; 'points' [N, K, 2] key points (x, y);
            'boxes' [N, M, 5] left, top, right, bottom and class, the rest of the M rows NaN;
            'map' [N, H, W] or [N, C, H, W].
        classes: K of 'class' and 'labels', classes of 'boxes', and of a map of classes; 0 for
            numbers.
        width: K of 'vector', 'angle' and 'points'; M of 'boxes'.
        channels: C of a map [N, C, H, W]; 0 is [N, H, W].
        dtype: type in the data file; '' takes the kind's own, see `stored`.
        fill: of a map, what places that come into view hold; None takes `IGNORED` or NaN.
        vectors: what a map's channels are, so that they turn with the image: 'flow', C = 2
            displacements in pixels to the right and down; 'normals', C = 3 unit vectors to the
            right, up and towards the camera; '' is none of them.
        invariant: numbers that stay true however the image moves, such as a count or an age.
        mirror: of 'points', the order of the points in a mirrored image, such as (1, 0, 2)
            for left eye, right eye, nose; empty keeps it.
    """

    kind: Kind
    classes: int = 0
    width: int = 1
    channels: int = 0
    dtype: str = ""
    fill: float | None = None
    vectors: Literal["", "flow", "normals"] = ""
    invariant: bool = False
    mirror: tuple[int, ...] = ()

    @property
    def moves(self) -> bool:
        """Whether it holds places or pixels, which move with the image."""
        return self.kind in ("points", "boxes", "map")

    @property
    def discrete(self) -> bool:
        """Whether it holds class numbers, or 0 and 1, rather than numbers."""
        return self.kind in ("class", "labels") or (self.kind == "map" and self.classes > 0)

    @property
    def outputs(self) -> int:
        """How many numbers a head predicts for an image, or for a pixel of a map."""
        sizes = {"vector": self.width, "angle": self.width, "points": 2 * self.width}
        if self.kind == "map":
            return self.classes or self.channels or 1
        return sizes.get(self.kind, self.classes)

    @property
    def stored(self) -> str:
        """Type in the data file: small integers for classes, else float32."""
        if self.dtype or not self.discrete:
            return self.dtype or "float32"
        if self.kind == "class":
            return "int64"
        return "int8" if self.kind == "labels" or self.classes <= 127 else "int16"

    @property
    def unknown(self) -> float:
        """The value that means nothing is known."""
        if self.fill is not None:
            return self.fill
        return IGNORED if self.discrete else math.nan

    def shape(self, n: int, height: int, width: int) -> tuple[int, ...]:
        """Shape for `n` images of height x width pixels."""
        if self.kind == "map":
            return (n, *((self.channels,) if self.channels else ()), height, width)
        inner = {
            "class": (),
            "labels": (self.classes,),
            "points": (self.width, 2),
            "boxes": (self.width, 5),
        }
        return (n, *inner.get(self.kind, (self.width,)))

    def loaded(self, values: Tensor) -> Tensor:
        """Stored values as a minibatch has them: integers become int64, floats stay.

        So do the integers of a map of several channels that are no classes.
        """
        plain = self.discrete or not self.channels
        return values.long() if plain and not values.is_floating_point() else values

    def placeholder(self, n: int, height: int, width: int, device: Any = None) -> Tensor:
        """Zeros in the shape and type that the target of a minibatch has."""
        values = torch.empty(0, dtype=getattr(torch, self.stored), device=device)
        return self.loaded(values).new_zeros(self.shape(n, height, width))


def known_target(name: str, classes: int = 0) -> Target:
    """What a target of this name is where no data set declares it."""
    known = {
        "segment": Target("map", classes=max(1, classes), dtype="uint8", fill=0),
        "depth": Target("map", dtype="float16", fill=0),
        "normals": Target("map", channels=3, dtype="int8", fill=0, vectors="normals"),
    }
    return known.get(name, Target("class", classes=classes))


@dataclass(frozen=True)
class DataInfo:
    """What a dataset tells the rest of the program.

    Attributes:
        channels: C, channels of an image as a model sees it.
        input_res: H == W, in pixels.
        space: colour space of the images as a model sees them; 'lab' is L, a, b in this order.
        stored: 'uint8' for RGB bytes that are normalised on the device, 'normalised' for
            floats of the original layout, which are used as they are.
        mean, std: per channel, in units of `space` (RGB 0..255; LAB as CIE defines it).
        rows: split -> number of distinct rows, after the label cut.
        targets: name -> number of classes; 0 means regression.
        last_row: the highest row of the data file that training may see; 0 is not known.
        kinds: name -> `Target`, as far as the data set says more than a name does; see `kind`.
        frames: F, images of a sample.
    """

    channels: int
    input_res: int
    space: Literal["rgb", "lab"]
    stored: Literal["uint8", "normalised"]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rows: dict[str, int] = field(default_factory=dict)
    targets: dict[str, int] = field(default_factory=dict)
    last_row: int = 0
    kinds: dict[str, Target] = field(default_factory=dict)
    frames: int = 1

    def kind(self, name: str) -> Target:
        """What the target is: as declared, or else as its name and classes say."""
        return self.kinds.get(name) or known_target(name, self.targets.get(name, 0))


@dataclass
class Batch:
    """A minibatch on one device.

    Attributes:
        views: V tensors [B, C, H, W], normalised float32; of samples of F frames the first
            view of each frame, then the second.
        targets: by name, as declared (`Target`); others are 'class' and 'pose' [B] int64;
            'segment' [B, H, W] int64; 'depth' [B, H, W] metres, 0 without a surface; 'normals'
            [B, 3, H, W] int8, 127 times the unit normal (right, up, towards the camera).
        idxs: [B] int64, the row in the data file, the same in every epoch.
    """

    views: tuple[Tensor, ...]
    targets: dict[str, Tensor]
    idxs: Tensor


@dataclass
class Features:
    """What a backbone makes of one view.

    Attributes:
        pooled: the embedding, [B, D].
        dense: the last feature map, [B, D', h, w].
        layers: feature map by name, 'conv' and 'block1' ... 'block4', [B, D_l, h_l, w_l].
    """

    pooled: Tensor
    dense: Tensor
    layers: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Output:
    """What a model makes of a batch.

    Attributes:
        logits: probe name -> [B, K] (dense: [B, K, h, w]), such as 'fc/class', 'mlp/class'.
        selfsup: whatever the pretraining method hands to its task, by name.
        feats: the features of the first view.
    """

    logits: dict[str, Tensor]
    selfsup: dict[str, Tensor]
    feats: Features
