"""What every encoder promises."""

from torch import nn


class ImageEncoder(nn.Module):
    """Base class of encoders: `forward` takes [B, C, H, W] images to `Features`.

    Attributes:
        out_feats: D of the embedding.
        dense_feats: channels of the dense map.
    """

    out_feats: int
    dense_feats: int
