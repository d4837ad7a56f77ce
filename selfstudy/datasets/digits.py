"""The 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn (UCI, 1998)."""

import numpy as np

from selfstudy.data.dataset import BaseDataset
from selfstudy.data.prepare import Source, resize, stratified_order
from selfstudy.registry import configurable, register

SIZES = {"train": 1197, "valid": 300, "test": 300}
BRIGHTEST = 16  # source pixels are 0..16


@register("dataset")
@configurable(denylist=["split"])
class DigitsDataset(BaseDataset):
    """Real images without a download: 1,197 train, 300 valid, 300 test, stratified.

    Args:
        split: 'train', 'valid' or 'test'; the splits are the same on every machine.
    """

    def __init__(self, split: str):
        super().__init__(split)

    @property
    def stem(self) -> str:
        """`digits/data_<res>`."""
        return f"digits/data_{self.input_res}"

    def source(self) -> Source:
        """The digits of scikit-learn as bytes, resized bilinearly."""
        from sklearn.datasets import load_digits

        images, labels = map(np.asarray, load_digits(return_X_y=True))
        rows = stratified_order(labels, SIZES, seed=0)
        pixels = np.rint(images[rows].reshape(-1, 1, 8, 8) * (255 / BRIGHTEST)).astype(np.uint8)
        return Source(
            count=len(rows),
            images=[resize(pixels, self.input_res)],
            targets={"targets": labels[rows]},
            splits=SIZES,
            fit=SIZES["train"],
            classes=[str(digit) for digit in range(10)],
        )
