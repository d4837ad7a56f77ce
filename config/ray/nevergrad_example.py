"""Differential evolution by nevergrad (pip install nevergrad 'bayesian-optimization<2').

Its NGOpt may choose an optimizer that waits for each result before it suggests again.
"""

import nevergrad
from ray import tune
from ray.tune.search.nevergrad import NevergradSearch

exp_args = {
    "num_samples": 20,
    "search_alg": NevergradSearch(
        optimizer=nevergrad.optimizers.TwoPointsDE,
        optimizer_kwargs={"budget": 20, "num_workers": 4},
    ),
    "checkpoint_at_end": True,
    "resources_per_trial": {"cpu": 1, "gpu": 0.25},
    "config": {
        "optimizer.lr": tune.loguniform(0.03, 10),  # times the schedule's rates
        "optimizer.weight_decay": tune.loguniform(1e-6, 1e-2),
    },
}
