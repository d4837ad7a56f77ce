"""Time shares of an epoch, and evaluation against a plain loop.

`python -m bench.epoch` prints a Markdown table. Real digits at 32 x 32, a ResNet-9 of a
quarter of the width, all five augmentations.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import paths
from bench.common import interleave, prepare, table
from selfstudy import configure, registry
from selfstudy.models.resnet import CELU
from selfstudy.train.meters import Meter, RunningMeter, read
from selfstudy.train.session import Session
from selfstudy.types import Batch

PARAMS = (
    "BaseDataset.input_res = 32", "augment.grayscale = True", "augment.flip = True",
    "augment.cutout = True", "dataloader.batch_size = 128",
)  # fmt: skip


def run(quick: bool = False) -> list[tuple]:
    """Rows (what, milliseconds, share or ratio, goal)."""
    registry.discover()
    configure.load(configure.Spec(("digits/r9/classify",), PARAMS))
    session = Session(torch.device("cpu"))
    return shares(session, 2 if quick else 5) + evaluation(session, 3 if quick else 9)


def shares(session: Session, repeats: int) -> list[tuple]:
    """Time of data, augmentation, metrics and optimizer steps of an epoch."""
    loader, model = session.loaders["train"], session.model.train()
    batches = list(loader.batches())
    outs = [session.task.evaluate(batch, model(batch))[1] for batch in batches]

    def steps() -> None:
        for batch in batches:
            loss, _ = session.task.evaluate(batch, model(batch))
            session.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            session.optimizer.step()

    def data() -> None:
        for _ in loader.batches():
            pass

    def metrics() -> None:
        meter = RunningMeter()
        for states in outs:
            meter.update(states)
        read({"train": meter})

    seconds = interleave({"steps": steps, "data and augmentation": data, "metrics": metrics},
                         repeats)  # fmt: skip
    total = sum(seconds.values())
    rows = [(f"epoch of {len(batches)} x 128: {name}", 1e3 * value, value / total, "")
            for name, value in seconds.items()]  # fmt: skip
    extra = total - seconds["steps"]
    return [*rows, ("all but the steps", 1e3 * extra, extra / total, "<= 0.08")]


def evaluation(session: Session, repeats: int) -> list[tuple]:
    """The session's evaluation of a split against eager NCHW loops under inference_mode."""
    loader = session.loaders["valid"]
    plain = _plain(session)
    ways: dict[str, Callable[[], object]] = {
        "evaluation, ours": lambda: session._evaluate("valid", lambda *_: None),
        "eager NCHW loop, torch's CELU": lambda: _loop(session, plain, loader),
    }
    seconds = interleave(ways, repeats)
    ours = seconds["evaluation, ours"]
    return [(name, 1e3 * value, value / ours, ">= 1.5" if value != ours else "")
            for name, value in seconds.items()]  # fmt: skip


def _plain(session: Session) -> nn.Module:
    """The same network, plainly written: NCHW, torch's CELU, then pooling."""
    model = type(session.model)(session.loaders["train"].dataset.info)
    for module in list(model.modules()):
        parts = list(module.children())
        if isinstance(module, nn.Sequential) and parts and isinstance(parts[-1], CELU):
            parts[-1] = nn.CELU(parts[-1].alpha, inplace=True)
            for place, part in enumerate(parts[:2] + parts[:1:-1]):
                module[place] = part
    model.load_state_dict(session.model.state_dict())
    return model.eval()


@torch.inference_mode()
def _loop(session: Session, model: nn.Module, loader) -> dict[str, float]:
    mean = Meter()
    for batch in loader.batches():
        views = tuple(view.contiguous() for view in batch.views)
        batch = Batch(views, batch.targets, batch.idxs)
        mean.update(session.task.evaluate(batch, model(batch))[1])
    return read({"valid": mean})


if __name__ == "__main__":
    print(prepare())
    with tempfile.TemporaryDirectory() as name:
        paths.DATA_DIR = Path(name)
        print(table(run(), ("what", "ms", "share or ratio", "goal")))
