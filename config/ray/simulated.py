"""A grid with -g simulation/search: 6 simulated trials to interrupt, resume and inspect."""

from ray import tune

exp_args = {
    "checkpoint_freq": 2,
    "checkpoint_at_end": True,
    "config": {
        "simulation.x": tune.grid_search([0.001, 0.01, 0.1]),
        "simulation.y": tune.grid_search([0.2, 0.5]),
    },
}
