"""Tree-structured Parzen estimators by hyperopt (pip install hyperopt)."""

import hyperopt  # noqa: F401  (Ray's own error does not name the package)
from ray import tune
from ray.tune.search.hyperopt import HyperOptSearch

exp_args = {
    "num_samples": 20,
    "search_alg": HyperOptSearch(random_state_seed=0),
    "checkpoint_at_end": True,
    "resources_per_trial": {"cpu": 1, "gpu": 0.25},
    "config": {
        "optimizer.lr": tune.loguniform(0.03, 10),  # times the schedule's rates
        "optimizer.weight_decay": tune.loguniform(1e-6, 1e-2),
    },
}
