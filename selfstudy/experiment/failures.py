"""What is kept and said of a trial that has failed, and whether another try may help."""

import contextlib
import traceback
from pathlib import Path

import torch

import paths
from selfstudy import devices
from util import files
from util.errors import cause


def record_failure(folder: Path, error: Exception) -> str:
    """Write traceback and cause, the last line, to the trial's folder; return the cause."""
    text = "".join(traceback.format_exception(error))
    reason = _one_line(error)
    with contextlib.suppress(OSError):  # the disk may be what has failed
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(folder / paths.ERROR, f"{text}\n{reason}\n")
    return reason


def _one_line(error: Exception) -> str:
    """The cause in a line, with what helps where memory has run out."""
    if not isinstance(error, torch.OutOfMemoryError):
        return cause(error)
    peak = devices.memory().get("gpu_peak_mb", 0) / 1024
    return (
        f"the GPU's memory is full (peak {peak:.1f} GiB): lower dataloader.batch_size, or ask "
        f"for a larger share with --set resources_per_trial.gpu=... ({cause(error)})"
    )


def is_retryable(error: Exception) -> bool:
    """Whether a second try could end otherwise: files and devices fail by chance.

    A trial draws the same numbers every time, so what its code raises is raised again.
    """
    chance = (OSError, MemoryError, getattr(torch, "AcceleratorError", OSError))
    return isinstance(error, chance) and not isinstance(error, torch.OutOfMemoryError)
