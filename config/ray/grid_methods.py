"""Every pretraining method on digits as one sweep, each with its own gin file.

    python main.py -e methods -r grid_methods
    python misc/move_snapshots.py -e methods -p '{cfg[Wrapper.model_choice]}' -m
    python main.py -e probes -r online_probes

CMC compares lightness with colour, which digits do not have: `-g syn/r9n/cmc` runs it.
"""

from ray import tune

METHODS = ("rotate", "simclr", "moco", "eqco", "byol", "vicreg", "barlow", "simsiam", "swav",
           "dino", "supcon", "amdim", "vae")  # fmt: skip

exp_args = {
    "checkpoint_at_end": True,
    "resources_per_trial": {"cpu": 1, "gpu": 0.25},
    "config": {"include": tune.grid_search([f"digits/r9/{name}" for name in METHODS])},
}
