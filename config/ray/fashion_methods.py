"""All methods on Fashion-MNIST as one sweep: a narrow ResNet-9, four rounds, no labels.

    python main.py -e fm -r fashion_methods
    python misc/move_snapshots.py -e fm -p '{cfg[Wrapper.model_choice]}-{cfg[session.seed]}' -m
    python misc/save_network_output.py -e fm --train_lr --data_amts 1000 --include_test

Other seeds: `-p 'session.seed = 1'`. Results: docs/results/pretraining.md.
"""

from ray import tune

METHODS = ("simclr", "moco", "byol", "vicreg", "barlow", "swav", "simsiam", "dino", "supcon",
           "eqco", "amdim", "rotate", "vae")  # fmt: skip

exp_args = {
    "checkpoint_at_end": True,
    "resources_per_trial": {"cpu": 1, "gpu": 0.25},
    "config": {"include": tune.grid_search([f"fashion/r9/{name}" for name in METHODS])},
}
