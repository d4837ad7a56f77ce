"""A grid on the formula of -g simulation/search: 6 trials to interrupt, resume and look at."""

from ray import tune

exp_args = {
    "checkpoint_freq": 2,
    "checkpoint_at_end": True,
    "config": {
        "simulation.x": tune.grid_search([0.001, 0.01, 0.1]),
        "simulation.y": tune.grid_search([0.2, 0.5]),
    },
}
