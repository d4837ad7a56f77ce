"""The contrastive family's presets from Python, with its parameters as keywords.

`run = MoCoV2(dataset_name="digits", K=1024, max_epochs=10)`, then `run.fit("moco")`. Figures
stand in `config/gin/base/recipes`; here is what each parameter binds. Names and defaults are
those of untitled-ai/self_supervised.
"""

import shlex
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from selfstudy import configure, devices, registry, values
from selfstudy.configure import Spec
from selfstudy.experiment import local, preflight, rayconfig
from selfstudy.experiment import plan as plans
from selfstudy.experiment.interrupts import Interrupts
from selfstudy.experiment.plan import Plan
from selfstudy.experiment.rayconfig import RayArgs
from selfstudy.experiment.resources import fit_resources
from selfstudy.train.session import Session
from util.environment import cpus
from util.errors import UserError, nearest
from util.forecast import TrialProgress
from util.progress import ProgressTable

# Parameter -> what it binds; of several names those that the run has, at least one. Names
# without a dot are macros of the recipes.
PARAMETERS = {
    "encoder_arch": "init_resnet.choice",
    "shuffle_batch_norm": "MomentumEncoder.shuffle_batch_norm",
    "batch_size": "dataloader.batch_size",
    "K": "MoCoModel.queue_size",
    "dim": "projector.out",
    "m": "MomentumEncoder.momentum",
    "T": "MoCoTask.temperature SimCLRTask.temperature",
    "eqco_alpha": "EqCoTask.alpha",
    "lr": "optimizer.lr",
    "momentum": "optimizer.momentum",
    "weight_decay": "optimizer.weight_decay",
    "max_epochs": "rounds",
    "final_lr_schedule_value": "final_lr",
    "lars_warmup_epochs": "warmup_steps",
    "lars_eta": "eta",
    "exclude_matching_parameters_from_lars": "optimizer.exclude",
    "transform_s": "augment.photo_jitter",
    "transform_apply_blur": "augment.blur",
    "use_momentum_schedule": "MomentumEncoder.momentum_schedule",
    "invariance_loss_weight": "VICRegTask.invariance",
    "variance_loss_weight": "VICRegTask.variance",
    "covariance_loss_weight": "VICRegTask.covariance",
    "variance_loss_epsilon": "VICRegTask.eps",
    "projection_mlp_layers": "projector.layers",
    "prediction_mlp_layers": "predictor.layers",
    "mlp_hidden_dim": "projector.hidden predictor.hidden",
    "mlp_normalization": "projector.norm",
    "prediction_mlp_normalization": "predictor.norm",
    "use_mlp_weight_standardization":
        "projector.weight_standardisation predictor.weight_standardisation",
}  # fmt: skip
# Those that choose the method, and what they bind where it leaves them open.
SWITCHES = {
    "use_lagging_model": "",
    "use_eqco_margin": "",
    "use_negative_examples_from_queue": "MoCoModel.queue_size",  # without it 0
    "use_negative_examples_from_batch": "MoCoTask.in_batch",
    "use_both_augmentations_as_queries": "MomentumEncoder.both_as_queries",
    "use_unit_sphere_projection": "Siamese.unit_sphere",
    "loss_type": "MoCoTask.loss",
    "loss_constant_factor": "MoCoTask.factor",
}
FAMILY = dict(zip(SWITCHES, (True, False, True, False, False, True, "ce", 1), strict=True))
OPTIMIZERS = {"sgd": "base/sgd", "lars": "base/lars"}  # optimizer_name -> its file
NEEDLESS = {
    "embedding_dim": "the encoder tells it",
    "num_data_workers": "images are augmented on the device",
    "drop_last_batch": "training always leaves out an incomplete minibatch",
    "pin_data_memory": "what goes to a GPU is always pinned",
    "gather_keys_for_queue": "the keys of all processes always go into the queue",
    "use_vicreg_loss": "loss_type='vic' does it",
}
# Method -> what it binds, and the values of switches that make it up (a tuple: any of them).
_ALONE = {"use_negative_examples_from_queue": False, "use_negative_examples_from_batch": False}
_BATCH = {"use_negative_examples_from_queue": False, "use_negative_examples_from_batch": True}
_MOMENTUM = {"use_lagging_model": True, "use_eqco_margin": False}
_SIAMESE = {"use_lagging_model": False, "use_eqco_margin": False, "loss_constant_factor": 1}
_BOTH = "use_both_augmentations_as_queries"
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "moco": ({"session.task": "MoCoTask"}, {**_MOMENTUM, "loss_type": ("ce", "bce", "ip")}),
    "eqco": (
        {"session.task": "EqCoTask"}, {**_MOMENTUM, "use_eqco_margin": True, "loss_type": "ce"}
    ),
    "byol": (
        {"session.task": "BYOLTask"},
        {**_MOMENTUM, **_ALONE, _BOTH: True, "loss_type": "ip", "loss_constant_factor": 2},
    ),
    "simclr": (
        {"session.task": "SimCLRTask", "SimCLRTask.same_view_negatives": False,
         "SimCLRTask.factor": 2},
        {**_SIAMESE, **_BATCH, _BOTH: True, "loss_type": "ce"},
    ),
    "vicreg": (
        {"session.task": "VICRegTask"},
        {**_SIAMESE, **_ALONE, _BOTH: False, "loss_type": "vic"},
    ),
}  # fmt: skip
# Data set -> files before the recipe and after it. A round is an epoch, unless ROUNDS has more.
DATA = {
    "digits": (["base/digits"], ["base/digits_deep"]),
    "fashion": (["base/fashion"], ["base/fashion_deep"]),
    "stl10": (["base/stl10"], []),
    "cifar10": (["base/cifar_rgb"], []),
    "imagenet": (["base/imagenet"], []),
}
ROUNDS = {"imagenet": 40}


class Preset:
    """A recipe with some of its parameters changed.

    Args:
        dataset_name: a key of `DATA`; None is the preset's own.
        optimizer_name: 'sgd', 'lars', or None for the preset's own.
        gin: further bindings, which win, such as {"ResNet.width": 0.25}.
        params: keys of `PARAMETERS` and `SWITCHES`. `batch_size` is that of all processes
            together; `lars_warmup_epochs` counts steps, as in the original.

    Attributes:
        spec: the gin files and bindings that this comes to.

    Raises:
        UserError: an unknown parameter, one that means nothing here, a value that does not
            fit, or a combination that no method here has.
    """

    method, recipe, dataset, switches = "moco", "moco", "stl10", FAMILY

    def __init__(
        self,
        dataset_name: str | None = None,
        optimizer_name: str | None = None,
        gin: dict[str, Any] | None = None,
        **params: Any,
    ):
        registry.discover()
        dataset = dataset_name or self.dataset
        _check("dataset_name =", dataset, DATA)
        before, after = DATA[dataset]
        files = [*before, f"base/recipes/{self.recipe}", *after]
        if optimizer_name is not None:
            _check("optimizer_name =", optimizer_name, OPTIMIZERS)
            files.append(OPTIMIZERS[optimizer_name])
        for name in params:
            if name in NEEDLESS:
                raise UserError(f"{self}({name}=...): leave it out, {NEEDLESS[name]}")
            _check(f"{self}: no parameter", name, {**PARAMETERS, **SWITCHES})
        bindings, wanted = self._method(params)
        parts = _parts(_spec(files, bindings))
        for name in sorted(wanted, key=lambda name: name in SWITCHES):  # no queue outdoes a K
            bound = _bound(name, wanted[name], parts, ROUNDS.get(dataset, 1))
            if bound is None and name in params:
                raise UserError(
                    f"{self}({name}={wanted[name]!r}): leave it out, "
                    f"{parts['session']['task']} with {parts['optimizer']['optim_fn']} has no "
                    "use for it"
                )
            bindings |= bound or {}
        self.spec = _spec(files, bindings | (gin or {}))
        _parts(self.spec)  # whether all of it is known and fits

    def __str__(self) -> str:
        return type(self).__name__

    def _method(self, params: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Bindings of the method that the switches choose, and the parameters still to bind.

        Where it is another than the preset's own, whose recipe says nothing of it, these are
        all switches that it leaves open.
        """
        chosen = {name: params.get(name, value) for name, value in self.switches.items()}
        tried = (self.method, *METHODS)
        method = next((name for name in tried if _fits(name, chosen)), None)
        if not method:
            switches = ", ".join(
                f"{name}={params[name]!r}" for name in SWITCHES if name in params
            )
            raise UserError(
                f"{self}({switches}): no method is like that; without a momentum encoder there "
                "are VICReg (loss_type='vic') and SimCLR (loss_type='ce', negatives from the "
                "batch alone, both augmentations as queries)"
            )
        bindings: dict[str, Any] = {}
        if method != self.method:
            bindings = METHODS[method][0] | {"Wrapper.model_choice": method}
            params = params | chosen
        fixed = METHODS[method][1]
        left = {name: value for name, value in params.items()
                if name not in fixed or isinstance(fixed[name], tuple)}  # fmt: skip
        return bindings, left

    def command(self, exp_id: str = "") -> str:
        """The command line that does what `fit` does."""
        name = ["-e", exp_id] if exp_id else []
        params = ["-p", *self.spec.params] if self.spec.params else []
        words = ["python", "main.py", "-l", *name, "-g", *self.spec.gin, *params]
        return shlex.join(words)

    def session(self, device: torch.device | str | None = None) -> Session:
        """A `Session`, for loops of one's own; by default on the accelerator, if any."""
        configure.load(self.spec)
        return Session(devices.best() if device is None else torch.device(device))

    def fit(
        self, exp_id: str | None = None, settings: Sequence[str] = (), quiet: bool = False
    ) -> dict[str, Any]:
        """Train in this process, as `main.py -l` does, and return the last line of results.

        Called again, as when a notebook's cell is run again, it goes on from the newest
        checkpoint, or returns what is there.

        Args:
            exp_id: name of the experiment, a folder below EXP_DIR; None makes one up.
            settings: as `--set` takes them, such as ["checkpoint_freq=1"].
            quiet: without progress.

        Raises:
            UserError: it exists with other bindings, is being run, or has failed.
        """
        plan, ray_args = self._plan(exp_id or plans.fresh_id(), settings)
        checks = preflight.check(plan, ray_args, prepare=True, resumed=plan.exists())
        resources, _ = fit_resources(
            plan.exp_args["resources_per_trial"], cpus(), devices.gpus()
        )
        (row,) = plan.rows
        last = plan.last(row)
        shown = {
            row.name: TrialProgress(
                {}, checks.rounds[row.name], last.get("round", 0), last=last
            )
        }
        metric, mode = plan.objectives[0]
        with plan.lock(), Interrupts(plan.folder) as interrupts:
            if not plan.exists():
                plan.write(checks.data, devices.names())
            plan.begin()
            with ProgressTable(
                shown, total=1, metric=metric, mode=mode, quiet=quiet
            ) as progress:
                interrupts.say = progress.say
                failed, _ = local.run(plan, progress, resources, interrupts)
            plan.note("end", code=interrupts.code or (3 if failed else 0))
        if failed:
            raise UserError(f"{plan.exp_id} has failed: {failed[row.name]}", 3)
        return plan.last(row)

    def _plan(self, exp_id: str, settings: Sequence[str]) -> tuple[Plan, RayArgs]:
        """The stored plan of an experiment that exists, else a new one; its ray config."""
        ray_args = rayconfig.exp_args("single_run", settings)
        plan = plans.make(exp_id, self.spec, "single_run", ray_args, None, settings)
        plan.command = self.command(exp_id)
        if plan.exists():
            stored = Plan.stored(exp_id)
            if stored.spec != self.spec:
                raise UserError(
                    f"experiment '{exp_id}' exists with other bindings: take another name", 4
                )
            return stored, stored.ray_args()
        return plan, ray_args


class MoCoV2(Preset):
    """MoCo v2, which has all of the family's defaults."""


class EqCo(Preset):
    """MoCo v2 with a queue of 256 that counts as 65,536."""

    method = recipe = "eqco"
    switches = FAMILY | METHODS["eqco"][1]


class BYOL(Preset):
    """Predicts the EMA teacher's projection; batch norm in the MLPs, LARS."""

    method = recipe = "byol"
    switches = FAMILY | METHODS["byol"][1]


class SimCLR(Preset):
    """Both views through one network, negatives of the other view in the batch."""

    method = recipe = "simclr"
    switches = FAMILY | METHODS["simclr"][1]


class VICReg(Preset):
    """Variance, invariance and covariance, with LARS."""

    method = recipe = "vicreg"
    switches = FAMILY | METHODS["vicreg"][1] | {"use_unit_sphere_projection": False}


class VICRegCIFAR10(VICReg):
    """VICReg as the family advises for CIFAR-10."""

    recipe, dataset = "vicreg_cifar", "cifar10"


def _check(what: str, name: Any, known: Iterable[str]) -> None:
    if name not in known:
        raise UserError(f"{what} {name!r}{nearest(name, known)}")


def _spec(files: list[str], bindings: dict[str, Any]) -> Spec:
    """Files and bindings as `-g` and `-p` take them."""
    params = {name: values.literal(name, value) for name, value in bindings.items()}
    return Spec(tuple(files), tuple(f"{name} = {value!r}" for name, value in params.items()))


def _parts(spec: Spec) -> dict[str, dict[str, Any]]:
    """Everything that a run would build, with its values."""
    configure.load(spec)
    return configure.would_build("trial")


def _fits(method: str, switches: dict[str, Any]) -> bool:
    """Whether these values of all switches make up the method."""
    return all(
        switches[name] in (value if isinstance(value, tuple) else (value,))
        for name, value in METHODS[method][1].items()
    )


def _bound(
    name: str, value: Any, parts: dict[str, dict[str, Any]], rounds: int
) -> dict[str, Any] | None:
    """The bindings of a parameter; None where a run of these parts has no use for it."""
    lars = parts["optimizer"]["optim_fn"] == "LARS"
    known = {part.rpartition("/")[2] for part in parts} | {"rounds", "final_lr"}
    known |= {"eta", "warmup_steps"} if lars else set()
    used = [binding for binding in (PARAMETERS | SWITCHES)[name].split()
            if binding.partition(".")[0] in known]  # fmt: skip
    if not used:
        return None
    if name == "use_negative_examples_from_queue":
        return {} if value else {used[0]: 0}
    if name == "shuffle_batch_norm" and value:
        return {used[0]: value, "session.batch_norm": "local"}
    if name in ("max_epochs", "transform_s") and not isinstance(value, (int, float)):
        raise UserError(f"{name} = {value!r}: expected a number")
    if name == "max_epochs":
        value = value * rounds
    elif name == "transform_s":  # of brightness, contrast, saturation, hue
        value = [round(part * value, 6) for part in (0.8, 0.8, 0.8, 0.2)]
    elif name == "encoder_arch" and f"torchvision/{value}" in registry.names("encoder"):
        value = value if value in registry.names("encoder") else f"torchvision/{value}"
    return dict.fromkeys(used, value)
