"""The frozen encoder of a snapshot: images to named features."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from selfstudy import configure, devices, registry
from selfstudy.data.augment import Augmentation
from selfstudy.data.dataset import BaseDataset, NotPrepared
from selfstudy.storage import snapshot
from selfstudy.storage.snapshot import Snapshot
from selfstudy.types import DataInfo, Target
from util.errors import UserError

BACKBONE, ENCODER = "backbone.", "encoder."


class Encoder:
    """The encoder of a snapshot, built under the snapshot's own configuration.

    The active configuration is unchanged. All of the encoder's tensors must match; probes,
    projectors, queues and teachers are not loaded. It is in evaluation mode, without
    gradients, and computes in float32.

    Args:
        source: "EXP/name", or a snapshot that was opened.
        device: where it computes; None takes the accelerator that this process may use.
        trained: load the snapshot's weights; otherwise random ones of seed 0, the baseline of
            an untrained network.

    Attributes:
        snapshot: `Snapshot`.
        kind: 'trained' or 'untrained'.
        info: the `DataInfo` of the data that it was trained on.
        device: where it computes.
        out_feats: D of 'embedding'.

    Raises:
        UserError: no such snapshot, or one that is damaged or lacks something.
    """

    def __init__(
        self,
        source: str | Snapshot,
        device: torch.device | str | None = None,
        trained: bool = True,
    ):
        registry.discover()
        self.snapshot = snapshot.resolve(source) if isinstance(source, str) else source
        self.kind = "trained" if trained else "untrained"
        self.device = torch.device(device or devices.best())
        # Initial weights draw random numbers; the caller's generator is not to advance.
        with (
            configure.isolate(self.snapshot.config, f"{self.snapshot.name}/config.gin"),
            torch.random.fork_rng(devices=[]),
        ):
            torch.manual_seed(0)
            self.info = data_info(self.snapshot)
            choice = configure.value("Wrapper", "model_choice")
            self.backbone = registry.get("backbone", choice)(self.info, run_selfsup=False)
        if trained:
            _load(self.backbone, self.snapshot.weights(), self.snapshot.name)
        self.backbone.requires_grad_(False).eval()
        self.backbone.to(self.device, memory_format=torch.channels_last)
        self.out_feats: int = self.backbone.out_feats
        bytes_info = dataclasses.replace(self.info, stored="uint8")
        self._normalise = Augmentation(bytes_info, {})

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Features of [B, C, H, W] images, normalised as those of the training.

        Returns:
            'embedding' [B, D]; 'dense' [B, D', h, w], the map that the embedding is pooled
            from; the stages 'conv' and 'block1' ... 'block4' [B, D_l, h_l, w_l], as many as
            the network has. All on `device`, float32.
        """
        if images.ndim != 4 or images.shape[1] != self.info.channels:
            channels = self.info.channels
            raise ValueError(f"images {tuple(images.shape)}, expected [B, {channels}, H, W]")
        images = images.to(self.device, torch.float32, memory_format=torch.channels_last)
        feats = self.backbone.encode(images)
        return {"embedding": feats.pooled, "dense": feats.dense, **feats.layers}

    @torch.inference_mode()
    def from_bytes(self, images: Tensor) -> dict[str, Tensor]:
        """Features of RGB bytes [B, 3, H, W] of any data set.

        They are brought to the colour space, mean and standard deviation of the training data.
        """
        if images.dtype != torch.uint8:
            raise ValueError(f"images are {images.dtype}, expected uint8")
        return self(self._normalise.apply(images.to(self.device), {}))


class Pixels:
    """The pixels as features, a baseline without a network.

    Args:
        source: a snapshot, for whose data they are normalised.
        device: where they are normalised.

    Attributes:
        snapshot, info, device, kind: as of `Encoder`.
    """

    kind = "pixels"

    def __init__(self, source: Snapshot, device: torch.device | str | None = None):
        self.snapshot = source
        self.device = torch.device(device or devices.best())
        with configure.isolate(source.config, f"{source.name}/config.gin"):
            self.info = data_info(source)
        self._normalise = Augmentation(dataclasses.replace(self.info, stored="uint8"), {})

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """'embedding' [B, C * H * W] of normalised images [B, C, H, W]."""
        return {"embedding": images.to(self.device, torch.float32).flatten(1)}

    def from_bytes(self, images: Tensor) -> dict[str, Tensor]:
        """The same of RGB bytes."""
        return self(self._normalise.apply(images.to(self.device), {}))


def _load(backbone: torch.nn.Module, weights: dict[str, Tensor], name: str) -> None:
    """Load the snapshot's weights; every tensor of the encoder must match on both sides."""
    own = backbone.state_dict()
    state = {key.removeprefix(BACKBONE): item for key, item in weights.items()
             if key.startswith(BACKBONE)}  # fmt: skip
    try:
        snapshot.load_weights(
            backbone, state, lambda key: key not in own and not key.startswith(ENCODER)
        )
    except UserError as error:
        raise UserError(f"{name}: {error.text}") from None


def data_info(source: Snapshot) -> DataInfo:
    """The `DataInfo` of the data that a snapshot was trained on.

    From its card; for a card without it, the data set of its configuration is opened, which
    must be the active one. No data file is made.

    Raises:
        UserError: a damaged card, or the data are not there.
    """
    if "data" in source.card:
        return _from_card(source.card["data"], source.name)
    try:
        with BaseDataset.allow_preparing(False):
            return registry.get("dataset", configure.value("session", "dataset"))("train").info
    except NotPrepared as error:
        raise UserError(
            f"{source.name} has no data description, and the data file is missing "
            f"({error.text}): prepare it by python misc/data.py prepare NAME"
        ) from None


def _from_card(data: Any, name: str) -> DataInfo:
    try:
        data = {"kinds": {}, "frames": 1} | data  # which older cards do not have
        fields: dict[str, Any] = {
            item.name: data[item.name] for item in dataclasses.fields(DataInfo)
        }
        fields |= {key: tuple(map(float, fields[key])) for key in ("mean", "std")}
        fields["kinds"] = {key: Target(**kind | {"mirror": tuple(kind["mirror"])})
                           for key, kind in fields["kinds"].items()}  # fmt: skip
        info = DataInfo(**fields)
        sizes = (info.channels, info.frames, info.input_res, *info.rows.values(),
                 *info.targets.values())  # fmt: skip
        plain = all(isinstance(size, int) and size >= 0 for size in sizes)
        if not plain or not len(info.mean) == len(info.std) == info.channels:
            raise ValueError("numbers that do not fit")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{name}: the card's 'data' is damaged ({error!r})") from None
    return info
