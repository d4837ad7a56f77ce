"""DINO (Caron et al., ICCV 2021, arXiv 2104.14294): match the EMA teacher's distribution.

Student and EMA teacher end in a softmax over many outputs. The student learns the teacher's
distribution of the other view, which is centred (against one dominant output) and sharpened
(against the uniform distribution). Two views; the paper's multi-crop is not implemented.
Published: ViT-S/16 on ImageNet, 300 epochs without small crops, 72.5 % linear accuracy.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfstudy import distributed
from selfstudy.losses import clusters, monitors
from selfstudy.models.siamese import MomentumEncoder, ScheduledFlags
from selfstudy.registry import configurable, register
from selfstudy.tasks.base import Metrics, PretextTask, of_minibatch
from selfstudy.types import Batch, DataInfo, Features, Output
from util.errors import UserError


class Prototypes(nn.Linear):
    """Weight-normalised linear layer whose gains stay at 1: products with unit vectors."""

    def __init__(self, feats: int, outputs: int):
        super().__init__(feats, outputs, bias=False)

    def forward(self, rows: Tensor, frozen: bool = False) -> Tensor:
        """[B, D] to [B, K]; `frozen` gives the weights no gradient."""
        weight = self.weight.detach() if frozen else self.weight
        return F.linear(rows, F.normalize(weight))


@register("backbone", "dino")
@configurable(denylist=["info", "run_selfsup"])
class DINOModel(MomentumEncoder):
    """Student and teacher: encoder, projector with GELU and L2 normalisation, last layer.

    Args:
        info: description of the data set.
        run_selfsup: False builds the encoder only.
        outputs: K.
        frozen: share of the run during which the last layer stays at its initial values
            (published: one epoch of 100).
        temperature: of the teacher, after its warm-up.
        first_temperature: of the teacher, at the start.
        warmup: share of the run in which it changes linearly from one to the other.
        centre_momentum: EMA decay of the centre per step.
    """

    symmetric = True
    centre: Tensor
    temperature: Tensor

    def __init__(
        self,
        info: DataInfo,
        run_selfsup: bool,
        outputs: int = 65536,
        frozen: float = 0.01,
        temperature: float = 0.04,
        first_temperature: float = 0.04,
        warmup: float = 0.3,
        centre_momentum: float = 0.9,
    ):
        super().__init__(info, run_selfsup)
        _check(outputs, temperature, first_temperature, warmup, centre_momentum)
        self.temperatures, self.warmup = (first_temperature, temperature), warmup
        self.centre_momentum = centre_momentum
        self.new_logits: list[Tensor] = []  # the teacher's logits of this step, for the centre
        if run_selfsup:
            self.scheduled = ScheduledFlags({"DINOModel.frozen": frozen})
            _initialise(self.projector)
            self.last = Prototypes(self.projector.out_feats, outputs)
            self.averaged = (*self.averaged, "last")
            self.momentum_encoder = self.copy_online()  # again, with the last layer
            self.register_buffer("centre", torch.zeros(outputs))
            self.register_buffer(
                "temperature", torch.zeros(()).fill_(self._scheduled_temperature(0.0))
            )

    def _scheduled_temperature(self, progress: float) -> float:
        """The teacher's temperature at `progress`."""
        first, last = self.temperatures
        return first + (last - first) * min(1.0, progress / self.warmup if self.warmup else 1)

    def selfsup(self, feats: tuple[Features, ...], batch: Batch) -> dict[str, Tensor]:
        """As `MomentumEncoder`; logits [B, K]: 'scores...' of queries, 'teacher...' of keys.

        Also the teacher's 'centre' [K] and 'temperature' [] before this batch.
        """
        rows_by_name = super().selfsup(feats, batch)
        frozen, teacher = not self.scheduled.due["DINOModel.frozen"], self.momentum_encoder[2]
        scores = {}
        for name, rows in rows_by_name.items():
            kind, view = name[:-1], name[-1]
            if kind == "query":
                scores[f"scores{view}"] = self.last(rows, frozen)
            else:
                with torch.no_grad():
                    scores[f"teacher{view}"] = teacher(rows)
        if self.training:
            self.new_logits = [
                item for name, item in scores.items() if name.startswith("teacher")
            ]
        return rows_by_name | scores | {"centre": self.centre, "temperature": self.temperature}

    def after_step(self, progress: float) -> None:
        """Update the teacher, its centre and its temperature."""
        super().after_step(progress)
        self.scheduled.after_step(progress)
        self.temperature.fill_(self._scheduled_temperature(progress))
        if self.new_logits:
            mean = torch.cat(self.new_logits).to(self.centre.dtype).mean(0)
            distributed.all_reduce_mean_([mean])
            self.centre.lerp_(mean, 1 - self.centre_momentum)
        self.new_logits = []


def _check(
    outputs: int, temperature: float, first: float, warmup: float, centre_momentum: float
) -> None:
    if outputs < 2:
        raise UserError(f"DINOModel.outputs = {outputs}: expected 2 or more")
    for name, value in (("temperature", temperature), ("first_temperature", first)):
        if value <= 0:
            raise UserError(f"DINOModel.{name} = {value}: expected a positive one")
    for name, value in (("warmup", warmup), ("centre_momentum", centre_momentum)):
        if not 0 <= value <= 1:
            raise UserError(f"DINOModel.{name} = {value}: expected 0 to 1")


def _initialise(head: nn.Sequential) -> None:
    """Replace ReLU by GELU, and initialise with small weights, as published."""
    for index, module in enumerate(head):
        if isinstance(module, nn.ReLU):
            head[index] = nn.GELU()
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)


@register("task")
@configurable(denylist=["info"])
class DINOTask(PretextTask):
    """Cross-entropy of the student's softmax to the teacher's of the other view.

    Args:
        info: description of the data set.
        temperature: of the student; the teacher's is its model's (`DINOModel.temperature`).
    """

    backbone = "dino"
    batch_dependent = of_minibatch("negative", "spread")

    def __init__(self, info: DataInfo, temperature: float = 0.1):
        super().__init__(info)
        if temperature <= 0:
            raise UserError(f"DINOTask.temperature = {temperature}: expected a positive one")
        self.temperature = temperature

    def pretext(self, batch: Batch, out: Output) -> Metrics:
        """The loss (nats), and the numbers of `monitors.health`, of projections."""
        self.output(out, "query0")
        outputs = out.selfsup
        students, teachers = _pair_logits(outputs)
        loss = clusters.dino(students, teachers, outputs["centre"], self.temperature,
                             outputs["temperature"])  # fmt: skip
        views = map(distributed.gather_detached, (outputs["query0"], outputs["key1"]))
        return {"loss": loss, **monitors.health(*views)}


def _pair_logits(outputs: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Logits of students and of teachers, in the order that `clusters.dino` takes."""
    if "scores1" in outputs:
        students = [outputs["scores0"], outputs["scores1"]]
        return students, [outputs["teacher0"], outputs["teacher1"]]
    # Only the first view passes through the student; the teacher's logits are a placeholder for
    # the student's of the other view, which enter no loss term.
    return [outputs["teacher1"], outputs["scores0"]], [outputs["teacher1"]]
