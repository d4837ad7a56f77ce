"""The trained model: a backbone, and linear and MLP probes of its features."""

import contextlib

import torch
from torch import Tensor, nn

from selfstudy import registry
from selfstudy.models.resnet import BackboneName
from selfstudy.registry import configurable, register
from selfstudy.storage import snapshot
from selfstudy.types import Batch, DataInfo, Features, Output
from util.errors import UserError

ENCODER = "backbone.encoder."
PROBES = "probes."


class _Mlp(nn.Sequential):
    """MLP probe: linear (no bias), batch norm, ReLU, linear; hidden width = input width."""

    def __init__(self, feats: int, classes: int, dense: bool):
        norm = nn.BatchNorm2d if dense else nn.BatchNorm1d
        super().__init__(
            _linear(feats, feats, dense, bias=False),
            norm(feats),
            nn.ReLU(inplace=True),
            _linear(feats, classes, dense),
        )


def _linear(feats: int, classes: int, dense: bool, bias: bool = True) -> nn.Module:
    return nn.Conv2d(feats, classes, 1, bias=bias) if dense else nn.Linear(feats, classes, bias)


@register("model")
@configurable(denylist=["info"])
class Wrapper(nn.Module):
    """A backbone and, for each target, a linear ('fc') and an MLP ('mlp') probe.

    Args:
        info: description of the data set.
        model_choice: the backbone, 'resnet' or a pretraining method.
        out_classes: number of classes of each probe, in the order class, pose (dense: segment,
            depth); None takes the data set's targets.
        pretrained: "EXP/name" of the snapshot whose weights initialise the model.
        ignore_pretrained_fc: do not load the snapshot's probes.
        finetune_classifier: let the probes' gradients reach the backbone; otherwise probes
            read detached features.
        finetune_selfsup: False freezes the encoder, batch norm in evaluation mode.
        run_selfsup: train the pretraining method too.
        run_classifier: build and train the probes.
        warmup_fc: number of steps during which the encoder is frozen and only the probes (and
            a method's heads) learn.
        dense_pred: apply the probes at each position of the feature map.
    """

    def __init__(
        self,
        info: DataInfo,
        model_choice: BackboneName = "resnet",
        out_classes: list[int] | None = None,
        pretrained: str | None = None,
        ignore_pretrained_fc: bool = True,
        finetune_classifier: bool = False,
        finetune_selfsup: bool = True,
        run_selfsup: bool = True,
        run_classifier: bool = True,
        warmup_fc: int = 0,
        dense_pred: bool = False,
    ):
        super().__init__()
        self.finetune_classifier = finetune_classifier
        self.finetune_selfsup = finetune_selfsup
        self.run_selfsup = run_selfsup
        self.warmup_fc = warmup_fc
        self.dense_pred = dense_pred
        self.warming = False  # a flag: with a step counter torch.compile would recompile
        self.backbone = registry.get("backbone", model_choice)(info, run_selfsup)
        feats = self.backbone.dense_feats if dense_pred else self.backbone.out_feats
        self.probes = nn.ModuleDict()
        for target, classes in _targets(info, out_classes, dense_pred).items():
            if run_classifier:
                self.probes[f"fc/{target}"] = _linear(feats, classes, dense_pred)
                self.probes[f"mlp/{target}"] = _Mlp(feats, classes, dense_pred)
        self.report: str | None = None
        if pretrained:
            self._load(pretrained, ignore_pretrained_fc)
        if not finetune_selfsup:
            self.backbone.encoder.requires_grad_(False)

    def _load(self, name: str, ignore_probes: bool) -> None:
        source = snapshot.resolve(name)
        state = source.weights()
        kept = {key: item for key, item in state.items()
                if not (ignore_probes and key.startswith(PROBES))}  # fmt: skip
        report = snapshot.load_weights(self, kept, lambda key: not key.startswith(ENCODER))
        self.report = f"weights from {source.name}: {report}"
        if len(kept) < len(state):
            self.report += (
                f"; {len(state) - len(kept)} of its probes left out (ignore_pretrained_fc)"
            )

    def train(self, mode: bool = True) -> "Wrapper":
        """As in torch, but a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if not self.finetune_selfsup:
            self.backbone.encoder.eval()
        return self

    def forward(self, batch: Batch) -> Output:
        """Probe logits of the first view, and the method's outputs of all views."""
        frozen = not self.finetune_selfsup or (self.training and self.warming)
        with torch.no_grad() if frozen else contextlib.nullcontext():
            count = self.backbone.encoded_views if self.run_selfsup else 1
            feats = tuple(self.backbone.encode(view) for view in batch.views[:count])
        read = feats[0].dense if self.dense_pred else feats[0].pooled
        if not self.finetune_classifier:
            read = read.detach()
        logits = {name: probe(read) for name, probe in self.probes.items()}
        selfsup: dict[str, Tensor] = {}
        if self.run_selfsup:
            selfsup = self.backbone.selfsup(feats, batch)
        return Output(logits, selfsup, feats[0])

    def encode(self, images: Tensor) -> Features:
        """Features of images [B, C, H, W], as the probes read them."""
        return self.backbone.encode(images)

    def before_step(self, steps: int) -> None:
        """Called before each step with the number of steps taken."""
        self.warming = steps < self.warmup_fc

    def after_step(self, progress: float) -> None:
        """Call the method's `after_step`; progress is the share of the run, 0 to 1."""
        if self.run_selfsup:
            self.backbone.after_step(progress)


def _targets(info: DataInfo, out_classes: list[int] | None, dense: bool) -> dict[str, int]:
    """Target -> output width of its probes; 1 for regression."""
    order: tuple[str, ...] = ("segment", "depth") if dense else ("class", "pose")
    if out_classes is None:
        return {name: info.targets[name] or 1 for name in order if name in info.targets}
    if len(out_classes) > len(order):
        raise UserError(f"Wrapper.out_classes = {out_classes}: at most two, for {order}")
    wanted: dict[str, int] = dict(zip(order, out_classes, strict=False))
    for name, classes in wanted.items():
        if info.targets.get(name, 0) > classes:
            raise UserError(
                f"Wrapper.out_classes = {out_classes}: the data have {info.targets[name]} "
                f"classes of '{name}'"
            )
    if wanted.get("depth", 1) != 1:
        raise UserError(
            f"Wrapper.out_classes = {out_classes}: depth is one number, such as in [11, 1]"
        )
    return wanted
