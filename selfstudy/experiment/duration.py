"""How long a trial will take, from a few of its steps."""

from typing import Any

import torch

from selfstudy import configure, devices, registry
from selfstudy.data.dataset import BaseDataset, NotPrepared
from selfstudy.trial import job

STEPS = 3  # that are timed, after as many that are not
SMALL = 64  # images of a minibatch that tell the pace of a CPU
FORWARD = 1 / 3  # of a training step's time, for an image that is only looked at


def seconds(
    spec: configure.Spec, overrides: dict[str, Any], resources: dict[str, float]
) -> float | None:
    """An estimate of a trial's duration, from `STEPS` minibatches on the device it will have.

    The configuration that was loaded before is gone afterwards.

    Args:
        spec: its files and bindings.
        overrides: its values.
        resources: its CPUs, which become threads, and its share of a GPU.

    Returns:
        Seconds of all its rounds with validation and test, or None for a trial that is no
        session, or whose data are not there.
    """
    registry.discover()
    configure.load(spec, overrides)
    devices.use_share(resources)
    device = devices.best() if resources.get("gpu") else torch.device("cpu")
    before, BaseDataset.may_prepare = BaseDataset.may_prepare, False
    try:
        session = job()(device)
    except NotPrepared:
        return None
    finally:
        BaseDataset.may_prepare = before
    if not hasattr(session, "loaders"):
        return None
    return _estimate(session)


def _estimate(session: Any) -> float:
    train = session.loaders["train"]
    steps = session.iters["train"] if session.iters["train"] > 0 else len(train)
    rounds, images = session.rounds, steps * train.batch_size
    looked_at = _images(session, "valid") * rounds
    tests = rounds // session.test_every if session.test_every else 1
    looked_at += _images(session, "test") * tests
    for split in session.loaders.keys() - {"train"}:
        del session.loaders[split]
    if session.device.type == "cpu":
        train.batch_size = min(train.batch_size, SMALL)
    session.iters["train"] = STEPS
    session.round()
    view = 1 / session.round()["images_per_s"]
    return view * (rounds * images * train.views + FORWARD * looked_at)


def _images(session: Any, split: str) -> int:
    """Images that one pass over a split looks at."""
    if split not in session.loaders:
        return 0
    loader, steps = session.loaders[split], session.iters[split]
    rows = len(loader.dataset.rows)
    return rows if steps < 0 else min(rows, steps * loader.batch_size)
