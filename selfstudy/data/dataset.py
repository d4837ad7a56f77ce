"""Base class of data sets: the prepared file, its splits, the label cut and the blocks.

A subclass names its file and, where we can prepare that file, returns the images in `source`.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

import paths
from selfstudy.data.prepare import Source, balanced_order, fill
from selfstudy.job import DataUse
from selfstudy.registry import configurable
from selfstudy.types import IGNORED, DataInfo, Target
from util import hdf5
from util.errors import UserError, nearest

SPLITS = ("train", "valid", "test")
ROUND_IMAGES = 10000  # few labels are repeated up to about this many images per round ...
ROUND_IMAGES_4000 = 20000  # ... and 4000 labels to this many, as published
POSE_CLASSES = 5
RESERVED = ("images", "data", "class", "targets", "pose")  # names with a fixed meaning


class Store:
    """Rows of a prepared file, memory-mapped or read in blocks.

    Args:
        path: the file.
        fields: column ('images' or a target) -> array in the file.
        computed: columns [N] computed from the file, kept in memory.
        conversions: column -> function applied to its rows at every read.
    """

    def __init__(
        self,
        path: Path,
        fields: dict[str, str],
        computed: dict[str, Tensor],
        conversions: dict[str, Callable[[Tensor], Tensor]] | None = None,
    ):
        self.path, self.fields, self.computed = path, fields, computed
        self.conversions = conversions or {}
        places = {name: hdf5.locate(path, name) for name in fields.values()}
        self.shape = places["data"].shape
        self.dtype = places["data"].dtype
        plain = all(place.offset is not None for place in places.values())
        self.mappable = plain and not self.conversions
        for name, place in places.items():
            if place.shape[0] != self.shape[0]:
                raise UserError(
                    f"{path} holds {self.shape[0]} images but {place.shape[0]} rows of '{name}'"
                )

    def map(self) -> dict[str, Tensor]:
        """Column -> all of its rows [N, ...], memory-mapped where possible."""
        mapped = {key: hdf5.open_map(self.path, name) for key, name in self.fields.items()}
        return {**self._convert(mapped), **self.computed}

    def read(self, rows: np.ndarray, pin: bool = False, threads: int = 1) -> dict[str, Tensor]:
        """Column -> the selected rows [len(rows), ...], copied; see `hdf5.read`."""
        block = {
            key: hdf5.read(self.path, name, rows, pin, threads)
            for key, name in self.fields.items()
        }
        chosen = torch.from_numpy(rows)
        computed = {key: value[chosen] for key, value in self.computed.items()}
        return {**self._convert(block), **computed}

    def _convert(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        return columns | {key: make(columns[key]) for key, make in self.conversions.items()}


class NotPrepared(UserError):
    """The data file is missing and preparing it is not allowed."""


@configurable(denylist=["split"])
class BaseDataset:
    """One split of a data set: its rows in the data file and the order of blocks.

    Construction prepares a missing file. Row numbers are those of the file, the same in every
    split, epoch and run.

    Args:
        split: 'train', 'valid' or 'test'.
        input_res: H == W of the images, in pixels.
        num_valid: images held out for validation, from the end of the training part; a tenth
            of it where they would be more than half. Unused where the data set has a split.
        semisupervised: number of labelled training images to keep; None keeps all.
        double_sample: two independently augmented views of each image.
        predict_pose: adds the target 'pose', for data sets that provide it.
        max_images: images on the device at a time (half as many with `double_sample`); each
            frame of a sample counts.
        chunk_size: contiguous images that stay together when blocks are shuffled.
        remote_loading: ignored, kept for published configurations: with several blocks the
            next one is always prefetched in a thread.
        label_cut: 'balanced' samples the kept images evenly over the classes (without classes,
            over the images), a smaller cut being a subset of a larger one; 'first' takes the
            first ones, as published. Images without any label are never kept.
        label_seed: seed of the balanced cut.
        targets: names of the targets to load; None loads all. A label cut always uses the
            classes.

    Attributes:
        info: `DataInfo` for models and augmentation.
        rows: [n] int64, the rows of this split in the file; repeated where labels are few.
        store: `Store` of the file.
        classes: names of the classes, possibly none.

    Raises:
        UserError: the data are missing or damaged, or an argument does not fit them.
    """

    space: Literal["rgb", "lab"] = "rgb"
    # Colour space -> published (mean, std); default: those stored in the file.
    published: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {}
    frames = 1  # images per sample; if several, they are stored as [N, F, 3, H, W]
    may_prepare = True  # whether a missing data file is prepared; see `allow_preparing`

    def __init__(
        self,
        split: str,
        input_res: int = 32,
        num_valid: int = 5000,
        semisupervised: int | None = None,
        double_sample: bool = False,
        predict_pose: bool = False,
        max_images: int = 50000,
        chunk_size: int = 1000,
        remote_loading: bool = False,
        label_cut: Literal["balanced", "first"] = "balanced",
        label_seed: int = 0,
        targets: list[str] | None = None,
    ):
        if split not in SPLITS:
            raise ValueError(f"split '{split}' is none of {SPLITS}")
        for name, value, least in (
            ("input_res", input_res, 1),
            ("num_valid", num_valid, 0),
            ("max_images", max_images, self.frames * (1 + double_sample)),
            ("chunk_size", chunk_size, 1),
        ):
            if value < least:
                raise UserError(f"BaseDataset.{name} is {value}, expected at least {least}")
        self.split = split
        self.input_res = input_res
        self.num_valid = num_valid
        self.double_sample = double_sample
        self.max_images = max_images // (self.frames * (2 if double_sample else 1))
        self.chunk_size = chunk_size
        self.path = self.find()
        if not (self.may_prepare or self.path.exists()):
            raise NotPrepared(f"{self.path} is made when it is first used")
        self.prepare()
        self.attributes = hdf5.attributes(self.path)
        self.store = self._open(predict_pose, targets)
        self.classes = self.attributes.get("classes", [])
        spans = self.spans(self.store.shape[0], self.attributes.get("splits"))
        self._cut(spans, semisupervised, label_cut, label_seed)
        self.info = self._describe()

    # ---- to be overridden ----------------------------------------------------------------

    @classmethod
    @contextlib.contextmanager
    def allow_preparing(cls, allowed: bool) -> Iterator[None]:
        """Context in which a missing data file is prepared, or raises `NotPrepared`."""
        before, BaseDataset.may_prepare = BaseDataset.may_prepare, allowed
        try:
            yield
        finally:
            BaseDataset.may_prepare = before

    def use(self) -> DataUse:
        """The data file, its hash and description, for a job's `data`."""
        return DataUse(self.path, self.attributes.get("sha256"), self.info)

    @property
    def stem(self) -> str:
        """Path of the data file below DATA_DIR, without suffix."""
        raise NotImplementedError

    def source(self) -> Source:
        """The images to prepare; raises a `UserError` if they are not available."""
        raise NotImplementedError

    def find(self) -> Path:
        """Path of the data file; for LAB an original `_lab` file if there is one."""
        original = paths.under(paths.DATA_DIR, f"{self.stem}_lab.h5")
        if self.space == "lab" and original.exists():
            return original
        return paths.under(paths.DATA_DIR, f"{self.stem}.h5")

    def prepare(self) -> None:
        """Prepare the data file if it is missing."""
        kinds = self.declare()
        if taken := [name for name in kinds if name in RESERVED]:
            raise UserError(f"{type(self).__name__} declares a target '{taken[0]}': rename it")
        hdf5.create(self.path, lambda file: fill(file, self.path, self.source(), kinds))

    def spans(self, total: int, splits: dict | None) -> dict[str, tuple[int, int]]:
        """Split -> (first row, end); the file's own `splits`, else 5/6 train, 1/6 test."""
        sizes = dict(splits or {"train": total - total // 6, "test": total // 6})
        if "valid" not in sizes:
            train = sizes["train"]
            fits = 2 * self.num_valid <= train
            sizes["valid"] = self.num_valid if fits else train // 10
            sizes["train"] -= sizes["valid"]
        ends = np.cumsum([sizes[name] for name in SPLITS]).tolist()
        return dict(zip(SPLITS, zip([0, *ends], ends, strict=False), strict=True))

    def declare(self) -> dict[str, Target]:
        """Target -> its kind, for all but 'class'; the array has the same name.

        Labels [N] in the array 'targets' need no declaration.
        """
        return {}

    def fields(self) -> dict[str, str]:
        """Target -> name of its array in the file."""
        arrays = {"class": "targets"} if hdf5.has(self.path, "targets") else {}
        return arrays | {name: name for name in self.declare()}

    def conversions(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Target -> conversion of its rows, for files of another layout."""
        return {}

    # ---- opening ---------------------------------------------------------------------------

    def _open(self, predict_pose: bool, wanted: list[str] | None) -> Store:
        fields, computed = self.fields(), self._pose() if predict_pose else {}
        if wanted is not None:
            known = [*fields, *computed]
            for name in wanted:
                if name not in known:
                    raise UserError(
                        f"BaseDataset.targets: {self.path} has no '{name}'"
                        f"{nearest(name, known)}"
                    )
            fields = {name: array for name, array in fields.items() if name in wanted}
            computed = {name: column for name, column in computed.items() if name in wanted}
        conversions = {
            name: make for name, make in self.conversions().items() if name in fields
        }
        store = Store(self.path, {"images": "data", **fields}, computed, conversions)
        expected = (3, self.input_res, self.input_res)
        if self.frames > 1:
            expected = (self.frames, *expected)
        if store.shape[1:] != expected:
            raise UserError(
                f"{self.path} holds images {list(store.shape[1:])}, expected {list(expected)}"
                " (BaseDataset.input_res)"
            )
        self._check_shapes()
        lab_file = self.path.stem.endswith("_lab")
        if store.dtype != np.uint8 and self.space == "lab" and not lab_file:
            raise UserError(
                f"{self.path} is already normalised in RGB: LAB needs the file "
                f"{self.path.stem}_lab.h5 beside it, or bytes"
            )
        return store

    def _check_shapes(self) -> None:
        for name, kind in self.declare().items():
            stored = hdf5.locate(self.path, name).shape[1:]
            expected = kind.shape(1, self.input_res, self.input_res)[1:]
            if stored != expected:
                raise UserError(
                    f"{self.path} holds {list(stored)} for each image in '{name}', declared is "
                    f"{list(expected)}: {hdf5.AGAIN}"
                )

    def _pose(self) -> dict[str, Tensor]:
        if not hdf5.has(self.path, "rot_mat"):
            raise UserError(f"BaseDataset.predict_pose: {self.path} has no 'rot_mat'")
        matrices = hdf5.open_map(self.path, "rot_mat")
        if matrices[:1].numel() != 9:
            raise UserError(
                f"BaseDataset.predict_pose: {self.path} has {list(matrices.shape[1:])} in "
                "'rot_mat', expected one rotation [3, 3] for each image"
            )
        return {"pose": pose_classes(matrices)}

    def _cut(self, spans: dict, kept: int | None, how: str, seed: int) -> None:
        """Set `rows`, with the label cut applied, and the number of distinct rows per split."""
        rows = self._split_rows(spans)
        full = len(rows["train"])
        if kept is not None:
            rows["train"] = self._cut_labels(rows["train"], kept, how, seed)
        self.distinct = {name: len(rows[name]) for name in SPLITS}
        self.last_row = int(rows["train"].max(initial=0))
        self.rows = rows[self.split]
        if kept is not None and self.split == "train":
            self.rows = np.tile(self.rows, repeats(kept, full))

    def _split_rows(self, spans: dict) -> dict[str, np.ndarray]:
        """The rows of each split before the label cut."""
        return {name: np.arange(*spans[name]) for name in SPLITS}

    def _cut_labels(self, rows: np.ndarray, kept: int, how: str, seed: int) -> np.ndarray:
        rows = rows[self._has_label(rows)]
        if not 1 <= kept <= len(rows):
            raise UserError(
                f"BaseDataset.semisupervised is {kept}, expected 1 to {len(rows)} "
                "(the training images there are)"
            )
        if how == "first":
            return rows[:kept]
        if how != "balanced":
            raise UserError(f"BaseDataset.label_cut is '{how}', expected 'balanced' or 'first'")
        if not self.fields() and not self.store.computed:
            raise UserError(f"BaseDataset.semisupervised: {self.path} has no labels to balance")
        labels = np.zeros(len(rows), np.int64)  # labels without classes
        if "class" in self.fields():
            labels = hdf5.read(self.path, "targets", rows).numpy()
        return np.sort(rows[balanced_order(labels, seed)[:kept]])

    def _has_label(self, rows: np.ndarray) -> np.ndarray:
        """[n] bool: the class is known or, without classes, part of a declared target is.

        Maps and boxes always count as known: no boxes mean that there is no object.
        """
        if "class" in self.fields():
            return hdf5.read(self.path, "targets", rows).numpy() != IGNORED
        kinds = self.declare()
        if not kinds or any(kind.kind in ("map", "boxes") for kind in kinds.values()):
            return np.ones(len(rows), bool)
        known = np.zeros(len(rows), bool)
        for name, kind in kinds.items():
            values = hdf5.read(self.path, name, rows).flatten(1)
            unknown = values == IGNORED if kind.discrete else values.isnan()
            known |= ~unknown.all(1).numpy()
        return known

    def _describe(self) -> DataInfo:
        stats = self.published.get(self.space)
        mean, std = stats or (self.attributes.get("mean"), self.attributes.get("std"))
        if mean is None or std is None:
            raise UserError(f"{self.path} has no 'mean' and 'std': {hdf5.AGAIN}")
        return DataInfo(
            channels=3,
            input_res=self.input_res,
            space=self.space,
            stored="uint8" if self.store.dtype == np.uint8 else "normalised",
            mean=tuple(mean),
            std=tuple(std),
            rows=self.distinct,
            last_row=self.last_row,
            targets=self._targets(),
            kinds={name: kind for name, kind in self.declare().items()
                   if name in self.store.fields},
            frames=self.frames,
        )  # fmt: skip

    def _targets(self) -> dict[str, int]:
        """Target -> number of classes."""
        known = {}
        if "class" in self.store.fields:
            labels = hdf5.open_map(self.path, "targets")
            known["class"] = len(self.classes) or int(labels.max()) + 1
        if "pose" in self.store.computed:
            known["pose"] = POSE_CLASSES
        declared = self.declare()
        return known | {name: kind.classes for name, kind in declared.items()
                        if name in self.store.fields}  # fmt: skip

    # ---- blocks ----------------------------------------------------------------------------

    @property
    def divisions(self) -> int:
        """Number of blocks in a full pass."""
        return max(1, -(-len(self.rows) // self.max_images))

    def blocks(self, generator: torch.Generator | None) -> list[np.ndarray]:
        """The rows of a full pass, each exactly once, in `divisions` blocks of similar size.

        Args:
            generator: on the CPU; shuffles the chunks when there are several blocks. None
                keeps the order of the file.

        Returns:
            int64 arrays of at most `max_images` rows.
        """
        if self.divisions == 1:
            return [self.rows]
        chunks = np.split(self.rows, range(self.chunk_size, len(self.rows), self.chunk_size))
        if generator is not None:
            order = torch.randperm(len(chunks), generator=generator).tolist()
            chunks = [chunks[index] for index in order]
        return np.array_split(np.concatenate(chunks), self.divisions)


# ---- splits and labels ---------------------------------------------------------------------


def repeats(kept: int, full: int) -> int:
    """How often `kept` rows are repeated, to keep rounds with few labels at a usual length.

    Up to `ROUND_IMAGES` images, but never more than the `full` number of training rows.
    """
    wanted = ROUND_IMAGES_4000 if kept == 4000 else ROUND_IMAGES
    return max(1, min(-(-wanted // kept), full // kept))


def pose_classes(rot_mat: Tensor) -> Tensor:
    """[N] int64 pose classes of rotation matrices [N, 3, 3] (selfstudy, CVPR 2020).

    From the object's up axis, the middle column (x, y, z): class 0 ('top') within pi/8 of the
    vertical; else by its tilt direction atan2(x, y), a quarter turn each: 1 around pi, 2
    around -pi/2, 3 around 0, 4 around pi/2.
    """
    x, y, z = rot_mat.reshape(-1, 3, 3)[:, :, 1].double().unbind(1)
    quarter = torch.pi / 4
    tilt = torch.atan2(x, y)
    side = torch.floor((tilt + 3 * quarter) / (2 * quarter)).long().remainder(4)
    # floor gives 0, 1, 2 from -3pi/4 upwards and 3 beyond 3pi/4 (-1 % 4 below -3pi/4).
    side = torch.tensor([2, 3, 4, 1])[side]
    return torch.where(torch.atan2(torch.hypot(x, y), z) < torch.pi / 8, 0, side)
