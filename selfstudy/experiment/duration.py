"""How long a trial will take, as its job tells from a few steps."""

from typing import Any

import torch

from selfstudy import configure, devices, registry
from selfstudy.data.dataset import BaseDataset, NotPrepared
from selfstudy.job import job


def seconds(
    spec: configure.Spec, overrides: dict[str, Any], resources: dict[str, float]
) -> float | None:
    """An estimate of a trial's duration, measured on the device that it will have.

    The configuration that was loaded before is gone afterwards.

    Args:
        spec: its files and bindings.
        overrides: its values.
        resources: its CPUs, which become threads, and its share of a GPU.

    Returns:
        Seconds of all its rounds, or None where the job cannot tell or its data are not there.
    """
    registry.discover()
    configure.load(spec, overrides)
    devices.use_share(resources)
    device = devices.best() if resources.get("gpu") else torch.device("cpu")
    try:
        with BaseDataset.allow_preparing(False):
            return job()(device).estimate()
    except NotPrepared:
        return None
