"""User images: a folder per class, or one flat folder without labels."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

import paths
from selfstudy.data.dataset import SPLITS, BaseDataset
from selfstudy.data.prepare import Source, stratified_order
from selfstudy.registry import REQUIRED, configurable, register
from util.errors import UserError
from util.files import PICTURES, given_folder

BLOCK = 512  # images decoded before they are written


@register("dataset")
@configurable(denylist=["split"])
class FolderDataset(BaseDataset):
    """Pictures below a folder; prepared again when the folder's content changes.

    Args:
        split: 'train', 'valid' or 'test'.
        folder: absolute, relative to the home folder (~), or inside DATA_DIR; its subfolders
            are the classes, and a folder of pictures only has no labels.
        valid: fraction of the pictures to hold out for validation, or a folder of its own.
        test: the same for testing.
    """

    def __init__(
        self,
        split: str,
        folder: str = REQUIRED,
        valid: float | str = 0.1,
        test: float | str = 0.1,
    ):
        self.places = {"train": folder, "valid": valid, "test": test}
        self.pictures = {
            name: pictures(given_folder(_argument(name), place, paths.DATA_DIR))
            for name, place in self.places.items()
            if isinstance(place, str)
        }
        super().__init__(split)

    @property
    def stem(self) -> str:
        """`folder/<name>_<hash of file names, sizes, times and the splits>/data_<res>`."""
        text = repr((sorted(self.places.items()), sorted(self.pictures.items())))
        key = hashlib.sha256(text.encode()).hexdigest()[:12]
        name = Path(self.places["train"]).name
        plain = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)[:40]
        return f"folder/{plain}_{key}/data_{self.input_res}"

    def source(self) -> Source:
        """All pictures, decoded by several threads; each split in random order."""
        files, sizes = self._divide()
        classes = sorted({label for _, label in files} - {""})
        number = {name: index for index, name in enumerate(classes)}
        labels = np.array([number.get(label, 0) for _, label in files], np.int64)
        return Source(
            count=len(files),
            images=decode([path for path, _ in files], self.input_res),
            targets={"targets": labels} if classes else {},
            splits=sizes,
            fit=sizes["train"],
            classes=classes,
        )

    def _divide(self) -> tuple[list[tuple[str, str]], dict[str, int]]:
        """(path, class) of all pictures, split after split, and the size of each split."""
        pool = self.pictures["train"]
        sizes = {name: self._held_out(name, len(pool)) for name in ("valid", "test")}
        sizes["train"] = len(pool) - sum(sizes.values())
        if sizes["train"] < 1:
            raise UserError(f"FolderDataset: {len(pool)} pictures leave none for training")
        order = stratified_order(class_numbers(pool), sizes, seed=0)
        ends = np.cumsum([sizes[name] for name in SPLITS])[:-1]
        rows = dict(zip(SPLITS, np.split(order, ends), strict=True))
        parts = {name: [pool[row] for row in rows[name]] for name in SPLITS}
        for name in sorted(self.pictures.keys() - {"train"}):
            parts[name] = shuffle(self.pictures[name])
            _check_classes(name, parts[name], pool)
        files = [entry[:2] for name in SPLITS for entry in parts[name]]
        return files, {name: len(parts[name]) for name in SPLITS}

    def _held_out(self, name: str, total: int) -> int:
        """Pictures of the training folder that go to split `name`."""
        share = self.places[name]
        if name in self.pictures:
            return 0
        if not 0 <= share < 1:
            raise UserError(f"FolderDataset.{name} is {share}, expected a fraction below 1")
        return round(share * total)


def _argument(split: str) -> str:
    return f"FolderDataset.{'folder' if split == 'train' else split}"


Picture = tuple[str, str, int, int]  # path, class ('' without), bytes, time of change in ns


def pictures(folder: Path) -> list[Picture]:
    """All pictures below `folder`, sorted by name."""
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    flat = [_picture(entry.path, "") for entry in entries if _is_picture(entry.name)]
    classed = [
        _picture(path, entry.name)
        for entry in entries
        if entry.is_dir() and not entry.name.startswith(".")
        for path in _below(entry.path)
    ]
    if flat and classed:
        raise UserError(f"{folder} mixes pictures and folders of pictures: expected one kind")
    if not flat and not classed:
        raise UserError(f"{folder} holds no pictures ({', '.join(sorted(PICTURES))})")
    return flat or classed


def _below(folder: str) -> list[str]:
    files = (
        os.path.join(place, name)
        for place, _, names in os.walk(folder)
        for name in names
        if _is_picture(name)
    )
    return sorted(files)


def _is_picture(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in PICTURES


def _picture(path: str, label: str) -> Picture:
    about = os.stat(path)
    return path, label, about.st_size, about.st_mtime_ns


def class_numbers(pictures: list[Picture]) -> np.ndarray:
    """[N] int64: the class of each picture among those that occur."""
    labels = [picture[1] for picture in pictures]
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def shuffle(pictures: list[Picture]) -> list[Picture]:
    """The pictures in a random order, with a fixed seed."""
    order = np.random.RandomState(0).permutation(len(pictures))
    return [pictures[index] for index in order]


def _check_classes(name: str, pictures: list[Picture], pool: list[Picture]) -> None:
    strange = {picture[1] for picture in pictures} - {picture[1] for picture in pool}
    if strange:
        listed = ", ".join(sorted(strange)[:5]) or "none"
        raise UserError(f"FolderDataset.{name} has classes that training lacks: {listed}")


def decode(files: list[str], res: int) -> Iterator[np.ndarray]:
    """Blocks [n, 3, res, res] uint8, in order; PIL decodes outside Python's lock."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for start in range(0, len(files), BLOCK):
            block = pool.map(lambda path: _decode(path, res), files[start : start + BLOCK])
            yield np.stack(list(block))


def _decode(path: str, res: int) -> np.ndarray:
    """One picture [3, res, res]: short side resized to `res`, then centre crop."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (2 * res, 2 * res))
            upright = ImageOps.exif_transpose(image).convert("RGB")
            fitted = ImageOps.fit(upright, (res, res), Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path} is not a readable picture ({error}): mend or remove it"
        ) from None
    return np.asarray(fitted).transpose(2, 0, 1)
