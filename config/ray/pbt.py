"""Population based training: every 2 rounds the worst adopt the best's state, perturbed."""

from ray import tune
from ray.tune.schedulers import PopulationBasedTraining

exp_args = {
    "num_samples": 8,
    "scheduler": PopulationBasedTraining(
        time_attr="training_iteration",
        perturbation_interval=2,
        hyperparam_mutations={
            "optimizer.lr": tune.loguniform(0.03, 10),
            "optimizer.weight_decay": tune.loguniform(1e-6, 1e-2),
        },
    ),
    "checkpoint_at_end": True,
    "resources_per_trial": {"cpu": 1, "gpu": 0.25},
    "config": {
        "optimizer.lr": tune.loguniform(0.03, 10),  # times the schedule's rates
        "optimizer.weight_decay": tune.loguniform(1e-6, 1e-2),
    },
}
