"""Contact sheets of a trial: augmented views, worst predictions, dense outputs.

The session of a snapshot is rebuilt under the snapshot's own configuration and run on few
images. `selfstudy.analysis.report` shows what lies in a trial's `pictures/`.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfstudy import configure, devices, registry
from selfstudy.analysis import figures
from selfstudy.analysis.figures import canvas
from selfstudy.job import job
from selfstudy.storage import snapshot
from selfstudy.tasks.base import ORIGIN, PER_METRE
from selfstudy.train.session import Session
from selfstudy.types import Batch, DataInfo, Output
from util import color, files
from util.errors import UserError

FOLDER = "pictures"
ACROSS = 8  # pictures in a row of a sheet
WORST = 24  # errors in `worst.png`
MOST = 2000  # images of a split, at most
RES = 96  # pixels of a picture in a file, about
PALETTE = np.array([  # of classes at pixels, the background first
    (0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178),
    (213, 94, 0), (204, 121, 167), (153, 153, 153), (255, 255, 255), (117, 76, 36),
], np.uint8)  # fmt: skip


@dataclasses.dataclass
class Predictions:
    """A model's class predictions.

    Attributes:
        rows: [n] int64, rows of the data file.
        truth: [n] int64, classes.
        predicted: [n] int64.
        confidence: [n] the predicted class's probability.
        split: 'test', or 'valid' where there is none.
    """

    rows: Tensor
    truth: Tensor
    predicted: Tensor
    confidence: Tensor
    split: str


def draw(source: str, folder: Path, device: torch.device | None = None) -> list[Path]:
    """Write the contact sheets of a snapshot.

    `views.png`: training images as stored, and their augmented views below.
    `worst.png`: the most confident errors of the linear probe, as truth and prediction.
    `dense.png`: segments and depths, true and predicted. `reconstructions.png`: of a VAE.
    `predictions.csv`: row, truth, predicted, confidence, split.

    Args:
        source: "EXP/name" of a snapshot, or of a trial.
        folder: gets a folder `pictures`.
        device: where the model runs; None takes the best.

    Returns:
        The files.

    Raises:
        UserError: no such snapshot, one that is damaged, or whose data are not there.
    """
    registry.discover()
    found = snapshot.resolve(source)
    with configure.isolate(found.config, f"{found.name}/config.gin"):
        session = job()(device or devices.best())
        if not isinstance(session, Session):
            raise UserError(f"{source} is no session's: it has no pictures to show")
        snapshot.load_weights(session.model, found.weights(), lambda name: False)
        session.model.eval()
        return list(_sheets(session, folder / FOLDER))


@torch.inference_mode()
def _sheets(session: Any, folder: Path) -> Iterator[Path]:
    split = "test" if "test" in session.loaders else "valid"
    yield _write(folder / "views.png", _views(session))
    if split not in session.loaders:
        return
    batch, out = next(_outputs(session, split))
    if "drawn" in out.selfsup:
        pairs = [
            displayable(out.selfsup[name][:ACROSS], session.info) for name in ("truth", "drawn")
        ]
        yield _write(folder / "reconstructions.png", np.concatenate(pairs))
    if maps := _maps(batch, out):
        images = displayable(batch.views[0][:ACROSS], session.info)
        enlarged = [_enlarge(image, images.shape[2]) for image in maps]
        yield _write(folder / "dense.png", np.concatenate([images, *enlarged]))
    if "fc/class" in out.logits and out.logits["fc/class"].ndim == 2:
        yield from _write_predictions(session, _predictions(session, split), folder)


def _views(session: Any) -> np.ndarray:
    loader = session.loaders["train"]
    loader.set_round(session.seed, 0)
    batch = next(iter(loader.batches(1)))
    generator = torch.Generator(session.device).manual_seed(session.seed)
    batch = session.task.prepare(batch, generator)
    chosen = batch.idxs[:ACROSS].cpu()
    views = [displayable(view[:ACROSS], session.info) for view in batch.views]
    return np.concatenate([_stored(session, chosen), *views])


def _stored(session: Any, rows: Tensor) -> np.ndarray:
    """Images of the data file [n, H, W, 3], in the order of `rows`."""
    data = session.loaders["train"].dataset
    order = np.argsort(rows.numpy())
    images = data.store.read(rows.numpy()[order])["images"][np.argsort(order)]
    if data.info.stored == "uint8":
        return images.permute(0, 2, 3, 1).numpy()
    return displayable(images, data.info)


def _outputs(session: Any, split: str) -> Iterator[tuple[Batch, Output]]:
    """The first minibatches of a split with the model's outputs."""
    loader = session.loaders[split]
    loader.set_round(session.seed, 0)
    generator = torch.Generator(session.device).manual_seed(session.seed)
    for batch in loader.batches(min(len(loader), -(-MOST // loader.batch_size))):
        batch = session.task.prepare(batch, generator)
        yield batch, session.model(batch)


def _predictions(session: Any, split: str) -> Predictions:
    columns = []
    for batch, out in _outputs(session, split):
        sure, predicted = out.logits["fc/class"].float().softmax(1).max(1)
        columns.append((batch.idxs, batch.targets["class"], predicted, sure))
    rows, truth, predicted, sure = (
        torch.cat(parts).cpu() for parts in zip(*columns, strict=True)
    )
    known = truth >= 0  # images without a label tell nothing
    return Predictions(rows[known], truth[known], predicted[known], sure[known], split)


def _write_predictions(session: Any, predictions: Predictions, folder: Path) -> Iterator[Path]:
    """The most confident errors as a sheet, and all predictions as a CSV file."""
    wrong = (predictions.truth != predictions.predicted).nonzero()[:, 0]
    worst = wrong[predictions.confidence[wrong].argsort(descending=True)][:WORST]
    names = session.loaders["train"].dataset.classes

    def name(label: Tensor) -> str:
        return names[int(label)] if names else str(int(label))

    if len(worst):
        titles = [
            f"{name(predictions.truth[i])}\u2192{name(predictions.predicted[i])}" for i in worst
        ]
        yield _write(folder / "worst.png", _stored(session, predictions.rows[worst]), titles)
    lines = ["row,truth,predicted,confidence,split"]
    columns = predictions.rows, predictions.truth, predictions.predicted, predictions.confidence
    for row, truth, predicted, sure in zip(*(c.tolist() for c in columns), strict=True):
        lines.append(f"{row},{truth},{predicted},{sure:.4f},{predictions.split}")
    path = folder / "predictions.csv"
    files.write_text(path, "\n".join(lines) + "\n")
    yield path


def _maps(batch: Batch, out: Output) -> list[np.ndarray]:
    """Rows of pictures [n, h, w, 3]: true and predicted segments, true and predicted depths."""
    rows = []
    if (logits := out.logits.get("fc/segment")) is not None and logits.ndim == 4:
        for classes in (batch.targets["segment"], logits.argmax(1)):
            rows.append(PALETTE[classes[:ACROSS].cpu().numpy() % len(PALETTE)])
    if (depth := out.logits.get("fc/depth")) is not None and depth.ndim == 4:
        truth = batch.targets["depth"][:ACROSS].float().cpu().numpy()
        guess = ORIGIN + depth[:ACROSS, 0].float().cpu().numpy() / PER_METRE
        top = max(float(truth.max()), 1e-6)
        rows += [_grey(truth / top), _grey(guess / top)]
    return rows


def _grey(values: np.ndarray) -> np.ndarray:
    shades = (255 * values.clip(0, 1)).astype(np.uint8)
    return np.repeat(shades[..., None], 3, -1)


def _enlarge(images: np.ndarray, res: int) -> np.ndarray:
    """[n, h, w, 3] to [n, res, res, 3], each pixel repeated or dropped."""
    at = [np.arange(res) * size // res for size in images.shape[1:3]]
    return images[:, at[0]][:, :, at[1]]


def displayable(views: Tensor, info: DataInfo) -> np.ndarray:
    """Normalised images [n, 3, H, W] as RGB bytes [n, H, W, 3]."""
    std, mean = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)
                 for values in (info.std, info.mean))  # fmt: skip
    values = views.double().cpu() * std + mean
    if info.space == "lab":
        values = color.lab_to_rgb(values)
    return values.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def _write(path: Path, images: np.ndarray, titles: list[str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = figures.contact_sheet(images, titles, ACROSS)
    files.write_bytes(path, canvas.png(picture, RES))
    return path
