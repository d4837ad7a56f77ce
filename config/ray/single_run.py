"""One trial: two CPUs and a GPU, as far as available (published)."""

from util.environment import cpus

exp_args = {
    "stop": {"is_finished": True},
    "checkpoint_freq": 200,
    "checkpoint_at_end": True,
    "resources_per_trial": {"cpu": min(2, cpus()), "gpu": 1},
}
