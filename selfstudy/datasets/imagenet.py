"""ImageNet (ILSVRC-2012; Russakovsky et al., arXiv 1409.0575), from its image folders."""

import hashlib
from pathlib import Path

import numpy as np

import paths
from selfstudy.data.dataset import BaseDataset
from selfstudy.data.prepare import Source, stratified_order
from selfstudy.datasets.folder import class_numbers, decode, pictures, shuffle
from selfstudy.registry import configurable, register
from util.errors import UserError


@register("dataset")
@configurable(denylist=["split"])
class ImageNetDataset(BaseDataset):
    """`train/<wnid>/*.JPEG` trains and, with its last `num_valid`, validates; `val/` tests.

    Pictures are prepared once (short side resized to `BaseDataset.input_res`, centre crop) into
    a file beside the two folders: 16 GB at 64 pixels, 193 GB at 224. Subsets, such as 100
    classes, are folders of the same layout. Listing a million pictures takes long, so the file
    is not compared with the folders later: delete it to prepare it again.

    Args:
        split: 'train', 'valid' or 'test'.
        folder: contains `train` and `val`; absolute, relative to the home folder (~), or in
            DATA_DIR. Classes are numbered in the order of their names (wnid).
    """

    def __init__(self, split: str, folder: str = "imagenet"):
        self.folder, self.place = folder, Path(folder).expanduser()
        try:
            if not self.place.is_absolute():
                paths.under(paths.DATA_DIR, folder)
        except ValueError as error:
            raise UserError(f"ImageNetDataset.folder: {error}") from None
        super().__init__(split)

    @property
    def stem(self) -> str:
        """`<folder>/data_<res>`; for a folder outside DATA_DIR `imagenet/<hash>/data_<res>`."""
        if not self.place.is_absolute():
            return f"{self.folder}/data_{self.input_res}"
        key = hashlib.sha256(str(self.place).encode()).hexdigest()[:12]
        return f"imagenet/{key}/data_{self.input_res}"

    def source(self) -> Source:
        """All pictures, decoded by several threads; training ones in random order."""
        train, test = pictures(self._part("train")), shuffle(pictures(self._part("val")))
        order = stratified_order(
            class_numbers(train), {"train": len(train), "valid": 0, "test": 0}, 0
        )
        files = [train[row] for row in order] + test
        classes = sorted({picture[1] for picture in train})
        number = {name: index for index, name in enumerate(classes)}
        if strange := sorted({picture[1] for picture in test} - number.keys()):
            listed = ", ".join(strange[:5])
            raise UserError(f"{self._part('val')} has classes that train lacks: {listed}")
        splits = {"train": len(train), "test": len(test)}
        return Source(
            count=len(files),
            images=decode([picture[0] for picture in files], self.input_res),
            targets={"targets": np.array([number[picture[1]] for picture in files], np.int64)},
            splits=splits,
            fit=self.spans(len(files), splits)["train"][1],
            classes=classes,
        )

    def _part(self, name: str) -> Path:
        """Path of `train` or `val`, which must contain a folder of pictures per class."""
        place = paths.DATA_DIR / self.place / name
        if not place.is_dir():
            raise UserError(
                f"ImageNetDataset.folder = '{self.folder}': no folder {place}; expected "
                "train/<wnid>/*.JPEG and val/<wnid>/*.JPEG"
            )
        if not any(entry.is_dir() for entry in place.iterdir()):
            raise UserError(
                f"{place} holds no folders of classes: sort its pictures into {name}/<wnid>/ "
                "(of val by the ground truth in ILSVRC's development kit)"
            )
        return place
