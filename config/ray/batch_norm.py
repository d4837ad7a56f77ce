"""Does batch norm in the MLPs keep BYOL from collapsing? The study of the contrastive family.

    python main.py -e norm -r batch_norm
    python misc/move_snapshots.py -e norm -p '{cfg[include]}' -m
    python misc/save_network_output.py -e norm --train_lr --data_amts 1000 --include_test

Published on STL-10 (linear accuracy): contrastive 44.1, BYOL 57.7, projection only 55.3,
prediction only 48, none 28.3, layer norm 29.4, random 28.8. Here on Fashion-MNIST, one round.
"""

from ray import tune

NORMS = ("contrastive", "byol", "projection_bn", "prediction_bn", "none", "layer_norm",
         "random")  # fmt: skip

exp_args = {
    "checkpoint_at_end": True,
    "resources_per_trial": {"cpu": 1, "gpu": 0.25},
    "config": {"include": tune.grid_search([f"fashion/norm/{name}" for name in NORMS])},
}
