"""Does pretraining help when labels are few? 250 of them, with and without, three seeds.

Needs the snapshot "fashion-rotate" (docs/tutorials/02-pretraining.md). Each seed draws its own
250 labels, the same ones with and without pretraining, so that the differences are paired.
"""

from ray import tune

exp_args = {
    "checkpoint_at_end": True,
    "resources_per_trial": {"cpu": 1, "gpu": 0.25},
    "config": {
        "session.seed": tune.grid_search([0, 1, 2]),
        "BaseDataset.label_seed": tune.sample_from(lambda config: config["session.seed"]),
        "BaseDataset.semisupervised": 250,
        "Wrapper.pretrained": tune.grid_search([None, "fashion-rotate"]),
    },
}
