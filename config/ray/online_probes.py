"""A linear and an MLP probe on every frozen encoder of `-r grid_methods`.

    python main.py -e probes -r online_probes

Needs the snapshots of `grid_methods`, see there.
"""

from ray import tune

METHODS = ("rotate", "simclr", "moco", "eqco", "byol", "vicreg", "barlow", "simsiam", "swav",
           "dino", "supcon", "amdim", "vae")  # fmt: skip

exp_args = {
    "resources_per_trial": {"cpu": 1, "gpu": 0.25},
    "config": {
        "include": tune.grid_search([[f"digits/r9/{name}", "base/frozen"] for name in METHODS]),
        "Wrapper.pretrained": tune.sample_from(
            lambda config: "methods/" + config["include"][0].rpartition("/")[2]
        ),
        "scheduler.milestones": [1, 5],
        "scheduler.target_lrs": [0, 0.01, 1e-5],
    },
}
