"""The hardest row of docs/results/synthetic.md, three times as long."""

from ray import tune

exp_args = {
    "resources_per_trial": {"cpu": 1, "gpu": 0.25},
    "config": {
        "SynDataset.dataset_choice": "1111",
        "BaseDataset.semisupervised": tune.grid_search([1000, 4000]),
        "session.valid_iters": 0,
        "scheduler.milestones": [1, 36],  # 900 minibatches of 64
        "session.seed": tune.grid_search([0, 1]),
        "BaseDataset.label_seed": tune.sample_from(lambda config: config["session.seed"]),
    },
}
