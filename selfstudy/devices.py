"""The accelerator of this process: which, how much of it, and what was used."""

import resource
import sys

import torch


def best() -> torch.device:
    """The accelerator that this process may use, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def memory() -> dict[str, float]:
    """Peak memory of this process (MiB), and of its GPU where it has one."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    found = {"memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    if torch.cuda.is_initialized():
        found["gpu_peak_mb"] = torch.cuda.max_memory_reserved() / 2**20
        found["gpu_total_mb"] = torch.cuda.get_device_properties(0).total_memory / 2**20
    return found


def use_share(resources: dict[str, float]) -> None:
    """Keep to a trial's share: its CPUs as threads, its fraction of a GPU's memory."""
    torch.set_num_threads(max(1, int(resources.get("cpu", 1))))
    share = resources.get("gpu", 0)
    if torch.cuda.is_initialized():  # another trial was here
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if 0 < share < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(share)


def precision(name: str, device: torch.device) -> torch.dtype:
    """The type of a session's autocast.

    Args:
        name: a floating type of torch, or 'auto': float32 on a CPU, and on CUDA bfloat16 where
            it is supported, else float16.
        device: where it computes.
    """
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cpu":
        return torch.float32
    supported = device.type != "cuda" or torch.cuda.is_bf16_supported()
    return torch.bfloat16 if supported else torch.float16


def gpus() -> int:
    """CUDA devices that this process may use."""
    return torch.cuda.device_count()


def names() -> list[str]:
    """Their names."""
    return [torch.cuda.get_device_name(number) for number in range(gpus())]
