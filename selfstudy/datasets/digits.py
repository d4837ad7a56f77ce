"""The 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn (UCI, 1998)."""

import numpy as np

from selfstudy.data.dataset import BaseDataset
from selfstudy.data.prepare import Source, resized, stratified
from selfstudy.registry import configurable, register

SIZES = {"train": 1197, "valid": 300, "test": 300}
BRIGHTEST = 16  # the pixels of the source are 0..16


@register("dataset")
@configurable(denylist=["split"])
class DigitsDataset(BaseDataset):
    """Real images that need no download: 1,197 train, 300 valid, 300 test, stratified.

    Args:
        split: 'train', 'valid' or 'test'; the division is the same on every machine.
    """

    def __init__(self, split: str):
        super().__init__(split)

    @property
    def stem(self) -> str:
        """`digits/data_<res>`."""
        return f"digits/data_{self.input_res}"

    def source(self) -> Source:
        """The digits of scikit-learn, scaled up bilinearly and to bytes."""
        from sklearn.datasets import load_digits

        images, labels = map(np.asarray, load_digits(return_X_y=True))
        rows = stratified(labels, SIZES, seed=0)
        pixels = np.rint(images[rows].reshape(-1, 1, 8, 8) * (255 / BRIGHTEST)).astype(np.uint8)
        return Source(
            count=len(rows),
            images=[resized(pixels, self.input_res)],
            targets={"targets": labels[rows]},
            splits=SIZES,
            fit=SIZES["train"],
            classes=[str(digit) for digit in range(10)],
        )
