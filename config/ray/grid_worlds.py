"""Three rendered variants of increasing difficulty x two label counts.

Needs -g syn/r9n/classify; missing variants are rendered first.
"""

from ray import tune

exp_args = {
    "checkpoint_at_end": True,
    "resources_per_trial": {"cpu": 1, "gpu": 0.25},
    "config": {
        "SynDataset.dataset_choice": tune.grid_search(["0000", "0010", "1111"]),
        "BaseDataset.semisupervised": tune.grid_search([100, 1000]),
    },
}
