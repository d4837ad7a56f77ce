"""Optuna with ASHA on -g simulation/search: tries a search without training."""

from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

exp_args = {
    "num_samples": 8,
    "search_alg": OptunaSearch(seed=0),
    "scheduler": ASHAScheduler(max_t=10_000, grace_period=1, reduction_factor=3),
    "checkpoint_freq": 2,
    "checkpoint_at_end": True,
    "config": {
        "simulation.x": tune.loguniform(1e-4, 1),
        "simulation.y": tune.uniform(0, 1),
    },
}
