"""Optuna's TPE with ASHA, which stops the worse two thirds at rounds 1, 3, 9, 27, ..."""

from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

exp_args = {
    "num_samples": 32,
    "search_alg": OptunaSearch(seed=0),
    "scheduler": ASHAScheduler(max_t=10_000, grace_period=1, reduction_factor=3),
    "checkpoint_at_end": True,
    "resources_per_trial": {"cpu": 1, "gpu": 0.25},
    "config": {
        "optimizer.lr": tune.loguniform(0.03, 10),  # times the schedule's rates
        "optimizer.weight_decay": tune.loguniform(1e-6, 1e-2),
    },
}
