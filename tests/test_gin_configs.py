"""The files under config/gin run, and every published name binds."""

import importlib
import math
import shlex
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import paths
from selfstudy import configure, registry
from selfstudy.configure import Spec
from selfstudy.data.augment import augment
from selfstudy.experiment import rehearsal
from selfstudy.train.session import Session
from selfstudy.types import DataInfo

registry.discover()

RES, ROWS = 16, 48


def load(*params: str, names: tuple[str, ...] = ()) -> dict:
    configure.load(Spec(names, params))
    return configure.current_bindings()


# ---- files ----------------------------------------------------------------------------------

# In the place of the file's data: 48 small random images with every kind of target.
SMALL = (
    "session.dataset = 'SynDataset'",
    "SynDataset.dataset_choice = 'tiny'",
    f"BaseDataset.input_res = {RES}",
    "BaseDataset.num_valid = 4",
    "BaseDataset.semisupervised = None",
    "dataloader.batch_size = 4",
    "valid/dataloader.batch_size = 4",
    "session.train_iters = 1",
    "session.valid_iters = 1",
    "ResNet.width = 0.1",
    f"CMCModel.dataset_size = {ROWS}",
)


# The published dense files read scenes of several objects, which have these targets anyway.
DENSE = ("SynDataset.dense = ['segment', 'depth']",)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A data set of random images with every kind of target."""
    monkeypatch.setattr(paths, "DATA_DIR", tmp_path)
    path = tmp_path / "syn" / "tiny" / f"data_{RES}.h5"
    path.parent.mkdir(parents=True)
    random = np.random.RandomState(0)
    with h5py.File(path, "w") as file:
        file["data"] = random.randint(0, 256, (ROWS, 3, RES, RES), np.uint8)
        file["targets"] = (np.arange(ROWS) % 10).astype(np.int64)
        file["rot_mat"] = np.linalg.qr(random.randn(ROWS, 3, 3))[0].astype(np.float32)
        file["segment"] = random.randint(0, 11, (ROWS, RES, RES), np.uint8)
        file["depth"] = random.uniform(0.5, 1.5, (ROWS, RES, RES)).astype(np.float16)
        file["normals"] = random.randint(-127, 128, (ROWS, 3, RES, RES), np.int8)


def plain(value: Any) -> Any:
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


# Those under render/ configure misc/render.py.
RUNS = [name for name in configure.gin_files() if not name.startswith("render/")]
SESSIONS = [name for name in RUNS if not name.startswith(("simulation/", "eval/"))]
REQUIRED = {"eval/frozen": ("evaluate.snapshot = 'exp/name'",)}  # what users must say


@pytest.mark.parametrize("name", SESSIONS)
def test_each_file_builds_a_session_that_learns(name, tiny):
    load(*SMALL, *(DENSE if name.startswith("dense/") else ()), names=(name,))
    parts = configure.would_build("session")
    session = Session(torch.device("cpu"))
    session.rounds_done = 1  # at round 0 the rate is 0
    before = {key: item.clone() for key, item in session.model.state_dict().items()}
    result = session.round()
    assert math.isfinite(result["train_loss"]) and 0 <= result["train_accuracy"] <= 1
    assert result["learning_rate"] > 0 and session.steps == 1
    after = session.model.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert any(key.startswith("backbone.encoder.") for key in moved)
    # What --print-config shows is what the session has used.
    shown = {
        f"{part}.{key}": item for part, items in parts.items() for key, item in items.items()
    }
    used = configure.operative()
    assert used.keys() <= shown.keys()
    assert {key: plain(shown[key]) for key in used} == {k: plain(v) for k, v in used.items()}


@pytest.mark.parametrize("name", RUNS)
def test_each_file_passes_the_check_that_needs_no_data(name, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA_DIR", tmp_path / "absent")
    found = rehearsal.check(Spec((name,), REQUIRED.get(name, ())), {}, build=False)
    assert found.rounds > 0 and found.metrics == ()
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("name", configure.gin_files())
def test_each_file_opens_with_its_promise_and_its_command(name):
    lines = (paths.GIN_DIR / f"{name}.gin").read_text().splitlines()
    head = [line for line in lines[: lines.index(next(
        line for line in lines if not line.startswith("#")))]]  # fmt: skip
    script = "main.py" if name in RUNS else "misc/render.py"
    commands = [line for line in head if line.startswith(f"# python {script} ")]
    assert len(head) >= 2 and len(commands) == 1, "what it is, and how to run it"
    words = shlex.split(commands[0])
    assert name in words[words.index("-g") + 1 :]


@pytest.mark.parametrize(
    "path", sorted(paths.GIN_DIR.rglob("*.gin")), ids=lambda path: path.stem
)
def test_each_fragment_parses_alone(path):
    importlib.import_module("selfstudy.render.world")  # which no session needs
    load(names=(str(path.relative_to(paths.GIN_DIR)),))
    assert configure.current_bindings()


# ---- recipes of the contrastive family ------------------------------------------------------

COMMON = {
    "init_resnet.choice": "resnet18",
    "ResNet.out_feats": None,
    "ResNet.skip_init_pool": False,
    "train/dataloader.batch_size": 256,
    "optimizer.lr": 0.5,
    "optimizer.momentum": 0.9,
    "optimizer.weight_decay": 1e-4,
    "scheduler.scheduler_fn": "CosineAnnealingLR",
    "scheduler.milestones": [320],
    "scheduler.arguments": {"T_max": 320, "eta_min": 0},
    "projector.layers": 2,
    "projector.hidden": 512,
    "projector.out": 128,
    "projector.norm": None,
    "predictor.layers": 0,
    "augment.resized_crop": True,
    "augment.photo_jitter": [0.4, 0.4, 0.4, 0.1],
    "augment.grayscale": 0.2,
    "augment.flip": True,
    "augment.blur": True,
}
STL10 = {
    "session.dataset": "STL10Dataset",
    "STL10Dataset.part": "all",
    "BaseDataset.input_res": 96,
    "BaseDataset.double_sample": True,
    "ResNet.small_stem": False,
}
MOCO = {
    "session.task": "MoCoTask",
    "MoCoModel.queue_size": 65536,
    "MoCoTask.temperature": 0.2,
    "MoCoTask.loss": "ce",
    "MoCoTask.in_batch": False,
    "MomentumEncoder.momentum": 0.996,
    "MomentumEncoder.momentum_schedule": False,
    "MomentumEncoder.both_as_queries": None,
    "optimizer.optim_fn": "SGD",
}
LARS = {"optimizer.optim_fn": "LARS", "optimizer.exclude": [".bias", ".bn"]}
VIC = {
    **LARS,
    "session.task": "VICRegTask",
    "VICRegTask.invariance": 25,
    "VICRegTask.variance": 25,
    "VICRegTask.covariance": 1,
    "VICRegTask.eps": 1e-4,
    "VICRegTask.halve_variance": False,
    "Siamese.unit_sphere": None,
    "projector.layers": 3,
    "projector.norm": "bn",
}
RECIPES = {
    "stl10/r18/moco": {**COMMON, **STL10, **MOCO},
    "stl10/r18/eqco": {
        **COMMON, **STL10, **MOCO, "session.task": "EqCoTask", "EqCoTask.alpha": 65536,
        "MoCoModel.queue_size": 256,
    },
    "stl10/r18/byol": {
        **COMMON, **STL10, **LARS, "session.task": "BYOLTask",
        "MomentumEncoder.momentum": 0.996,
        "MomentumEncoder.momentum_schedule": True, "MomentumEncoder.both_as_queries": None,
        "projector.norm": "bn", "predictor.layers": 2, "predictor.hidden": 512,
        "predictor.norm": "same",
        "optimizer.arguments": {"eta": 1e-3, "warmup_steps": 1},
    },
    "stl10/r18/simclr": {
        **COMMON, **STL10, "session.task": "SimCLRTask", "SimCLRTask.temperature": 0.2,
        "SimCLRTask.same_view_negatives": False, "SimCLRTask.factor": 2,
        "optimizer.optim_fn": "SGD",
    },
    "stl10/r18/vicreg": {
        **COMMON, **STL10, **VIC,
        "scheduler.arguments": {"T_max": 320, "eta_min": 0.002},
        "optimizer.arguments": {"eta": 1e-3, "warmup_steps": 10},
    },
    "cifar/r18/vicreg": {
        **COMMON, **VIC, "session.dataset": "CIFARDataset", "CIFARDataset.use_100": False,
        "CIFARDataset.to_lab": False, "BaseDataset.input_res": 32,
        "BaseDataset.double_sample": True, "ResNet.small_stem": True,
        "ResNet.stem_padding": 2, "augment.blur": False, "projector.hidden": 2048,
        "projector.out": 2048, "optimizer.lr": 0.3,
        "optimizer.arguments": {"eta": 0.02, "warmup_steps": 10},
    },
    "imagenet/r50/moco": {
        **COMMON, **MOCO, "session.dataset": "ImageNetDataset", "BaseDataset.input_res": 224,
        "init_resnet.choice": "resnet50", "projector.hidden": 2048, "optimizer.lr": 0.03,
        "scheduler.milestones": [8000], "scheduler.arguments": {"T_max": 8000, "eta_min": 0},
        "trial.processes": 8, "session.batch_norm": "local",
        "MomentumEncoder.shuffle_batch_norm": True,
    },
}  # fmt: skip


def built(*names: str) -> dict:
    """What a trial would build: name -> value."""
    configure.load(Spec(names))
    parts = configure.would_build("trial")
    return {f"{part}.{key}": item for part, items in parts.items()
            for key, item in items.items()}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_have_the_published_figures(name):
    found = built(name)
    assert {key: found[key] for key in RECIPES[name]} == RECIPES[name]


@pytest.mark.parametrize(("name", "rows", "rounds"), [
    ("stl10/r18/moco", 104_500, 1),
    ("cifar/r18/vicreg", 45_000, 1),
    ("imagenet/r50/moco", 1_281_167 - 5_000, 40),
])  # fmt: skip
def test_an_epoch_of_a_recipe_has_so_many_rounds(name, rows, rounds):
    most = built(name)["BaseDataset.max_images"] // 2
    assert -(-rows // most) == rounds


def test_moco_v1_is_a_method_and_a_change_of_v2():
    v1 = {"projector.layers": 1, "MoCoTask.temperature": 0.07,
          "MomentumEncoder.momentum": 0.999,
          "augment.blur": False, "augment.photo_jitter": [0.4] * 4}  # fmt: skip
    assert built("stl10/r18/moco", "base/moco_v1") == built("stl10/r18/moco") | v1
    alone = load(names=("base/moco_v1",))
    assert {key: alone[key] for key in v1} == v1 and alone["session.task"] == "MoCoTask"


def test_the_wide_network_is_a_change_of_any_method():
    wide = {"ResNet.width": 3, "projector.out": 384}
    for name in ("stl10/r18/moco", "digits/r9/byol"):
        assert built(name, "base/wide3") == built(name) | wide


# View -> what it changes the pictures by, beside making two of each.
SPACE, APPEARANCE = {"resized_crop", "flip"}, {"photo_jitter", "grayscale", "blur"}
INFO = DataInfo(3, 16, "rgb", "uint8", (127.0,) * 3, (64.0,) * 3)
VIEWS = {"default": SPACE | APPEARANCE, "ventral": SPACE, "dorsal": APPEARANCE}


@pytest.mark.parametrize("method", ["stl10/r18/moco", "fashion/r9/simclr", "cifar/r9/amdim"])
@pytest.mark.parametrize("views", VIEWS)
def test_the_views_of_the_invariance_study_go_with_any_method(method, views):
    configure.load(Spec((method, f"base/views_{views}")))
    made = augment(INFO, True)
    assert made.transforms.keys() == VIEWS[views] and not made.share_flip
    assert configure.value("BaseDataset", "double_sample")
    if jitter := made.transforms.get("photo_jitter"):
        blur = made.transforms["blur"]
        assert jitter.strengths == (0.4, 0.4, 0.4, 0.1) and jitter.probability == 0.8
        assert made.transforms["grayscale"].probability == 0.2
        assert blur.probability == 0.5 and blur.sigmas == (0.1, 2.0)
    if crop := made.transforms.get("resized_crop"):
        assert crop.scale == (0.2, 1.0)


def test_dorsal_pictures_are_whole():
    """Only the appearance changes: black and white halves stay where they are."""
    configure.load(Spec(("digits/r9/simclr", "base/views_dorsal"), ("augment.blur = False",)))
    images = torch.zeros(64, 3, 16, 16, dtype=torch.uint8)
    images[..., 8:] = 255
    views, _ = augment(INFO, True)(images, {}, torch.Generator().manual_seed(0), 2)
    for view in views:
        assert torch.equal(view[..., :8], view[..., :1, :1].expand(-1, -1, 16, 8))
        assert torch.equal(view[..., 8:], view[..., :1, 8:9].expand(-1, -1, 16, 8))


# ---- published names ------------------------------------------------------------------------

# "Every bound name of the published configurations, with the values that occur."
PUBLISHED: dict[str, tuple] = {
    "session.task": ("ClassifyTask", "RotateTask", "VAETask", "CMCTask", "AMDIMTask",
                     "DepthTask"),
    "session.dataset": ("CIFARDataset", "SynDataset"),
    "session.model": ("Wrapper",),
    "session.restore_session": (None,),
    "session.train_iters": (-1,),
    "session.valid_iters": (-1, 0),
    "session.test_iters": (0, -1),
    "BaseDataset.input_res": (32, 64, 128),
    "BaseDataset.max_images": (10000, 50000, 100000),
    "BaseDataset.semisupervised": (None, 100, 250, 1000, 4000, 20000, 50000, 100000, 200000),
    "BaseDataset.double_sample": (False, True),
    "BaseDataset.predict_pose": (False, True),
    "BaseDataset.remote_loading": (False, True),
    "BaseDataset.num_valid": (5000,),
    "BaseDataset.chunk_size": (1000,),
    "CIFARDataset.to_lab": (True, False),
    "CIFARDataset.use_100": (False, True),
    "SynDataset.dataset_choice": ("TCVL", "TCVL-multi", "lg_3222", "xlg0010"),
    "SynDataset.use_lab": (True, False),
    "augment.color_jitter": (True, False),
    "augment.grayscale": (True, False),
    "augment.flip": (True, False),
    "augment.crop": (True, False),
    "augment.cutout": (True, False),
    "augment.transform_targets": (False, True),
    "augment.do_augment": (None, True, False),
    "optimizer.optim_fn": ("Adam", "SGD"),
    "optimizer.weight_decay": (1e-4, 1e-5),
    "optimizer.betas": ([0.8, 0.999],),
    "optimizer.eps": (1e-8,),
    "optimizer.lr": (1,),
    "scheduler.target_lrs": ([0, 0.01, 1e-6], [0, 0.0005, 1e-5], 0.001),
    "scheduler.milestones": ([5, 25], [5, 1600]),
    "scheduler.exp_factor": (0, -0.5, 2),
    "scheduler.scheduler_fn": ("LambdaLR", "ReduceLROnPlateau"),
    "scheduler.metric": ("valid_loss",),
    "dataloader.batch_size": (32, 64, 96, 192, 256, 384, 512),
    "dataloader.num_workers": (0,),
    "dataloader.shuffle": (True, False),
    "train/dataloader.batch_size": (512,),
    "valid/dataloader.batch_size": (512,),
    "valid/dataloader.shuffle": (False,),
    "test/dataloader.num_workers": (0,),
    "Wrapper.model_choice": ("resnet", "rotate", "vae", "cmc", "amdim", "amdim_ref"),
    "Wrapper.out_classes": ([10, 5], [11, 1]),
    "Wrapper.pretrained": (None, "pretrained-amdim/xlg0010"),
    "Wrapper.ignore_pretrained_fc": (True, False),
    "Wrapper.finetune_classifier": (True, False),
    "Wrapper.finetune_selfsup": (True, False),
    "Wrapper.run_selfsup": (True, False),
    "Wrapper.run_classifier": (True, False),
    "Wrapper.warmup_fc": (0,),
    "Wrapper.dense_pred": (True, False),
    "init_resnet.choice": ("resnet9", "resnet18", "resnet34", "resnet50", "resnet101",
                           "resnet152", "resnext50_32x4d", "wide_resnet50_2"),
    "ResNet.feat_layer": (-1,),
    "ResNet.freeze_at_k": (None, 2),
    "ResNet.is_half": (True, False),
    "ResNet.out_feats": (128, 256, 512),
    "ResNet.prepool_fc": (True,),
    "ResNet.skip_init_pool": (True,),
    "ResNet.replace_stride_with_dilation": (None, [False, False, True]),
    "ClassifyTask.is_pose": (True, False),
    "DepthTask.use_l2": (False, True),
    "AMDIMTask.tclip": (30,),
    "CMCModel.dataset_size": (45000, 250000, 400000),
    "CMCModel.nce_k": (4096, 8192, 4086, 16384),
    "CMCModel.nce_t": (0.1,),
    "CMCModel.nce_m": (0.2, 0.4),
    "VAEModel.output_res": (32, 64),
    "VAEModel.inpainting": (False,),
    "VAEModel.do_reparameterize": (True,),
    "VAETask.lmd": (1e-5,),
}  # fmt: skip
ROWS_PUBLISHED = [(name, value) for name, values in PUBLISHED.items() for value in values]

# Those that the published description calls defaults.
DEFAULTS = {
    "session.test_iters": 0,
    "BaseDataset.num_valid": 5000,
    "BaseDataset.chunk_size": 1000,
    "CIFARDataset.to_lab": True,
    "CIFARDataset.use_100": False,
    "SynDataset.dataset_choice": "lg_3222",
    "SynDataset.use_lab": True,
    "augment.transform_targets": False,
    "augment.do_augment": None,
    "optimizer.optim_fn": "SGD",
    "optimizer.lr": 1,
    "scheduler.exp_factor": 0,
    "scheduler.scheduler_fn": "LambdaLR",
    "scheduler.metric": "valid_loss",
    "Wrapper.ignore_pretrained_fc": True,
    "Wrapper.finetune_selfsup": True,
    "Wrapper.run_classifier": True,
    "Wrapper.warmup_fc": 0,
}


@pytest.mark.parametrize(("name", "value"), ROWS_PUBLISHED, ids=str)
def test_every_published_name_binds_its_values(name, value):
    assert load(f"{name} = {value!r}") == {name: value}
    configure.load(Spec(), {name: value})  # as a search gives it
    assert configure.current_bindings() == {name: value}


def test_the_published_tuple_of_betas_binds():
    assert load("optimizer.betas = (0.8, 0.999)")["optimizer.betas"] == [0.8, 0.999]


@pytest.mark.parametrize("name", DEFAULTS)
def test_published_defaults_hold(name):
    assert configure.value(*name.split(".")) == DEFAULTS[name]


def test_the_tables_miss_no_argument_that_a_published_component_has():
    """A new argument is ours, not published: it has a default, so old files keep working."""
    for name in {name.rpartition("/")[2].partition(".")[0] for name in PUBLISHED}:
        for argument, (_, default) in configure.parameters(name).items():
            published = f"{name}.{argument}" in PUBLISHED
            required = default is configure.gin.REQUIRED
            assert published or not required, f"{name}.{argument}"
