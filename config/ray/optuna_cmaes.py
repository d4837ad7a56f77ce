"""Optuna with CMA-ES, for a handful of continuous parameters (pip install cmaes)."""

import cmaes  # noqa: F401  (else an error only in the second trial)
from optuna.samplers import CmaEsSampler
from ray import tune
from ray.tune.search.optuna import OptunaSearch

exp_args = {
    "num_samples": 40,
    "search_alg": OptunaSearch(sampler=CmaEsSampler(seed=0)),
    "checkpoint_at_end": True,
    "resources_per_trial": {"cpu": 1, "gpu": 0.25},
    "config": {
        "optimizer.lr": tune.loguniform(0.03, 10),  # times the schedule's rates
        "optimizer.weight_decay": tune.loguniform(1e-6, 1e-2),
    },
}
