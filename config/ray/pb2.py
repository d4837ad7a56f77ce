"""PB2: as pbt, with new values proposed by a Gaussian process within bounds (scikit-learn)."""

from ray import tune
from ray.tune.schedulers.pb2 import PB2

exp_args = {
    "num_samples": 8,
    "scheduler": PB2(
        time_attr="training_iteration",
        perturbation_interval=2,
        hyperparam_bounds={"optimizer.lr": [0.03, 10], "optimizer.weight_decay": [1e-6, 1e-2]},
    ),
    "checkpoint_at_end": True,
    "resources_per_trial": {"cpu": 1, "gpu": 0.25},
    "config": {
        "optimizer.lr": tune.loguniform(0.03, 10),  # times the schedule's rates
        "optimizer.weight_decay": tune.loguniform(1e-6, 1e-2),
    },
}
