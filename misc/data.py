"""Prepare, look at and verify a data set by hand.

    python misc/data.py prepare digits
    python misc/data.py show cifar -g cifar/r9/classify -o cifar.png
    python misc/data.py verify fashion -p 'BaseDataset.input_res = 64'

NAME is a data set's name or its beginning: digits, fashion, cifar, SynDataset, ...
"""

import argparse
import dataclasses
import sys
from pathlib import Path

# A file of the user's folder that is named like one of our modules must not win.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402
from torch import Tensor  # noqa: E402

from selfstudy import configure, extra, registry  # noqa: E402
from selfstudy.data.augment import augment  # noqa: E402
from selfstudy.data.dataset import SPLITS, BaseDataset  # noqa: E402
from selfstudy.evaluate.pictures import seen  # noqa: E402
from selfstudy.types import DataInfo  # noqa: E402
from util import hdf5  # noqa: E402
from util.errors import UserError, nearest, reports_errors  # noqa: E402

LINES, ACROSS = 10, 6  # of the contact sheet: classes, and images of each
TILE, EDGE, LABEL, GAP, LINE = 64, 2, 100, 16, 20  # pixels
BLOCK = 10000  # images looked at together
MAGENTA = (255, 0, 255)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Prepare, look at and verify a data set.")
    parser.add_argument("action", choices=("prepare", "show", "verify"))
    parser.add_argument("name", help="such as digits, fashion, cifar or SynDataset")
    parser.add_argument("-g", "--gin_config", nargs="+", action="extend", default=[],
                        type=extra.gin_name)  # fmt: skip
    parser.add_argument("-p", "--gin_param", nargs="+", action="extend", default=[])
    parser.add_argument("-o", "--output", help="the picture that 'show' writes (NAME.png)")
    return parser.parse_args()


def chosen(name: str) -> str:
    """The registered data set that is called or begins like `name`, in any case."""
    known = registry.names("dataset")
    exact = [each for each in known if each.lower() in (name.lower(), f"{name.lower()}dataset")]
    found = exact or [each for each in known if each.lower().startswith(name.lower())]
    if len(found) != 1:
        raise UserError(f"no single data set is called '{name}'{nearest(name, known)}")
    return found[0]


# ---- verify --------------------------------------------------------------------------------


def verify(splits: dict[str, BaseDataset]) -> None:
    """Print what the file holds; a `UserError` if its hash tells of damage."""
    data = splits["train"]
    columns = data.store.map()
    low, high = _range(columns["images"])
    print(f"file     {data.path}")
    print(f"images   {list(data.store.shape)} {data.store.dtype}, {low:g} to {high:g}")
    print(f"models   see {data.info.space}, {data.info.stored}, targets {data.info.targets}")
    for name, split in splits.items():
        print(f"{name:8} {split.info.rows[name]} images{_counts(split, columns)}")
    stored = data.attributes.get("sha256")
    if stored is None:
        print("sha256   none in the file (original layout)")
        return
    found = hdf5.content_hash(data.path)
    if found != stored:
        raise UserError(f"{data.path} is damaged (sha256 {found}, not {stored}): {hdf5.AGAIN}")
    print(f"sha256   {stored} ok")


def _range(images: Tensor) -> tuple[float, float]:
    """Smallest and largest value; NaN, if there is one, is both."""
    extremes = [torch.aminmax(block) for block in images.split(BLOCK)]
    low = torch.stack([extreme.min for extreme in extremes]).min()
    return float(low), float(torch.stack([extreme.max for extreme in extremes]).max())


def _counts(split: BaseDataset, columns: dict[str, Tensor]) -> str:
    if "class" not in columns:
        return ""
    labels = columns["class"][torch.from_numpy(np.unique(split.rows))].long()
    labels = labels[labels >= 0]  # without those of images that have none
    counts = torch.bincount(labels, minlength=split.info.targets["class"])
    return f", of each class: {' '.join(map(str, counts.tolist()))}"


# ---- show ----------------------------------------------------------------------------------


def show(data: BaseDataset, path: Path) -> None:
    """Write a contact sheet: a line a class, training images raw and as a model sees them."""
    columns = data.store.map()
    lines = _lines(data, columns)
    rows = torch.tensor([row for _, found in lines for row in found])
    images = columns["images"][rows]
    generator = torch.Generator().manual_seed(0)
    alone = dataclasses.replace(data.info, targets={})  # labels do not come along here
    (views,), _ = augment(alone, True)(images, {}, generator, 1)
    raw = images.numpy() if data.info.stored == "uint8" else _seen(images, data.info)
    ends = np.cumsum([len(found) for _, found in lines])[:-1]
    blocks = {"raw": np.split(raw, ends), "augmented": np.split(_seen(views, data.info), ends)}
    if drawn := [known for _, found in lines if (known := labelled(data.path, found[:2]))]:
        blocks["labels"] = [np.stack(known) for known in drawn]
    sheet([name for name, _ in lines], blocks, data.info.input_res).save(path)
    print(f"{path}: {len(rows)} training images: {', '.join(blocks)}")


def _seen(views: Tensor, info: DataInfo) -> np.ndarray:
    return seen(views, info).transpose(0, 3, 1, 2)


def _lines(data: BaseDataset, columns: dict[str, Tensor]) -> list[tuple[str, list[int]]]:
    """(name, rows) of each line; without labels the first rows of the split."""
    rows = np.unique(data.rows)
    if "class" not in columns:
        parts = np.array_split(rows[: LINES * ACROSS], LINES)
        return [("", part.tolist()) for part in parts if len(part)]
    labels = columns["class"].numpy()[rows]
    names = data.classes or [str(label) for label in range(data.info.targets["class"])]
    found = [(name, rows[labels == label][:ACROSS]) for label, name in enumerate(names)]
    return [(name, part.tolist()) for name, part in found if len(part)][:LINES]


# What a rendered file knows of its pixels, as pictures [3, H, W] of bytes.


def labelled(path: Path, rows: list[int]) -> list[np.ndarray]:
    """Outlines, depth and normals of each row, as far as the file has them."""
    draw = {"instance": outlines, "depth": nearness, "normals": directions}
    pictures = []
    for row in rows:
        read = {name: hdf5.read(path, name, np.array([row]))[0].numpy()
                for name in ("data", *draw) if hdf5.has(path, name)}  # fmt: skip
        pictures += [draw[name](read["data"], read[name]) for name in draw if name in read]
    return pictures


def outlines(image: np.ndarray, instance: np.ndarray) -> np.ndarray:
    """The image with the outermost pixels of each object in magenta."""
    edge = np.zeros(instance.shape, bool)
    for axis in (0, 1):
        swapped, differs = edge.swapaxes(0, axis), np.diff(instance.astype(int), axis=axis) != 0
        swapped[1:] |= differs.swapaxes(0, axis)
        swapped[:-1] |= differs.swapaxes(0, axis)
    edge &= instance > 0
    return np.where(edge, np.array(MAGENTA, np.uint8).reshape(3, 1, 1), image)


def nearness(image: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Depth, the nearest white, the farthest dark; black where there is none."""
    there = depth > 0
    known = depth[there].astype(float)
    low, high = (known.min(), known.max()) if len(known) else (0, 1)
    shade = 255 - 200 * (depth.astype(float) - low) / max(high - low, 1e-6)
    return np.broadcast_to(np.where(there, shade, 0).astype(np.uint8), image.shape)


def directions(image: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Normals: red is to the right, green up, blue towards the camera."""
    return (normals.astype(int) + 127).astype(np.uint8)


def sheet(names: list[str], blocks: dict[str, list[np.ndarray]], res: int) -> Image.Image:
    """The picture; `blocks` holds headings and, for each line, images [n, 3, H, W] of bytes."""
    tile = res * max(1, TILE // res)
    pitch = tile + EDGE
    wide = ACROSS * pitch
    size = (LABEL + len(blocks) * (wide + GAP) - GAP, LINE + len(names) * pitch)
    page = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for line, name in enumerate(names):
        draw.text((4, LINE + line * pitch + tile // 2 - 8), name[:16], "black", font)
    for block, (heading, lines) in enumerate(blocks.items()):
        left = LABEL + block * (wide + GAP)
        draw.text((left, 3), heading, "black", font)
        for line, images in enumerate(lines):
            for column, image in enumerate(images):
                picture = Image.fromarray(image.transpose(1, 2, 0).copy())
                picture = picture.resize((tile, tile), Image.Resampling.NEAREST)
                page.paste(picture, (left + column * pitch, LINE + line * pitch))
    return page


@reports_errors
def main() -> None:
    """Run the chosen action under the given configuration."""
    arguments = _arguments()
    registry.discover()
    name = chosen(arguments.name)
    configure.load(configure.Spec(tuple(arguments.gin_config), tuple(arguments.gin_param)))
    make = registry.get("dataset", name)
    if arguments.action == "verify":
        verify({split: make(split) for split in SPLITS})
        return
    data = make("train")
    if arguments.action == "show":
        show(data, Path(arguments.output or f"{arguments.name}.png"))
    else:
        print(f"{data.path}: {data.info.rows} images, {data.info.targets}")


if __name__ == "__main__":
    main()
