"""The values that travel between datasets, loaders, tasks and models.

Letters in shapes: B batch, C channels, H W pixels, h w cells of a feature map, D features,
K classes, N rows.
"""

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

IGNORED = -100  # the label of what has none; it counts in no loss and no metric
DENSE = ("segment", "depth", "normals")  # targets with a value at each pixel


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


@dataclass
class Batch:
    """A minibatch on one device.

    Attributes:
        views: V tensors [B, C, H, W], normalised float32.
        targets: name -> 'class', 'pose' [B] int64; 'segment' [B, H, W] int64; 'depth' [B, H, W]
            metres, 0 without a surface; 'normals' [B, 3, H, W] int8, 127 times the unit
            normal (right, up, towards the camera).
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
