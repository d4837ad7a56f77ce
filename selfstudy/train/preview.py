"""Checks of a session before it runs: the metrics of its rounds, and its duration."""

from typing import TYPE_CHECKING

import torch

from selfstudy.types import Batch

if TYPE_CHECKING:
    from selfstudy.train.session import Session

STEPS = 3  # timed training steps, after as many for warm-up
SMALL = 64  # minibatch size that suffices for timing on a CPU
FORWARD = 1 / 3  # time of an evaluated image, relative to a trained one


def rehearse(session: "Session") -> list[str]:
    """One training step on placeholder rows, to find errors before a long run.

    Args:
        session: on the device 'meta', which tracks shapes without computing.

    Returns:
        The metrics that each round will have.

    Raises:
        Exception: whatever building or running the parts raises.
    """
    info = session.info
    size = (2, info.channels, info.input_res, info.input_res)
    targets = {name: info.kind(name).placeholder(2, *size[2:], session.device)
               for name in info.targets}  # fmt: skip
    views = tuple(torch.zeros(size, device=session.device)
                  for _ in range(session.loaders["train"].views))  # fmt: skip
    batch = Batch(views, targets, torch.zeros(2, dtype=torch.int64, device=session.device))
    batch = session.task.prepare(batch, None)
    loss, metrics = session.task.evaluate(batch, session.model(batch))
    loss.backward()
    session.optimizer.step()  # initialises the optimizer state, which checkpoints contain
    session.model.after_step(0.0)
    names = [f"{split}_{name}" for split in session.loaders for name in metrics]
    names += session.monitor.names() if "valid" in session.loaders else []
    session.schedule.check_metric(names)
    return names


def seconds(session: "Session") -> float:
    """Estimated seconds of all rounds with validation and test, from `STEPS` minibatches.

    Do not use the session afterwards.
    """
    train = session.loaders["train"]
    steps = session.iters["train"] if session.iters["train"] > 0 else len(train)
    rounds, images = session.rounds, steps * train.batch_size
    evaluated = _images(session, "valid") * rounds
    tests = rounds // session.test_every if session.test_every else 1
    evaluated += _images(session, "test") * tests
    for split in session.loaders.keys() - {"train"}:
        del session.loaders[split]
    if session.device.type == "cpu":
        train.batch_size = min(train.batch_size, SMALL)
    session.iters["train"] = STEPS
    session.round()
    view = 1 / session.round()["images_per_s"]
    return view * (rounds * images * train.views + FORWARD * evaluated)


def _images(session: "Session", split: str) -> int:
    """Images in one pass over a split."""
    if split not in session.loaders:
        return 0
    loader, steps = session.loaders[split], session.iters[split]
    rows = len(loader.dataset.rows)
    return rows if steps < 0 else min(rows, steps * loader.batch_size)
