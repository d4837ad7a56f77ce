"""Random search with early stopping: ASHA keeps the best third at rounds 1, 3, 9, 27, ..."""

from ray import tune
from ray.tune.schedulers import ASHAScheduler

exp_args = {
    "num_samples": 32,
    "scheduler": ASHAScheduler(max_t=10_000, grace_period=1, reduction_factor=3),
    "checkpoint_at_end": True,
    "resources_per_trial": {"cpu": 1, "gpu": 0.25},
    "config": {
        "optimizer.lr": tune.loguniform(0.03, 10),  # times the schedule's rates
        "optimizer.weight_decay": tune.loguniform(1e-6, 1e-2),
    },
}
