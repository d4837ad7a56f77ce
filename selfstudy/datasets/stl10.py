"""STL-10: 13,000 labelled and 100,000 unlabelled pictures (Coates, Ng, Lee, AISTATS 2011)."""

import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, Literal

import numpy as np

import paths
from selfstudy.data.dataset import BaseDataset
from selfstudy.data.prepare import Source, resize
from selfstudy.registry import configurable, register
from selfstudy.types import IGNORED
from util import hdf5
from util.errors import UserError
from util.fetch import fetch

URL = "http://ai.stanford.edu/~acoates/stl10/"
FOLDER, ARCHIVE = "stl10_binary", "stl10_binary.tar.gz"
MD5 = "91f7769df0f17e558f3565bffb0c7dfb"  # of the archive, as published
PICTURES = {"unlabelled": "unlabeled_X.bin", "train": "train_X.bin", "test": "test_X.bin"}
LABELS = {"train": "train_y.bin", "test": "test_y.bin"}
FOLDS, NAMES = "fold_indices.txt", "class_names.txt"
CLASSES = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
SIZE = 96  # pixels
BYTES = 3 * SIZE**2  # of a picture
BLOCK = 500  # pictures read together


@register("dataset")
@configurable(denylist=["split"])
class STL10Dataset(BaseDataset):
    """4,500 train, 500 valid (the last labelled ones) and 8,000 test images, 96 pixels wide.

    One file contains the unlabelled, the training and the test pictures, in this order.
    Unlabelled pictures have the class -100, ignored by losses and accuracies, and a label cut
    (`BaseDataset.semisupervised`) never keeps them. Read from DATA_DIR/stl10_binary, or from
    the published archive there, which is downloaded if missing (2.6 GB).

    Args:
        split: 'train', 'valid' or 'test'.
        part: 'labelled' trains on labelled pictures; 'all', for pretraining, on the 100,000
            unlabelled ones, too. Both validate and test on the same pictures.
        fold: 0 to 9 trains on one of the published folds of 1,000 labelled pictures, and
            validates on the last `num_valid` of those outside.
    """

    def __init__(
        self,
        split: str,
        part: Literal["labelled", "all"] = "labelled",
        fold: int | None = None,
    ):
        if fold is not None and not 0 <= fold <= 9:
            raise UserError(f"STL10Dataset.fold is {fold}, expected 0 to 9, or None for all")
        self.part, self.fold = part, fold
        super().__init__(split)

    @property
    def stem(self) -> str:
        """`stl10/data_<res>`."""
        return f"stl10/data_{self.input_res}"

    # ---- rows ------------------------------------------------------------------------------

    def spans(self, total: int, splits: dict | None) -> dict[str, tuple[int, int]]:
        """The published split, without or with the unlabelled rows at the start."""
        sizes = dict(splits or {})
        first = sizes.pop("unlabelled", 0)
        labelled = super().spans(total - first, sizes)
        spans = {name: (start + first, end + first) for name, (start, end) in labelled.items()}
        if self.part == "all":
            if not first:
                raise UserError(
                    f"STL10Dataset.part = 'all': {self.path} has no unlabelled pictures; put "
                    f"{PICTURES['unlabelled']} into {paths.DATA_DIR / FOLDER} and delete it"
                )
            spans["train"] = (0, spans["train"][1])
        return spans

    def _split_rows(self, spans: dict) -> dict[str, np.ndarray]:
        """Rows per split; with `fold`, training and validation rows of that fold."""
        if self.fold is None:
            return super()._split_rows(spans)
        rows = np.arange(spans["train"][0], spans["valid"][1])
        inside = hdf5.read(self.path, "folds", rows).numpy() >> self.fold & 1 > 0
        if not inside.any():
            raise UserError(f"STL10Dataset.fold: {FOLDS} was missing when {self.path} was made")
        free = self._has_label(rows)
        others = rows[free & ~inside]
        return {
            "train": rows[~free | inside],
            "valid": others[max(0, len(others) - self.num_valid) :],
            "test": np.arange(*spans["test"]),
        }

    # ---- preparing ---------------------------------------------------------------------------

    def source(self) -> Source:
        """The published files, read in blocks."""
        files = _Files()
        counts = {name: files.count(file, BYTES) for name, file in PICTURES.items()}
        labels = [np.full(counts["unlabelled"], IGNORED)]
        labels += [_labels(files, name, counts[name]) for name in ("train", "test")]
        folds = np.zeros(sum(counts.values()), np.int64)
        first = counts["unlabelled"]
        folds[first : first + counts["train"]] = _folds(files, counts["train"])
        return Source(
            count=sum(counts.values()),
            images=(resize(block, self.input_res) for block in _pictures(files)),
            targets={"targets": np.concatenate(labels), "folds": folds},
            splits=counts,
            fit=first + counts["train"] - counts["train"] // 10,  # without validation rows
            classes=files.text(NAMES).split() or CLASSES,
        )


class _Files:
    """The published files by name, from the folder or directly from the archive."""

    def __init__(self):
        self.folder, self.place = paths.DATA_DIR / FOLDER, paths.DATA_DIR / FOLDER
        self.members: dict[str, tarfile.TarInfo] = {}
        if self.folder.is_dir():
            return
        self.place = paths.DATA_DIR / ARCHIVE
        if not self.place.exists():
            advice = (
                f"STL-10 is not in {paths.DATA_DIR} and could not be downloaded ({{}}): put "
                f"{FOLDER} or {ARCHIVE} there"
            )
            fetch(URL + ARCHIVE, self.place, MD5, advice)
        try:
            self.archive = tarfile.open(self.place)
            self.members = {member.name.rpartition("/")[2]: member
                            for member in self.archive if member.isfile()}  # fmt: skip
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise self.damage(error) from None

    def damage(self, error: object) -> UserError:
        """The error for a file that differs from the published one."""
        return UserError(f"{self.place} is damaged ({error}): delete it")

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return name in self.members or (self.folder / name).is_file()

    def count(self, name: str, size: int) -> int:
        """Items of `size` bytes in a file; only the file of unlabelled ones may be missing."""
        if not self.has(name):
            if name == PICTURES["unlabelled"]:
                return 0
            raise UserError(f"{self.place} lacks the file {name}: download it again")
        member = self.members.get(name)
        total = member.size if member else (self.folder / name).stat().st_size
        if total % size:
            raise self.damage(f"{name} has {total} bytes")
        return total // size

    def open(self, name: str) -> IO[bytes]:
        """Open the file for reading; an archive is not unpacked to disk."""
        member = self.members.get(name)
        if member is None:
            return (self.folder / name).open("rb")
        file = self.archive.extractfile(member)
        assert file is not None, "members are plain files"
        return file

    def text(self, name: str) -> str:
        """Content of a small file, '' if it is missing."""
        if not self.has(name):
            return ""
        with self.open(name) as file:
            return file.read().decode("ascii", "replace")


def _pictures(files: _Files) -> Iterator[np.ndarray]:
    """Blocks [n, 3, 96, 96] uint8, in the order of the data file.

    Published column by column, so height and width are transposed.
    """
    for name in filter(files.has, PICTURES.values()):
        try:
            with files.open(name) as file:
                while data := file.read(BLOCK * BYTES):
                    pixels = np.frombuffer(data, np.uint8).reshape(-1, 3, SIZE, SIZE)
                    yield pixels.transpose(0, 1, 3, 2)
        except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error) as error:
            raise files.damage(error) from None


def _labels(files: _Files, part: str, count: int) -> np.ndarray:
    """[count] int64 classes from 0; published from 1."""
    name = LABELS[part]
    if files.count(name, 1) != count:
        raise files.damage(f"{files.count(name, 1)} labels of {count} pictures in {name}")
    with files.open(name) as file:
        labels = np.frombuffer(file.read(), np.uint8).astype(np.int64) - 1
    if count and not 0 <= labels.min() <= labels.max() < len(CLASSES):
        raise files.damage(f"{name} has classes {labels.min() + 1} to {labels.max() + 1}")
    return labels


def _folds(files: _Files, count: int) -> np.ndarray:
    """[count] int64: bit k is set for pictures of fold k; a picture may be in several folds."""
    folds = np.zeros(count, np.int64)
    for number, line in enumerate(files.text(FOLDS).splitlines()):
        try:
            folds[np.array(line.split(), np.int64)] |= 1 << number
        except (ValueError, IndexError) as error:
            raise files.damage(f"{FOLDS}: {error}") from None
    return folds
