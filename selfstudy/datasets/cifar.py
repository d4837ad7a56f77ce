"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), from torchvision's folder or a download."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np

import paths
from selfstudy.data.dataset import BaseDataset
from selfstudy.data.prepare import Source, in_blocks, resize
from selfstudy.registry import configurable, register
from util.errors import UserError
from util.fetch import fetch

URL = "https://www.cs.toronto.edu/~kriz/"
TRAIN_10 = [f"data_batch_{number}" for number in range(1, 6)]
# Number of classes -> folder, archive, its MD5, training files, test file, class names, label
# key, as published.
LAYOUT = {
    10: (
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        TRAIN_10,
        "test_batch",
        "batches.meta",
        "label",
    ),
    100: (
        "cifar-100-python",
        "cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
        ["train"],
        "test",
        "meta",
        "fine_label",
    ),
}
# The globals in a pickled numpy array, for old and new numpy.
ADMITTED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
}


@register("dataset")
@configurable(denylist=["split"])
class CIFARDataset(BaseDataset):
    """45,000 training, 5,000 validation and 10,000 test images, in published order.

    Of a smaller folder nine tenths train.

    Args:
        split: 'train', 'valid' or 'test'.
        to_lab: models get LAB images (converted on the device); otherwise RGB.
        use_100: CIFAR-100 instead of CIFAR-10.
    """

    published = {
        "lab": ((50.84, 0.40, 5.73), (24.26, 10.15, 16.08)),
        "rgb": ((125.32, 122.97, 113.89), (62.99, 62.09, 66.70)),
    }

    def __init__(self, split: str, to_lab: bool = True, use_100: bool = False):
        self.space = "lab" if to_lab else "rgb"
        self.labels = 100 if use_100 else 10
        super().__init__(split)

    @property
    def stem(self) -> str:
        """`cifar/data_<res>_10` or `_100`."""
        return f"cifar/data_{self.input_res}_{self.labels}"

    def source(self) -> Source:
        """Images and labels of the published batches."""
        folder, archive, md5, train, test, meta, key = LAYOUT[self.labels]
        files = _folder(folder) or _archive(folder, archive, md5, self.labels)
        batches = [_batch(files, name, f"{key}s") for name in (*train, test)]
        images = np.concatenate([images for images, _ in batches])
        held = len(batches[-1][0])
        return Source(
            count=len(images),
            images=in_blocks(images, lambda block: resize(block, self.input_res)),
            targets={"targets": np.concatenate([labels for _, labels in batches])},
            splits={"train": len(images) - held, "test": held},
            fit=len(images) - held,
            classes=_load(files, meta)[f"{key}_names"] if meta in files else self._numbers(),
        )

    def _numbers(self) -> list[str]:
        return [str(label) for label in range(self.labels)]


def _folder(name: str) -> dict[str, bytes] | None:
    """File name -> content of a folder in torchvision's layout, None if it is missing."""
    folder = paths.DATA_DIR / name
    if not folder.is_dir():
        return None
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _archive(folder: str, name: str, md5: str, labels: int) -> dict[str, bytes]:
    """File name -> content of the published archive in DATA_DIR, downloaded if missing."""
    path = paths.DATA_DIR / name
    if not path.exists():
        advice = (
            f"CIFAR-{labels} is not in {paths.DATA_DIR} and could not be downloaded ({{}}): "
            f"put {folder} or {name} there"
        )
        fetch(URL + name, path, md5, advice)
    try:
        with tarfile.open(path) as archive:
            opened = {Path(member.name).name: archive.extractfile(member) for member in archive}
            return {name: file.read() for name, file in opened.items() if file}
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it") from None


class _Unpickler(pickle.Unpickler):
    """Unpickler restricted to plain containers, strings and arrays: no code execution."""

    def find_class(self, module: str, name: str):
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def _load(files: dict[str, bytes], name: str) -> dict:
    if name not in files:
        raise UserError(f"CIFAR in {paths.DATA_DIR} lacks the file {name}: download it again")
    try:
        return _Unpickler(io.BytesIO(files[name]), encoding="latin1").load()
    except Exception as error:  # a damaged pickle may raise any exception
        raise UserError(f"CIFAR's file {name} is damaged or unsafe: {error}") from None


def _batch(files: dict[str, bytes], name: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 3, 32, 32] uint8 and labels [n] int64 of one file."""
    batch = _load(files, name)
    try:
        images = np.asarray(batch["data"], np.uint8).reshape(-1, 3, 32, 32)
        labels = np.asarray(batch[key], np.int64).reshape(len(images))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"CIFAR's file {name} has an unexpected layout ({error})") from None
    return images, labels
