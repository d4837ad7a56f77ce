"""Prepare, look at and verify a data set by hand.

    python misc/data.py prepare digits
    python misc/data.py show cifar -g cifar/r9/classify -o cifar.png
    python misc/data.py verify fashion -p 'BaseDataset.input_res = 64'

NAME is a data set's name or its beginning: digits, fashion, cifar, SynDataset, ...
"""

import argparse
import dataclasses
import math
import sys
from collections.abc import Iterable
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
from selfstudy.data.targets import check  # noqa: E402
from selfstudy.evaluate.pictures import PALETTE, displayable  # noqa: E402
from selfstudy.types import IGNORED, DataInfo, Target  # noqa: E402
from util import color, hdf5  # noqa: E402
from util.errors import UserError, nearest, reports_errors  # noqa: E402

LINES, ACROSS = 10, 6  # of the contact sheet: classes, and images of each
TILE, EDGE, LABEL, GAP, LINE = 64, 2, 100, 16, 20  # pixels
BLOCK = 10000  # images looked at together
MAGENTA = (255, 0, 255)
LETTERS = 10  # pixels, height of the text in a picture


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Prepare, look at and verify a data set.")
    parser.add_argument("action", choices=("prepare", "show", "verify"))
    parser.add_argument("name", help="such as digits, fashion, cifar or SynDataset")
    parser.add_argument("-g", "--gin_config", nargs="+", action="extend", default=[],
                        type=extra.gin_name)  # fmt: skip
    parser.add_argument("-p", "--gin_param", nargs="+", action="extend", default=[])
    parser.add_argument("-o", "--output", help="the picture that 'show' writes (NAME.png)")
    return parser.parse_args()


def match_dataset(name: str) -> str:
    """The registered data set that is called or begins like `name`, in any case."""
    known = registry.names("dataset")
    exact = [
        name_known
        for name_known in known
        if name_known.lower() in (name.lower(), f"{name.lower()}dataset")
    ]
    match = exact or [
        name_known for name_known in known if name_known.lower().startswith(name.lower())
    ]
    if len(match) != 1:
        raise UserError(f"no single data set is called '{name}'{nearest(name, known)}")
    return match[0]


# ---- verify --------------------------------------------------------------------------------


def verify(splits: dict[str, BaseDataset]) -> None:
    """Print what the file holds; a `UserError` if its hash or a target's values are wrong."""
    data = splits["train"]
    columns = data.store.map()
    low, high = _range(columns["images"])
    print(f"file     {data.path}")
    print(f"images   {list(data.store.shape)} {data.store.dtype}, {low:g} to {high:g}")
    print(f"models   see {data.info.space}, {data.info.stored}, targets {data.info.targets}")
    for name, split in splits.items():
        print(f"{name:8} {split.info.rows[name]} images{_counts(split, columns)}")
    size = (data.info.input_res, data.info.input_res)
    for name in data.info.targets:
        kind = data.info.kind(name)
        print(f"target   {name} ({kind.kind}): {check(name, kind, columns[name], size)}")
    stored = data.attributes.get("sha256")
    if stored is None:
        print("sha256   none in the file (original layout)")
        return
    digest = hdf5.content_hash(data.path)
    if digest != stored:
        raise UserError(f"{data.path} is damaged (sha256 {digest}, not {stored}): {hdf5.AGAIN}")
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
    """Write a contact sheet: a line a class, training images raw and as a model sees them.

    Frames stand side by side. Targets are drawn on the first few images of a line, as stored
    and, where the data set declares them, as they moved with the augmented image.
    """
    columns, info = data.store.map(), data.info
    lines = _lines(data, columns)
    rows = torch.tensor([row for _, rows_shown in lines for row in rows_shown])
    images = columns["images"][rows]
    targets = {name: info.kind(name).loaded(columns[name][rows]) for name in info.kinds}
    views, moved = _augment_views(info, images, targets)
    frames = images if images.ndim == 5 else images[:, None]
    raw = [frame.numpy() if info.stored == "uint8" else _displayable(frame, info)
           for frame in frames.unbind(1)]  # fmt: skip
    changed = [_displayable(view, info) for view in views]
    ends = np.cumsum([len(rows_shown) for _, rows_shown in lines])[:-1]
    blocks: dict[str, list] = {
        name: np.split(np.concatenate(pictures, -1), ends)
        for name, pictures in (("raw", raw), ("augmented", changed))
    }
    if drawn := [
        known for _, rows_shown in lines if (known := draw_labels(data.path, rows_shown[:2]))
    ]:
        blocks["labels"] = [np.stack(known) for known in drawn]
    starts = [0, *ends.tolist()]
    for name, first, values in (("targets", raw[0], targets), ("moved", changed[0], moved)):
        if values:
            blocks[f"{name}: {_legend(info, values)}"] = [
                _annotate_views(info, first, values, range(at, at + min(2, len(rows_shown))))
                for at, (_, rows_shown) in zip(starts, lines, strict=True)
            ]
    sheet([name for name, _ in lines], blocks, info.input_res).save(path)
    print(f"{path}: {len(rows)} training images: {', '.join(blocks)}")


def _augment_views(
    info: DataInfo, images: Tensor, targets: dict[str, Tensor]
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """A view of each frame, and the declared targets that can move along with it."""
    places = {name: kind for name, kind in info.kinds.items() if kind.moves}
    alone = dataclasses.replace(info, targets=dict.fromkeys(places, 0), kinds=places)
    moving = {name: targets[name] for name in places}
    change = augment(alone, True, transform_targets=bool(places))
    return change(images, moving, torch.Generator().manual_seed(0), 1)


def _displayable(views: Tensor, info: DataInfo) -> np.ndarray:
    return displayable(views, info).transpose(0, 3, 1, 2)


def _lines(data: BaseDataset, columns: dict[str, Tensor]) -> list[tuple[str, list[int]]]:
    """(name, rows) of each line; without labels the first rows of the split."""
    rows = np.unique(data.rows)
    if "class" not in columns:
        parts = np.array_split(rows[: LINES * ACROSS], LINES)
        return [("", part.tolist()) for part in parts if len(part)]
    labels = columns["class"].numpy()[rows]
    names = data.classes or [str(label) for label in range(data.info.targets["class"])]
    examples = [(name, rows[labels == label][:ACROSS]) for label, name in enumerate(names)]
    return [(name, part.tolist()) for name, part in examples if len(part)][:LINES]


# What a rendered file knows of its pixels, as pictures [3, H, W] of bytes.


def draw_labels(path: Path, rows: list[int]) -> list[np.ndarray]:
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


# What a data set declares, drawn on its images.


def _annotate_views(
    info: DataInfo, images: np.ndarray, targets: dict[str, Tensor], chosen: range
) -> list[np.ndarray]:
    """Pictures [3, h, w] of images [n, 3, H, W]: places and numbers on one, a map on each."""
    kinds = {name: info.kind(name) for name in targets}
    maps = [name for name, kind in kinds.items() if kind.kind == "map"]
    pictures = []
    for row in chosen:
        if len(maps) < len(kinds):
            values = {name: value[row] for name, value in targets.items()}
            pictures.append(annotate(images[row], info, values))
        pictures += [colourize(kinds[name], targets[name][row].numpy()) for name in maps]
    return pictures


def _legend(info: DataInfo, names: Iterable[str]) -> str:
    """Which targets the pictures of an image show, in their order."""
    maps = [name for name in names if info.kind(name).kind == "map"]
    first = " ".join(name for name in names if name not in maps)
    return " | ".join([first] * bool(first) + maps)


def annotate(image: np.ndarray, info: DataInfo, values: dict[str, Tensor]) -> np.ndarray:
    """One image, enlarged, with its key points and boxes; labels and numbers as text."""
    scale = max(1, TILE // image.shape[-1])
    large = image.transpose(1, 2, 0).repeat(scale, 0).repeat(scale, 1)
    picture = Image.fromarray(large)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(LETTERS)
    for name, value in values.items():
        if info.kind(name).moves:
            _mark(draw, info.kind(name).kind, value, scale)
    texts = [_text(info.kind(name), value) for name, value in values.items()
             if not info.kind(name).moves]  # fmt: skip
    top = picture.height - 1 - (LETTERS + 2) * len(texts)
    for line, text in enumerate(texts):
        draw.text((1, top + (LETTERS + 2) * line), text, "white", font,
                  stroke_width=1, stroke_fill="black")  # fmt: skip
    return np.asarray(picture).transpose(2, 0, 1)


def _mark(draw: ImageDraw.ImageDraw, kind: str, value: Tensor, scale: int) -> None:
    """Draw key points as dots and boxes as frames, on an image enlarged `scale` times."""
    if kind == "points":
        for number, (x, y) in enumerate((value * scale).tolist()):
            if not math.isnan(x):
                spot = (x - 3, y - 3, x + 3, y + 3)
                draw.ellipse(spot, fill=_tone(number), outline="white")
    elif kind == "boxes":
        for left, top, right, bottom, label in value.tolist():
            if not math.isnan(label):
                edges = (scale * left, scale * top, scale * right - 1, scale * bottom - 1)
                draw.rectangle(edges, outline=_tone(int(label)), width=2)


def _tone(number: int) -> tuple[int, ...]:
    """A colour of the palette; black, its first, is left out."""
    return tuple(PALETTE[1 + number % (len(PALETTE) - 1)].tolist())


def _text(kind: Target, value: Tensor) -> str:
    """Labels that hold as their numbers, other values as they are; '?' is unknown."""
    if kind.kind == "labels":
        numbers = [
            f"{k}?" if v == IGNORED else str(k) for k, v in enumerate(value.tolist()) if v
        ]
        return ",".join(numbers) or "none"
    flat = value.reshape(-1)[:3].tolist()
    return " ".join("?" if v != v or v == IGNORED else f"{v:.3g}" for v in flat)


def colourize(kind: Target, values: np.ndarray) -> np.ndarray:
    """A map as bytes [3, H, W]: classes by the palette, numbers grey, flow as hue and strength.

    What is unknown is magenta. Of several channels without a meaning the mean is shown.
    """
    if kind.vectors == "normals":
        return directions(values, values * (127 if values.dtype.kind == "f" else 1))
    layer = values[0] if kind.channels and kind.classes else values
    if kind.classes:
        colours, unknown = PALETTE[layer % len(PALETTE)].transpose(2, 0, 1), layer == IGNORED
    elif kind.vectors == "flow":
        colours, unknown = _wheel(values.astype(float)), np.isnan(values).any(0)
    else:
        layer = values.astype(float).mean(0) if kind.channels else values.astype(float)
        unknown = np.isnan(layer)
        known = layer[~unknown]
        low, high = (known.min(), known.max()) if len(known) else (0, 1)
        grey = (255 * (np.nan_to_num(layer) - low) / max(high - low, 1e-6)).clip(0, 255)
        colours = np.broadcast_to(grey.astype(np.uint8), (3, *layer.shape))
    return np.where(unknown, np.array(MAGENTA, np.uint8).reshape(3, 1, 1), colours)


def _wheel(flow: np.ndarray) -> np.ndarray:
    """Displacements [2, H, W]: the hue is the direction (red to the right), white is none."""
    x, y = np.nan_to_num(flow)
    length = np.hypot(x, y)
    strength = torch.from_numpy(length / max(float(length.max()), 1e-6))
    turns = torch.from_numpy(np.arctan2(y, x) / (2 * np.pi))
    red = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).view(1, 3, 1, 1)
    hues = color.shift_hue(red.expand(1, 3, *x.shape), turns[None])[0]
    return (255 * (1 - strength * (1 - hues))).round().clamp(0, 255).byte().numpy()


def sheet(names: list[str], blocks: dict[str, list], res: int) -> Image.Image:
    """The picture; `blocks` holds headings and, for each line, pictures [3, h, w] of bytes."""
    tile = res * max(1, TILE // res)
    widths = {heading: _pitch(lines, tile) for heading, lines in blocks.items()}
    across = {
        heading: max(ACROSS, *(len(images) for images in lines))
        for heading, lines in blocks.items()
    }
    lefts = np.cumsum([LABEL] + [across[name] * widths[name] + GAP for name in blocks]).tolist()
    page = Image.new("RGB", (lefts[-1] - GAP, LINE + len(names) * (tile + EDGE)), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for line, name in enumerate(names):
        draw.text((4, LINE + line * (tile + EDGE) + tile // 2 - 8), name[:16], "black", font)
    for left, (heading, lines) in zip(lefts, blocks.items(), strict=False):
        draw.text((left, 3), heading, "black", font)
        for line, images in enumerate(lines):
            for column, image in enumerate(images):
                picture = Image.fromarray(image.transpose(1, 2, 0).copy())
                size = (widths[heading] - EDGE, tile)
                picture = picture.resize(size, Image.Resampling.NEAREST)
                top = LINE + line * (tile + EDGE)
                page.paste(picture, (left + column * widths[heading], top))
    return page


def _pitch(lines: list, tile: int) -> int:
    """Pixels from one picture to the next; frames side by side make it a multiple."""
    _, height, width = lines[0][0].shape
    return tile * width // height + EDGE


@reports_errors
def main() -> None:
    """Run the chosen action under the given configuration."""
    arguments = _arguments()
    registry.discover()
    name = match_dataset(arguments.name)
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
