"""What a run was made with: versions, commit, devices; never secrets."""

import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
from typing import Any

import paths

PACKAGES = ("torch", "torchvision", "ray", "gin-config", "h5py", "numpy", "optuna")


@functools.cache
def git() -> dict[str, Any]:
    """Commit of the project and whether files differ from it; empty outside a checkout."""

    def ask(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=paths.ROOT, capture_output=True, text=True,
                              timeout=10, check=True).stdout.strip()  # fmt: skip

    try:
        changed = ask("status", "--porcelain", "--untracked-files=no")
        return {"commit": ask("rev-parse", "HEAD"), "changed": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return {}


@functools.cache
def versions() -> dict[str, Any]:
    """`{'versions': {package: version}, 'git': {...}}`, read without importing anything."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"versions": found, "git": git()}


def cpus() -> int:
    """CPUs that this process may use."""
    return (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1
    )


def machine() -> dict[str, Any]:
    """Operating system, processor and the number of CPUs this process may use."""
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": cpus(),
        "python": sys.version.split()[0],
    }
