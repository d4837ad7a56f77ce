"""Stops a trial whose best is worse than the median of the others' means so far."""

from ray import tune
from ray.tune.schedulers import MedianStoppingRule

exp_args = {
    "num_samples": 16,
    "scheduler": MedianStoppingRule(
        time_attr="training_iteration", grace_period=2, min_samples_required=3
    ),
    "checkpoint_at_end": True,
    "resources_per_trial": {"cpu": 1, "gpu": 0.25},
    "config": {
        "optimizer.lr": tune.loguniform(0.03, 10),  # times the schedule's rates
        "optimizer.weight_decay": tune.loguniform(1e-6, 1e-2),
    },
}
