"""The table of docs/results/synthetic.md: six variants x four label counts x two seeds.

Needs -g syn/r9n/classify and rendered sets of at least 4,800 pictures. Each seed draws its own
labels; smaller label sets are subsets of larger ones.
"""

from ray import tune

exp_args = {
    "resources_per_trial": {"cpu": 1, "gpu": 0.25},
    "config": {
        "SynDataset.dataset_choice": tune.grid_search(
            ["0000", "1000", "0100", "0010", "0001", "1111"]
        ),
        "BaseDataset.semisupervised": tune.grid_search([100, 250, 1000, 4000]),
        "session.valid_iters": 0,  # tested once, at the end
        "scheduler.milestones": [1, 12],  # 300 minibatches of 64
        "session.seed": tune.grid_search([0, 1]),
        "BaseDataset.label_seed": tune.sample_from(lambda config: config["session.seed"]),
    },
}
