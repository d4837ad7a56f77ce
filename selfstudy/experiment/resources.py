"""How trials share CPUs and GPUs."""

from util.errors import UserError, nearest


def fit_resources(wanted: dict[str, float], cpus: float, gpus: float) -> tuple[dict, list[str]]:
    """What a trial can have of what it wants, and lines that say what was changed.

    A GPU on a machine without one is dropped; more than there is can never be met.

    Raises:
        UserError: an unknown resource, or more CPUs or GPUs than there are.
    """
    have = {"cpu": cpus, "gpu": gpus}
    notes = []
    fitted = {}
    for name, amount in wanted.items():
        if name not in have:
            raise UserError(f"resources_per_trial: no '{name}'{nearest(name, have)}")
        if not isinstance(amount, (int, float)) or amount < 0:
            raise UserError(f"resources_per_trial: {name} = {amount!r} is no amount")
        if name == "gpu" and amount and not gpus:
            notes.append(f"no GPU here: each trial asks for gpu {amount:g} and runs on the CPU")
        elif amount > have[name]:
            raise UserError(
                f"resources_per_trial: {name} {amount:g} can never be met, there are "
                f"{have[name]:g}; lower it in the ray config"
            )
        else:
            fitted[name] = amount
    return fitted, notes


def trials_at_once(resources: dict[str, float], cpus: float, gpus: float) -> int:
    """How many trials run side by side; no trial spans two GPUs with a fraction of each."""
    limits = []
    if cpu := resources.get("cpu"):
        limits.append(int(cpus / cpu + 1e-9))
    if gpu := resources.get("gpu"):
        limits.append(int(gpus) * int(1 / gpu + 1e-9) if gpu < 1 else int(gpus / gpu))
    return max(1, min(limits, default=1))


def packing(resources: dict[str, float], cpus: float, gpus: float) -> str:
    """How trials share the machine, in words."""
    asked = ", ".join(f"{name} {amount:g}" for name, amount in resources.items())
    gpu, words = resources.get("gpu", 0), []
    if 0 < gpu < 1:
        words.append(f"{int(1 / gpu + 1e-9)} trials per GPU")
    if gpu:
        words.append(f"{gpus:g} GPUs" if gpus != 1 else "1 GPU")
    words.append(f"{trials_at_once(resources, cpus, gpus)} at once")
    return f"each {asked or 'without CPUs'}; {', '.join(words)}"


def gpu_fit(peak_mb: float, total_mb: float, share: float) -> str:
    """Whether trials with this peak of GPU memory fit side by side, in words."""
    fits, wanted = int(total_mb / max(peak_mb, 1)), int(1 / share + 1e-9) if share < 1 else 1
    text = f"peak {peak_mb / 1024:.1f} GiB of {total_mb / 1024:.1f} GiB: {fits} fit on a GPU"
    if fits < wanted:
        return f"{text}, NOT the {wanted} that gpu {share:g} packs: raise it"
    return f"{text}, {wanted} are packed"
