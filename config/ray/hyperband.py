"""HyperBand: brackets of trials that pause at rungs until the worse ones are known."""

from ray import tune
from ray.tune.schedulers import HyperBandScheduler

exp_args = {
    "num_samples": 12,
    "scheduler": HyperBandScheduler(max_t=9, reduction_factor=3),
    "checkpoint_at_end": True,
    "resources_per_trial": {"cpu": 1, "gpu": 0.25},
    "config": {
        "optimizer.lr": tune.loguniform(0.03, 10),  # times the schedule's rates
        "optimizer.weight_decay": tune.loguniform(1e-6, 1e-2),
    },
}
