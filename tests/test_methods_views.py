"""What is special in VICReg, SimSiam, supervised contrastive, SwAV and DINO."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from later import Later
from test_methods import META, differing, first_batch, judged, made
from torch import Tensor

from selfstudy import configure
from selfstudy.configure import Spec
from selfstudy.losses import contrastive
from selfstudy.methods.dino import DINOModel
from selfstudy.methods.supcon import SupConTask
from selfstudy.methods.swav import SwAVModel, SwAVTask
from selfstudy.methods.vicreg import VICRegTask
from selfstudy.models.siamese import ScheduledFlags
from selfstudy.types import IGNORED, Batch, DataInfo, Features, Output
from util.errors import UserError

SwaVLoss = Later("lightly.loss", "SwaVLoss")

INFO = DataInfo(3, 16, "rgb", "uint8", (0.0,) * 3, (1.0,) * 3, {}, {"class": 10})

pytestmark = pytest.mark.usefixtures("folders")


def output(**selfsup: Tensor) -> Output:
    rows = torch.zeros(2, 4)
    return Output({}, selfsup, Features(rows, rows[:, :, None, None]))


def batch_of(labels: Tensor) -> Batch:
    return Batch((), {"class": labels}, torch.arange(len(labels)))


@pytest.mark.parametrize(
    ("method", "param"),
    [
        ("vicreg", "VICRegTask.covariance = -1"),
        ("vicreg", "VICRegTask.eps = 0"),
        ("barlow", "BarlowTask.off_diagonal = -0.1"),
        ("supcon", "SupConTask.temperature = 0"),
        ("swav", "SwAVTask.epsilon = 0"),
        ("swav", "SwAVModel.queue_size = -1"),
        ("swav", "SwAVModel.frozen = 1.5"),
        ("dino", "DINOTask.temperature = 0"),
        ("dino", "DINOModel.outputs = 1"),
        ("dino", "DINOModel.first_temperature = 0"),
        ("dino", "DINOModel.centre_momentum = 2"),
    ],
)
def test_senseless_numbers_are_refused(method, param):
    with pytest.raises(UserError, match=param.partition(" ")[0].partition(".")[2]):
        made(method, param, device=META)


# ---- VICReg, SimSiam, supervised contrastive ------------------------------------------------


def test_vicreg_hands_its_weights_on():
    views = {f"query{view}": torch.randn(16, 8).double() for view in range(2)}
    batch = batch_of(torch.zeros(16).long())

    def loss(**options) -> Tensor:
        return VICRegTask(INFO, **options).pretext(batch, output(**views))["loss"]

    parts = loss(variance=0, covariance=0), loss(invariance=0, covariance=0)
    apart = F.mse_loss(*views.values())
    torch.testing.assert_close(parts[0], 25 * apart)
    halved = loss(invariance=0, variance=50, covariance=0, halve_variance=True)
    torch.testing.assert_close(parts[1], halved)
    rest = loss(invariance=0, variance=0)
    torch.testing.assert_close(sum(parts) + rest, loss())


def test_simsiam_learns_through_its_predictions_only():
    session = made("simsiam")
    batch = first_batch(session)
    found = session.model(batch).selfsup
    p, z = ([found[f"{kind}{view}"] for view in range(2)] for kind in ("query", "key"))
    assert all(item.requires_grad for item in p) and not any(item.requires_grad for item in z)
    expected = -(F.cosine_similarity(p[0], z[1]) + F.cosine_similarity(p[1], z[0])).mean() / 2
    loss = session.task.pretext(batch, session.model(batch))["loss"]
    torch.testing.assert_close(loss, expected)


def test_supcon_takes_an_image_without_a_label_for_a_class_of_its_own():
    z = F.normalize(torch.randn(2, 12, 8).double(), dim=2)
    labels = torch.full((12,), IGNORED)
    task = SupConTask(INFO, 0.3)
    loss = task.pretext(batch_of(labels), output(query0=z[0], query1=z[1]))["loss"]
    torch.testing.assert_close(loss, contrastive.nt_xent(z[0], z[1], 0.3))
    labels[:2], labels[2:4] = 0, 1
    mixed = task.pretext(batch_of(labels), output(query0=z[0], query1=z[1]))["loss"]
    named = torch.cat((labels[:4], torch.arange(2, 10)))
    expected = contrastive.supervised_contrastive(z, named, 0.3)
    torch.testing.assert_close(mixed, expected)


def test_supcon_refuses_data_without_classes():
    with pytest.raises(UserError, match="these data have none: .*SimCLRTask"):
        SupConTask(dataclasses.replace(INFO, targets={"pose": 5}))


# ---- SwAV -----------------------------------------------------------------------------------


@pytest.mark.parametrize("queued", [False, True])
def test_swav_equals_an_independent_implementation(queued):
    vectors = F.normalize(torch.randn(6, 8).double())
    z = F.normalize(torch.randn(2, 16, 8).double(), dim=2).requires_grad_()
    earlier = F.normalize(torch.randn(2, 24, 8).double(), dim=2) @ vectors.T
    scores = z @ vectors.T
    found = {f"query{view}": z[view] for view in range(2)}
    found |= {f"scores{view}": scores[view] for view in range(2)}
    found |= {f"queued{view}": earlier[view] for view in range(2)} if queued else {}
    loss = SwAVTask(INFO).pretext(batch_of(torch.zeros(16).long()), output(**found))["loss"]
    oracle = SwaVLoss()(list(scores), [], list(earlier) if queued else None)[0]
    torch.testing.assert_close(loss, oracle, rtol=1e-6, atol=0)
    ours, theirs = (torch.autograd.grad(item, z, retain_graph=True)[0]
                    for item in (loss, oracle))  # fmt: skip
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-12)


def test_swav_prototypes_keep_length_one_and_are_frozen_first():
    session = made("swav", "SwAVModel.frozen = 0.4", "scheduler.milestones = [1, 2]")
    weight = session.model.backbone.prototypes.weight
    before = weight.detach().clone()
    session.round()  # shares 0 and 1/4
    torch.testing.assert_close(weight.detach(), before)
    session.round()  # 1/2, of which the model hears after the step, and 3/4
    assert (weight.detach() - before).abs().max() > 1e-4
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(len(weight)))


def test_the_queue_of_swav_holds_the_latest_rows_of_each_view():
    model = swav_model(queue_size=5)
    steps = F.normalize(torch.randn(3, 2, 2, 4), dim=3)  # steps, views, rows, D
    for rows in steps:
        model.new_rows = list(rows)
        model.after_step(0.0)
    for view in range(2):  # the sixth row has taken the first one's place
        latest = steps[:, view].flatten(0, 1)[[5, 1, 2, 3, 4]]
        torch.testing.assert_close(model.queue[view], latest)
    assert int(model.place) == 1 and model.new_rows == []
    many = F.normalize(torch.randn(2, 7, 4), dim=2)  # more than it holds
    model.new_rows = list(many)
    model.after_step(0.0)
    for view in range(2):
        assert {tuple(row.tolist()) for row in model.queue[view]} == {
            tuple(row.tolist()) for row in many[view, -5:]
        }


def swav_model(**options) -> SwAVModel:
    configure.load(Spec((), ("projector.out = 4", "projector.hidden = 8",
                             "ResNet.width = 0.1")))  # fmt: skip
    return SwAVModel(INFO, True, prototypes=3, **options)


def test_the_queue_of_swav_takes_part_from_its_share_on():
    model = swav_model(queue_size=6, queue_start=0.5)
    images = torch.randn(4, 3, 16, 16)
    batch = Batch((images, images), {}, torch.arange(4))

    def names() -> set[str]:
        return model.selfsup((model.encode(images),) * 2, batch).keys()

    assert "queued0" not in names()
    model.after_step(0.49)
    assert "queued1" not in names()
    model.after_step(0.5)
    assert {"queued0", "queued1"} <= names()


# ---- DINO -----------------------------------------------------------------------------------


def test_the_teacher_of_dino_its_centre_and_temperature_follow():
    session = made("dino", "MomentumEncoder.momentum = 0.9",
                   "MomentumEncoder.momentum_schedule = False",
                   "DINOModel.frozen = 0.0", "DINOModel.first_temperature = 0.02",
                   "DINOModel.temperature = 0.06", "DINOModel.warmup = 0.5")  # fmt: skip
    model = session.model.backbone
    pairs = list(zip(model.online_modules(), model.momentum_encoder, strict=True))
    before = [item.clone() for _, copy in pairs for item in copy.parameters()]
    batch = first_batch(session)
    with torch.no_grad():
        for item in (item for leader, _ in pairs for item in leader.parameters()):
            item += torch.randn_like(item)
    found = session.model(batch).selfsup
    assert float(found["temperature"]) == pytest.approx(0.02)
    assert not found["centre"].any() and not found["teacher0"].requires_grad
    model.after_step(0.25)
    leaders = [item for leader, _ in pairs for item in leader.parameters()]
    after = [item for _, copy in pairs for item in copy.parameters()]
    assert len(after) == len(before) == len(leaders)
    for old, new, leader in zip(before, after, leaders, strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * leader.detach())
    mean = torch.cat((found["teacher0"], found["teacher1"])).mean(0)
    torch.testing.assert_close(model.centre, 0.1 * mean)
    assert float(model.temperature) == pytest.approx(0.04)
    model.after_step(0.7)
    assert float(model.temperature) == pytest.approx(0.06)
    torch.testing.assert_close(model.centre, 0.1 * mean)  # no batch, nothing to follow


def test_dino_compares_with_the_other_view_of_the_momentum_teacher():
    for both, pairs in ((True, ((0, 1), (1, 0))), (False, ((0, 1),))):
        session = made("dino", f"MomentumEncoder.both_as_queries = {both}")
        batch = first_batch(session)
        session.model.backbone.centre.normal_()
        out = session.model(batch)
        found = {name: item.detach().double() for name, item in out.selfsup.items()}
        expected = [
            F.cross_entropy(
                found[f"scores{student}"] / 0.1,
                ((found[f"teacher{teacher}"] - found["centre"]) / 0.04).softmax(1),
            )
            for student, teacher in pairs
        ]
        loss = session.task.pretext(batch, out)["loss"].double()
        torch.testing.assert_close(loss, sum(expected) / len(pairs), rtol=1e-5, atol=0)


def test_the_last_layer_of_dino_has_unit_vectors_and_is_frozen_first():
    session = made("dino", "DINOModel.frozen = 0.3", "scheduler.milestones = [1, 2]")
    model = session.model.backbone
    batch = first_batch(session)
    judged(session, batch)[0].backward()
    assert model.last.weight.grad is None
    model.after_step(0.3)
    judged(session, batch)[0].backward()
    assert model.last.weight.grad.any() and model.momentum_encoder[2].weight.grad is None
    rows = F.normalize(torch.randn(3, 32))
    doubled = model.last(rows).detach()
    with torch.no_grad():
        model.last.weight *= 2
    torch.testing.assert_close(model.last(rows).detach(), doubled)


def test_dino_learns_with_a_vision_transformer():
    params = ("init_resnet.choice = 'vit'", "ViT.width = 16", "ViT.depth = 1", "ViT.heads = 1",
              "ViT.grid = 4")  # fmt: skip
    session = made("dino", *params)
    judged(session, first_batch(session))[0].backward()
    assert all(item.grad.any() for item in session.model.backbone.encoder.parameters())
    assert session.round()["train_pretext_loss"] > 0


def test_the_head_of_dino_is_smooth_in_student_and_teacher():
    configure.load(Spec((), ("projector.layers = 3", "ResNet.width = 0.1")))
    model = DINOModel(INFO, True, outputs=8)
    kinds = [type(part).__name__ for part in model.projector]
    assert kinds == [type(part).__name__ for part in model.momentum_encoder[1]]
    assert kinds == ["Linear", "GELU", "Linear", "GELU", "Linear"]
    states = (model.projector.state_dict(), model.momentum_encoder[1].state_dict())
    assert differing(*states) == []


# ---- the clock ------------------------------------------------------------------------------


def test_a_clock_tells_shares_of_the_run_and_remembers_them():
    clock = ScheduledFlags({"early": 0.0, "late": 0.7})
    assert clock.due == {"early": True, "late": False}
    clock.after_step(0.6999)
    assert not clock.due["late"]
    clock.after_step(0.7)
    assert clock.due["late"]
    other = ScheduledFlags({"early": 0.0, "late": 0.7})
    other.load_state_dict(clock.state_dict())
    assert other.due == {"early": True, "late": True}
    with META:
        ScheduledFlags({"late": 0.7}).load_state_dict(
            {"flags": torch.ones(1, dtype=torch.bool)}
        )
