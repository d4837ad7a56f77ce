"""The published grid: 12 data variants x 8 label counts, 96 trials per method.

For fine-tuning, set PRETRAINED to an experiment whose snapshots are named after the variants
(misc/move_snapshots.py -p '{cfg[SynDataset.dataset_choice]}').
"""

from ray import tune

VARIANTS = ["0000", "0100", "0110", "0001", "0101", "0010", "0111", "1000", "1011", "1100",
            "1110", "1111"]  # fmt: skip
PRETRAINED = None  # or, for example, "pretrained-amdim"
LABELS = [100, 250, 1000, 4000, 20000, 50000, 100000, 200000]


def milestones(config):
    """Few labels need fewer rounds."""
    return [5, 200] if config["BaseDataset.semisupervised"] < 20000 else [5, 600]


def pretrained_snapshot(config):
    """The pretrained snapshot of the same variant."""
    return PRETRAINED and f"{PRETRAINED}/{config['SynDataset.dataset_choice']}"


exp_args = {
    "resources_per_trial": {"cpu": 2, "gpu": 0.5},
    "config": {
        "SynDataset.dataset_choice": tune.grid_search(VARIANTS),
        "BaseDataset.semisupervised": tune.grid_search(LABELS),
        "scheduler.milestones": tune.sample_from(milestones),
        "Wrapper.pretrained": tune.sample_from(pretrained_snapshot),
    },
}
