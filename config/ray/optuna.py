"""Optuna's TPE: each configuration is proposed from the results of earlier ones."""

from ray import tune
from ray.tune.search.optuna import OptunaSearch

exp_args = {
    "num_samples": 20,
    "search_alg": OptunaSearch(seed=0),
    "checkpoint_at_end": True,
    "resources_per_trial": {"cpu": 1, "gpu": 0.25},
    "config": {
        "optimizer.lr": tune.loguniform(0.03, 10),  # times the schedule's rates
        "optimizer.weight_decay": tune.loguniform(1e-6, 1e-2),
        "dataloader.batch_size": tune.choice([16, 32, 64]),
    },
}
