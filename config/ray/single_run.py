"""One trial: two CPUs and a GPU where there is one (published)."""

import os

exp_args = {
    "stop": {"is_finished": True},
    "checkpoint_freq": 200,
    "checkpoint_at_end": True,
    "resources_per_trial": {"cpu": min(2, os.cpu_count() or 1), "gpu": 1},
}
