"""What holds for each pretraining method: a new one is tested here by being registered."""

import contextlib
import dataclasses
import math

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from selfstudy import configure, registry
from selfstudy.configure import Spec
from selfstudy.models.wrapper import Wrapper
from selfstudy.storage import snapshot
from selfstudy.tasks.base import PretextTask
from selfstudy.train.session import Session
from selfstudy.types import Batch
from util.errors import UserError

registry.discover()
CPU, META = torch.device("cpu"), torch.device("meta")
RES, ROWS = 16, 120

NARROW = (
    "ResNet.width = 0.1",
    "projector.hidden = 32",
    "projector.out = 32",
    "dataloader.batch_size = 32",
    "session.train_iters = 2",
    "session.valid_iters = 1",
    "session.test_iters = 0",
    "scheduler.milestones = [1, 2]",
)
# In the place of rendered pictures, for methods that digits will not do for: they are grey.
COLOURED = (
    "session.dataset = 'SynDataset'",
    "SynDataset.dataset_choice = 'blobs'",
    f"BaseDataset.input_res = {RES}",
    "BaseDataset.num_valid = 30",
    "BaseDataset.predict_pose = False",
)
# What a file leaves off, other encoders, and what lets so small a run learn: name -> method,
# bindings.
VARIANTS = {
    "amdim_ref": ("amdim", ("Wrapper.model_choice = 'amdim_ref'", "BaseDataset.input_res = 32",
                            "AmdimEncoder.ndf = 8", "AmdimEncoder.n_rkhs = 24",
                            "AmdimEncoder.n_depth = 1", "AmdimEncoder.use_bn = True",
                            "augment.do_augment = False")),
    "cmc": ("cmc", ("CMCModel.nce_k = 32", "augment.do_augment = False")),
    "inpainting": ("vae", ("VAEModel.inpainting = True",)),
    "swav_queue": ("swav", ("SwAVModel.queue_size = 40", "SwAVModel.queue_start = 0.1")),
}  # fmt: skip
FROM_LABELS = {"supcon"}  # labels reach the encoder, as its paper wants it
WITHOUT_SPREAD = {"rotate"}  # no feature is compared with another one, its accuracy tells


def file_of(backbone: str) -> str:
    """The gin file by which a method is tried in seconds; '' where there is none."""
    names = (f"digits/r9/{backbone}", f"syn/r9n/{backbone}")
    return next((name for name in names if name in configure.gin_files()), "")


PRETEXT = [cls for cls in (registry.get("task", name) for name in registry.names("task"))
           if issubclass(cls, PretextTask)]  # fmt: skip
BACKBONES = sorted({cls.backbone or cls.__name__ for cls in PRETEXT})
METHODS = {name: (file_of(name), ()) for name in BACKBONES if file_of(name)}
METHODS |= {name: (file_of(method), own) for name, (method, own) in VARIANTS.items()}

pytestmark = pytest.mark.usefixtures("folders", "blobs")
each = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(scope="module")
def blobs(shared_data):
    """Pictures of 4 x 4 random cells whose colour goes with their lightness."""
    path = shared_data / "syn" / "blobs" / f"data_{RES}.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.RandomState(0)
    with h5py.File(path, "w") as file:
        red = random.randint(0, 256, (ROWS, 1, 4, 4))
        cells = np.concatenate((red, 255 - red, np.full_like(red, 128)), 1).astype(np.uint8)
        file["data"] = cells.repeat(RES // 4, 2).repeat(RES // 4, 3)
        file["targets"] = (np.arange(ROWS) % 10).astype(np.int64)


def made(method: str, *params: str, device: torch.device = CPU) -> Session:
    """A small session of the method's file."""
    file, own = METHODS[method]
    data = COLOURED if file.startswith("syn/") else ()
    configure.load(Spec((file,), (*NARROW, *data, *own, *params)))
    return Session(device)


def first_batch(session: Session, split: str = "train") -> Batch:
    batch = next(session.loaders[split].batches(1))
    return session.task.prepare(batch, torch.Generator().manual_seed(0))


def judged(session: Session, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and metrics, with the same draws each time."""
    torch.manual_seed(0)
    loss, metrics = session.task.evaluate(batch, session.model(batch))
    return loss, {name: item.state for name, item in metrics.items()}


def copied(session: Session) -> dict[str, Tensor]:
    return {name: item.clone() for name, item in session.model.state_dict().items()}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def of_a_round(session: Session) -> dict[str, float]:
    """Its numbers, without those that depend on the machine."""
    found = session.round()
    return {name: found[name] for name in found.keys() - {"images_per_s", "round_s"}}


# ---- files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", BACKBONES)
def test_it_has_a_file_by_which_it_can_be_tested(method):
    assert file_of(method), (
        f"write config/gin/digits/r9/{method}.gin as docs/how-to/add-a-method.md shows it, or "
        f"config/gin/syn/r9n/{method}.gin where grey digits will not do"
    )


def test_no_backbone_is_left_out():
    tested = {"resnet", *BACKBONES}
    for _, own in VARIANTS.values():
        configure.load(Spec((), own))
        tested.add(configure.value("Wrapper", "model_choice"))
    assert tested >= {*registry.names("backbone")}, "add a line to VARIANTS"


# ---- each method ----------------------------------------------------------------------------


@each
def test_its_loss_falls(method):
    """From where queues and centres hold what a network makes that has not learnt."""
    session = made(
        method, "session.train_iters = 12", "session.valid_iters = 0",
        "scheduler.milestones = [1, 2, 3]", "scheduler.target_lrs = [0, 0, 0.003, 0.003]",
    )  # fmt: skip
    batch = first_batch(session)

    def loss() -> float:
        session.model.train()
        with torch.no_grad():
            total, count = judged(session, batch)[1]["pretext_loss"]
            return float(total / count)

    session.round()
    before = loss()
    session.round()
    session.round()
    assert loss() < before - 0.02 * abs(before)


@each
def test_its_gradient_reaches_the_whole_encoder_from_neither_probes_nor_labels(method):
    session = made(method)
    session.round()  # the last layers of some begin at zero
    session.model.train()
    encoder = session.model.backbone.encoder

    def gradients(batch: Batch, probes: bool = True) -> dict[str, Tensor]:
        session.model.zero_grad()
        torch.manual_seed(0)
        out = session.model(batch)
        task = session.task
        loss = task.evaluate(batch, out)[0] if probes else task.pretext(batch, out)["loss"]
        loss.backward()
        missing = [name for name, item in encoder.named_parameters()
                   if item.grad is None or not item.grad.any()]  # fmt: skip
        assert missing == []
        return {name: item.grad.clone() for name, item in encoder.named_parameters()}

    batch = first_batch(session)
    alone, beside = gradients(batch, probes=False), gradients(batch)
    assert differing(alone, beside) == []
    targets = batch.targets | {"class": batch.targets["class"].roll(1)}
    relabelled = gradients(dataclasses.replace(batch, targets=targets))
    assert (differing(alone, relabelled) == []) == (method not in FROM_LABELS)


@each
def test_it_continues_bit_for_bit_and_evaluations_leave_no_trace(method, tmp_path):
    whole = made(method)
    numbers = whole.round()
    found = {name for name in numbers if name.startswith(("train_", "valid_"))}
    assert found <= {*made(method, device=META).rehearse()}
    assert {"train_pretext_loss", "valid_pretext_loss", "valid_fc_class_accuracy"} <= found
    assert all(math.isfinite(numbers[name]) for name in found)
    snapshot.save(tmp_path / "half", whole.state_dict(), "", {})
    before = copied(whole)
    whole.model.eval()
    batch = first_batch(whole, "valid")
    with torch.inference_mode():
        once, again = judged(whole, batch)[1], judged(whole, batch)[1]
    assert differing(once, again) == [] and differing(before, copied(whole)) == []
    results = of_a_round(whole)
    resumed = made(method)
    resumed.load_state_dict(snapshot.Snapshot.open(tmp_path / "half").state())
    assert of_a_round(resumed) == results
    assert differing(copied(whole), copied(resumed)) == []


@pytest.mark.parametrize("method", [name for name in METHODS if name not in WITHOUT_SPREAD])
def test_constant_features_are_told_from_others(method):
    session = made(method)
    session.round()
    session.model.eval()
    batch = first_batch(session, "valid")
    alike = tuple(batch.views[0][:1].expand_as(view) for view in batch.views)
    with torch.no_grad():
        alive = judged(session, batch)[1]
        dead = judged(session, dataclasses.replace(batch, views=alike))[1]
    flat, wide = (total / count for total, count in
                  (dead["pretext_spread"], alive["pretext_spread"]))  # fmt: skip
    assert flat < 1e-3 < 5e-3 < wide


@each
def test_without_its_own_part_only_the_encoder_is_left(method):
    whole = made(method)
    alone = made(method, "Wrapper.run_selfsup = False", "session.task = 'ClassifyTask'",
                 "Wrapper.finetune_classifier = True")  # fmt: skip
    bare = alone.model.backbone.eval()
    assert {name.partition(".")[0] for name in bare.state_dict()} == {"encoder"}
    bare.encoder.load_state_dict(whole.model.backbone.encoder.state_dict())
    images = first_batch(whole).views[0]
    with torch.no_grad():
        expected, found = (net.encode(images) for net in (whole.model.backbone.eval(), bare))
    assert torch.equal(expected.pooled, found.pooled)
    assert found.pooled.shape == (len(images), bare.out_feats)
    assert found.dense.shape[1] == bare.dense_feats
    assert alone.round()["train_loss"] > 0


@each
def test_its_task_needs_its_own_part(method):
    with pytest.raises(UserError, match="needs Wrapper.run_selfsup = True"):
        made(method, "Wrapper.run_selfsup = False", device=META).rehearse()


@each
def test_a_second_view_is_asked_for_where_it_is_needed(method):
    needed = made(method, device=META).loaders["train"].views > 1
    alone = made(method, "BaseDataset.double_sample = False", device=META)
    asks = pytest.raises(UserError, match="set BaseDataset.double_sample = True")
    with asks if needed else contextlib.nullcontext():
        alone.rehearse()


@each
def test_it_runs_beside_dense_probes_and_without_labels(method):
    session = made(method)
    batch = first_batch(session)
    plane = (len(batch.idxs), *batch.views[0].shape[2:])
    dense = {"segment": torch.randint(3, plane), "depth": torch.rand(plane)}
    kinds = {"segment": 3, "depth": 0}
    if method in FROM_LABELS:
        dense, kinds = dense | batch.targets, kinds | session.info.targets
    for targets, classes in ((dense, kinds), *([] if method in FROM_LABELS else [({}, {})])):
        info = dataclasses.replace(session.info, targets=classes)
        model, task = Wrapper(info, dense_pred=True), type(session.task)(info)
        given = task.prepare(dataclasses.replace(batch, targets=targets), None)
        loss, metrics = task.evaluate(given, model(given))
        assert torch.isfinite(loss)
        assert {"fc_segment_accuracy", "mlp_depth_rmse"} <= metrics.keys() or not targets
