"""The contrastive family's presets: published figures, what each parameter binds, training."""

import shlex

import pytest
import torch

import main
import paths
from selfstudy import configure, presets, registry
from selfstudy.configure import Spec
from selfstudy.experiment import rehearsal
from selfstudy.experiment.plan import Plan
from selfstudy.presets import BYOL, EqCo, MoCoV2, SimCLR, VICReg, VICRegCIFAR10
from util.errors import UserError

registry.discover()
NARROW = {"ResNet.width": 0.125, "session.train_iters": 2, "session.valid_iters": 1}
TINY = {"dataset_name": "digits", "batch_size": 16, "gin": NARROW}


def used(spec: Spec) -> dict:
    """What a run would build: name -> value."""
    configure.load(spec)
    parts = configure.would_build("trial")
    return {
        f"{part}.{key}": item for part, items in parts.items() for key, item in items.items()
    }


def error(make, **params) -> str:
    with pytest.raises(UserError) as raised:
        make(**params)
    return raised.value.text


# ---- recipes --------------------------------------------------------------------------------

FILES = {
    MoCoV2: "stl10/r18/moco",
    EqCo: "stl10/r18/eqco",
    BYOL: "stl10/r18/byol",
    SimCLR: "stl10/r18/simclr",
    VICReg: "stl10/r18/vicreg",
    VICRegCIFAR10: "cifar/r18/vicreg",
}


@pytest.mark.parametrize("preset", FILES)
def test_a_preset_is_its_file(preset):
    assert used(preset().spec) == used(Spec((FILES[preset],)))


def test_the_imagenet_recipe_in_the_words_of_the_family():
    published = MoCoV2(
        dataset_name="imagenet", encoder_arch="resnet50", shuffle_batch_norm=True,
        mlp_hidden_dim=2048, lr=0.03, max_epochs=200, gin={"trial.processes": 8},
    )  # fmt: skip
    found, file = used(published.spec), used(Spec(("imagenet/r50/moco",)))
    assert file.pop("predictor.hidden") != found.pop("predictor.hidden")  # of no layers
    assert found == file


def test_a_round_is_an_epoch_of_fashion_too():
    found = used(MoCoV2(dataset_name="fashion").spec)
    assert found["BaseDataset.max_images"] // 2 >= 55_000  # of training


# ---- parameters -----------------------------------------------------------------------------

MOVED = {
    "encoder_arch": ("ws_resnet50", {"init_resnet.choice": "ws_resnet50"}),
    "shuffle_batch_norm": (True, {"MomentumEncoder.shuffle_batch_norm": True,
                                  "session.batch_norm": "local"}),
    "batch_size": (64, {"train/dataloader.batch_size": 64}),
    "K": (4096, {"MoCoModel.queue_size": 4096}),
    "dim": (64, {"projector.out": 64}),
    "m": (0.9, {"MomentumEncoder.momentum": 0.9}),
    "T": (0.1, {"MoCoTask.temperature": 0.1}),
    "lr": (0.1, {"optimizer.lr": 0.1}),
    "momentum": (0.5, {"optimizer.momentum": 0.5}),
    "weight_decay": (0.0, {"optimizer.weight_decay": 0.0}),
    "max_epochs": (10, {"scheduler.milestones": [10],
                        "scheduler.arguments": {"T_max": 10, "eta_min": 0}}),
    "final_lr_schedule_value": (0.1, {"scheduler.arguments": {"T_max": 320, "eta_min": 0.1}}),
    "exclude_matching_parameters_from_lars": (["bias"], {"optimizer.exclude": ["bias"]}),
    "transform_s": (1, {"augment.photo_jitter": [0.8, 0.8, 0.8, 0.2]}),
    "transform_apply_blur": (False, {"augment.blur": False}),
    "use_momentum_schedule": (True, {"MomentumEncoder.momentum_schedule": True}),
    "projection_mlp_layers": (1, {"projector.layers": 1}),
    "prediction_mlp_layers": (2, {"predictor.layers": 2}),
    "mlp_hidden_dim": (64, {"projector.hidden": 64, "predictor.hidden": 64}),
    "mlp_normalization": ("br", {"projector.norm": "br"}),
    "prediction_mlp_normalization": ("ln", {"predictor.norm": "ln"}),
    "use_mlp_weight_standardization": (
        True, {"projector.weight_standardisation": True,
               "predictor.weight_standardisation": True}),
    "use_negative_examples_from_queue": (False, {"MoCoModel.queue_size": 0}),
    "use_negative_examples_from_batch": (True, {"MoCoTask.in_batch": True}),
    "use_both_augmentations_as_queries": (True, {"MomentumEncoder.both_as_queries": True}),
    "use_unit_sphere_projection": (False, {"Siamese.unit_sphere": False}),
    "loss_type": ("bce", {"MoCoTask.loss": "bce"}),
    "loss_constant_factor": (2, {"MoCoTask.factor": 2}),
    "optimizer_name": ("lars", {"optimizer.optim_fn": "LARS", "optimizer.exclude": [],
                                "optimizer.arguments": {"eta": 1e-3, "warmup_steps": 1}}),
}  # fmt: skip
OF_OTHERS = {
    "eqco_alpha": (EqCo, 1000, {"EqCoTask.alpha": 1000}),
    "lars_eta": (BYOL, 0.02, {"optimizer.arguments": {"eta": 0.02, "warmup_steps": 1}}),
    "lars_warmup_epochs": (BYOL, 5, {"optimizer.arguments": {"eta": 1e-3, "warmup_steps": 5}}),
    "invariance_loss_weight": (VICReg, 10, {"VICRegTask.invariance": 10}),
    "variance_loss_weight": (VICReg, 10, {"VICRegTask.variance": 10}),
    "covariance_loss_weight": (VICReg, 10, {"VICRegTask.covariance": 10}),
    "variance_loss_epsilon": (VICReg, 1e-3, {"VICRegTask.eps": 1e-3}),
}
CASES = [(MoCoV2, name, *row) for name, row in MOVED.items()]
CASES += [(preset, name, *row) for name, (preset, *row) in OF_OTHERS.items()]


@pytest.fixture(scope="module")
def defaults() -> dict:
    return {preset: used(preset().spec) for preset in FILES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[1])
def test_a_parameter_changes_what_it_says_and_nothing_else(case, defaults):
    preset, name, value, expected = case
    found = used(preset(**{name: value}).spec)
    scoped = {f"{split}/dataloader.batch_size" for split in ("train", "valid", "test")}
    changed = {key for key in found if found[key] != defaults[preset].get(key)}
    assert changed - scoped == expected.keys() - scoped
    assert {key: found[key] for key in expected} == expected


def test_every_parameter_is_tried():
    switches = {"use_lagging_model", "use_eqco_margin", "optimizer_name"}
    assert {name for _, name, *_ in CASES} | switches == (
        presets.PARAMETERS.keys() | presets.SWITCHES.keys() | {"optimizer_name"}
    )


def test_gin_names_win():
    preset = MoCoV2(K=4096, gin={"MoCoModel.queue_size": 512, "augment.blur": False})
    found = used(preset.spec)
    assert found["MoCoModel.queue_size"] == 512 and not found["augment.blur"]


def test_any_torchvision_network_is_an_encoder():
    found = used(MoCoV2(encoder_arch="densenet121").spec)
    assert found["init_resnet.choice"] == "torchvision/densenet121"


# ---- the method that switches make up -------------------------------------------------------

NO_QUEUE = {"use_negative_examples_from_queue": False}


def test_eqco_is_moco_with_the_margin(defaults):
    found = used(MoCoV2(use_eqco_margin=True, K=256).spec)
    same = {
        "MomentumEncoder.both_as_queries": False,
        "Siamese.unit_sphere": True,
    }  # None is these
    assert found == defaults[EqCo] | same


def test_simclr_is_moco_without_a_lagging_model(defaults):
    found = used(
        MoCoV2(
            use_lagging_model=False, use_negative_examples_from_batch=True,
            use_both_augmentations_as_queries=True, **NO_QUEUE,
        ).spec
    )  # fmt: skip
    assert found == defaults[SimCLR] | {"Siamese.unit_sphere": True}


def test_vicreg_is_moco_without_a_lagging_model_with_its_settings(defaults):
    found = used(
        MoCoV2(
            use_lagging_model=False, loss_type="vic", use_unit_sphere_projection=False,
            optimizer_name="lars", exclude_matching_parameters_from_lars=[".bias", ".bn"],
            projection_mlp_layers=3, final_lr_schedule_value=0.002, mlp_normalization="bn",
            lars_warmup_epochs=10, **NO_QUEUE,
        ).spec
    )  # fmt: skip
    expected = defaults[VICReg] | {"Siamese.unit_sphere": False}
    assert found == expected


def test_byol_is_moco_with_its_settings(defaults):
    found = used(
        MoCoV2(
            prediction_mlp_layers=2, mlp_normalization="bn", loss_type="ip",
            use_both_augmentations_as_queries=True, use_momentum_schedule=True,
            optimizer_name="lars", exclude_matching_parameters_from_lars=[".bias", ".bn"],
            loss_constant_factor=2, **NO_QUEUE,
        ).spec
    )  # fmt: skip
    # The recipe's own task stays, which takes the same loss of the same pairs.
    assert found["session.task"] == "MoCoTask" and found["MoCoTask.factor"] == 2
    told = defaults[BYOL] | {"session.task": "MoCoTask", "Wrapper.model_choice": "moco",
                             "MomentumEncoder.both_as_queries": True}  # fmt: skip
    assert {key: found[key] for key in told if key in found} == {
        key: told[key] for key in told if key in found
    }


def test_a_preset_that_becomes_another_method_keeps_what_it_has():
    found = used(BYOL(loss_type="ce", use_negative_examples_from_queue=True, K=512).spec)
    assert found["session.task"] == "MoCoTask" and found["MoCoModel.queue_size"] == 512
    assert found["MomentumEncoder.both_as_queries"] and found["MoCoTask.factor"] == 2
    assert found["predictor.layers"] == 2 and found["optimizer.optim_fn"] == "LARS"


@pytest.mark.parametrize(("preset", "params"), [
    (MoCoV2, {"use_lagging_model": False}),
    (MoCoV2, {"loss_type": "vic"}),
    (MoCoV2, {"loss_type": "nce"}),
    (VICReg, {"use_lagging_model": True}),
    (VICReg, {"loss_constant_factor": 2}),
    (SimCLR, {"use_both_augmentations_as_queries": False}),
], ids=str)  # fmt: skip
def test_what_no_method_is_like_is_refused(preset, params):
    text = error(preset, **params)
    ((name, value),) = params.items()
    assert text.startswith(f"{preset.__name__}({name}={value!r}): no method is like that")
    assert "\n" not in text


# ---- mistakes -------------------------------------------------------------------------------


def test_mistakes_are_told_in_one_line():
    assert "no parameter 'batchsize' - did you mean 'batch_size'?" in error(MoCoV2, batchsize=1)
    assert "did you mean 'cifar10'" in error(MoCoV2, dataset_name="cifar")
    assert "optimizer_name = 'adam' (known: lars, sgd)" in error(MoCoV2, optimizer_name="adam")
    assert "'MoCoModel.queue_size' takes int" in error(MoCoV2, K="many")
    assert "transform_s = '1': expected a number" in error(MoCoV2, transform_s="1")
    assert "did you mean 'blur'" in error(MoCoV2, gin={"augment.blurr": False})


@pytest.mark.parametrize("name", presets.NEEDLESS)
def test_what_means_nothing_here_is_told(name):
    assert error(MoCoV2, **{name: 1}) == (
        f"MoCoV2({name}=...): leave it out, {presets.NEEDLESS[name]}"
    )


@pytest.mark.parametrize(("preset", "name"), [
    (SimCLR, "K"), (SimCLR, "m"), (BYOL, "T"), (MoCoV2, "lars_eta"), (MoCoV2, "eqco_alpha"),
    (MoCoV2, "invariance_loss_weight"), (VICReg, "use_momentum_schedule"),
])  # fmt: skip
def test_what_a_method_has_no_use_for_is_told(preset, name):
    assert "leave it out" in error(preset, **{name: 1})


# ---- training -------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", FILES)
def test_each_preset_rehearses_on_digits(preset, folders):
    found = rehearsal.check(preset(**TINY, max_epochs=3).spec, {})
    assert found.rounds == 3 and "train_loss" in found.metrics and found.bytes > 0


@pytest.fixture(scope="module")
def small() -> MoCoV2:
    return MoCoV2(**TINY, K=64, mlp_hidden_dim=16, dim=16, max_epochs=2)


def test_a_run_leaves_what_a_command_leaves_and_is_not_repeated(small, folders):
    last = small.fit("notebook", ["resources_per_trial.cpu=1"], quiet=True)
    assert last["round"] == 2 and last["done"]
    plan = Plan.stored("notebook")
    assert plan.spec == small.spec and plan.command == small.command("notebook")
    (row,) = plan.rows
    assert plan.statuses() == {row.name: "done"} and len(plan.results(row)) == 2
    assert (plan.folder / row.name / f"{paths.CHECKPOINT}000002" / paths.CARD).exists()
    assert small.fit("notebook", quiet=True) == last
    other = MoCoV2(**TINY, K=32)
    with pytest.raises(UserError) as raised:
        other.fit("notebook")
    assert "exists with other bindings" in raised.value.text and raised.value.code == 4


def test_a_failure_is_told_and_the_next_call_goes_on(small, folders, monkeypatch):
    def fail(*_):
        raise RuntimeError("so it is")

    with monkeypatch.context() as patch:
        patch.setattr("selfstudy.train.session.Session.round", fail)
        with pytest.raises(UserError, match="broken has failed: RuntimeError: so it is"):
            small.fit("broken", ["resources_per_trial.cpu=1"], quiet=True)
    assert small.fit("broken", quiet=True)["done"]


def test_a_session_trains(small, folders):
    session = small.session("cpu")
    before = [item.clone() for item in session.model.backbone.encoder.parameters()]
    assert session.round()["train_loss"] > 0 and session.steps == 2
    after = session.model.backbone.encoder.parameters()
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_command_plans_the_same(small, folders, call):
    words = shlex.split(small.command("typed"))
    assert words[:2] == ["python", "main.py"]
    args = main.parser().parse_args(words[2:])
    assert Spec(tuple(args.gin_config), tuple(args.gin_param)) == small.spec
    code, out, _ = call(main.main, *words[2:], "--dry-run")
    assert not code and "1 trials" in out
