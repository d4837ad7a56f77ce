"""Rendered data sets (selfstudy, CVPR 2020): read from DATA_DIR/syn/<choice>."""

from pathlib import Path

import gin

import paths
from selfstudy.datasets.base import BaseDataset
from selfstudy.registry import register
from util.errors import UserError


@register("dataset")
@gin.configurable(denylist=["split"])
class SynDataset(BaseDataset):
    """First 5/6 train, then `num_valid` valid, and `num_valid` test 1/12 of the data later.

    Reads bytes (RGB) and files of the original layout (`data_<res>[_lab].h5`, normalised).

    Args:
        split: 'train', 'valid' or 'test'.
        dataset_choice: folder under DATA_DIR/syn, such as 'xlg0010'.
        use_lab: models see LAB; otherwise RGB.
    """

    published = {
        "lab": ((38.44, 3.03, 4.77), (17.42, 9.41, 11.37)),
        "rgb": ((98.12, 89.92, 84.36), (43.95, 42.66, 44.05)),
    }

    def __init__(self, split: str, dataset_choice: str = "lg_3222", use_lab: bool = True):
        self.space = "lab" if use_lab else "rgb"
        self.dataset_choice = dataset_choice
        try:
            paths.under(paths.DATA_DIR / "syn", dataset_choice)
        except ValueError as error:
            raise UserError(f"SynDataset.dataset_choice: {error}") from None
        super().__init__(split)

    @property
    def stem(self) -> str:
        """`syn/<choice>/data_<res>`."""
        return f"syn/{self.dataset_choice}/data_{self.input_res}"

    def find(self) -> Path:
        """The data file, which is rendered or downloaded, never made here."""
        path = super().find()
        if path.exists():
            return path
        folder = paths.DATA_DIR / "syn"
        known = sorted(entry.name for entry in folder.glob("*") if entry.is_dir())
        raise UserError(
            f"SynDataset.dataset_choice = '{self.dataset_choice}': {path} is missing "
            f"(known in {folder}: {', '.join(known) or 'none'})"
        )

    def spans(self, total: int, splits: dict | None) -> dict[str, tuple[int, int]]:
        """The published split, cut to what a smaller set holds and never overlapping."""
        start, later = total * 5 // 6, total * 5 // 6 + total // 12
        return {
            "train": (0, start),
            "valid": (start, min(start + self.num_valid, later)),
            "test": (later, min(later + self.num_valid, total)),
        }
