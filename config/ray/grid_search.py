"""A small grid that runs anywhere: peak learning rate x label count, 6 trials."""

from ray import tune

exp_args = {
    "stop": {"is_finished": True},
    "checkpoint_at_end": True,
    "resources_per_trial": {"cpu": 1, "gpu": 0.25},
    "config": {
        "scheduler.target_lrs": tune.grid_search([[0, lr, 0] for lr in (0.003, 0.01, 0.03)]),
        "BaseDataset.semisupervised": tune.grid_search([100, 500]),
    },
}
