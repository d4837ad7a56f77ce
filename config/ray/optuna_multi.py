"""Two objectives: accuracy and training time."""

from ray import tune
from ray.tune.search.optuna import OptunaSearch

exp_args = {
    "num_samples": 24,
    "search_alg": OptunaSearch(seed=0),
    "metric": ["mean_accuracy", "total_s"],
    "mode": ["max", "min"],
    "checkpoint_at_end": True,
    "resources_per_trial": {"cpu": 1, "gpu": 0.25},
    "config": {
        "optimizer.lr": tune.loguniform(0.03, 10),  # times the schedule's rates
        "ResNet.width": tune.choice([0.0625, 0.125, 0.25]),
    },
}
