"""Fashion-MNIST: 70,000 grey pictures of clothes (Xiao et al., arXiv 1708.07747)."""

import gzip
from pathlib import Path

import numpy as np

import paths
from selfstudy.data.dataset import BaseDataset
from selfstudy.data.prepare import Source, in_blocks, resize
from selfstudy.registry import configurable, register
from util.errors import UserError
from util.fetch import fetch

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # the package dataset-fashion-mnist
URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
# Published MD5 sums; the data file has the same order.
FILES = {
    "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
}
CLASSES = "T-shirt/top Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag Ankle_boot"


@register("dataset")
@configurable(denylist=["split"])
class FashionMNISTDataset(BaseDataset):
    """55,000 train, 5,000 valid (the last of the 60,000) and 10,000 test images.

    Read from DATA_DIR/FashionMNIST/raw (torchvision's layout), Debian's package or a download.

    Args:
        split: 'train', 'valid' or 'test'.
    """

    def __init__(self, split: str):
        super().__init__(split)

    @property
    def stem(self) -> str:
        """`fashion/data_<res>`."""
        return f"fashion/data_{self.input_res}"

    def source(self) -> Source:
        """The four published files; 28 pixels are padded to 32, or resized to other sizes."""
        images, labels, test_images, test_labels = (_read(name) for name in FILES)
        every = np.concatenate([images, test_images])[:, None]
        return Source(
            count=len(every),
            images=in_blocks(every, self._resize),
            targets={"targets": np.concatenate([labels, test_labels])},
            splits={"train": len(images), "test": len(test_images)},
            fit=len(images) - len(images) // 12,  # without the 5,000 validation images
            classes=[name.replace("_", " ") for name in CLASSES.split()],
        )

    def _resize(self, images: np.ndarray) -> np.ndarray:
        if self.input_res == 32:
            images = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2)))
        return resize(images, self.input_res)


def _read(name: str) -> np.ndarray:
    """The array of one IDX file: [N, 28, 28] or [N] uint8."""
    path = _find(name)
    try:
        data = gzip.open(path).read() if path.suffix == ".gz" else path.read_bytes()
        axes = data[3]
        shape = np.frombuffer(data, ">i4", axes, 4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise UserError(f"{path} is no IDX file ({error}): delete or replace it") from None


def _find(name: str) -> Path:
    """Path of the file, which is downloaded if missing."""
    raw = paths.DATA_DIR / "FashionMNIST" / "raw"
    places = [raw / name, raw / f"{name}.gz", DEBIAN / f"{name}.gz"]
    for path in places:
        if path.exists():
            return path
    advice = (
        f"Fashion-MNIST is not in {raw} and could not be downloaded ({{}}): put the four "
        "*-ubyte.gz files there, or apt-get install dataset-fashion-mnist"
    )
    fetch(f"{URL}{name}.gz", places[1], FILES[name], advice)
    return places[1]
