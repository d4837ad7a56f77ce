"""Rendered data sets (selfstudy, CVPR 2020): read from DATA_DIR/syn/<choice>."""

import inspect
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import paths
from selfstudy.data.dataset import BaseDataset
from selfstudy.registry import configurable, register
from selfstudy.render import produce, world
from selfstudy.types import DENSE
from util import hdf5
from util.environment import cpus
from util.errors import UserError, nearest
from util.text import clock

CLASSES = 10  # of the published data sets
NOTHING = 99  # class of the background in files of the original layout


@register("dataset")
@configurable(denylist=["split"])
class SynDataset(BaseDataset):
    """Rendered pictures, written by misc/render.py or the original system.

    A variant is four bits (texture, colour, viewpoint, lighting) or 'TCVL-multi'. A missing one
    is rendered at first use with the defaults of `render`, regardless of bindings, so that a
    name always means the same pictures.

    Rendered files have splits of disjoint shapes and textures, of which `num_valid` images at
    most validate and test. In files of the original layout (`data_<res>[_lab].h5`, normalised)
    the first 5/6 train, then `num_valid` validate, and `num_valid` test 1/12 of the data later.

    Args:
        split: 'train', 'valid' or 'test'.
        dataset_choice: folder under DATA_DIR/syn, or a variant: '0010' (also 'xlg0010' and
            'lg0010'), 'TCVL', 'TCVL-multi'.
        use_lab: models get LAB images; otherwise RGB.
        dense: targets for every pixel, of 'segment' (class + 1, 0 is background), 'depth'
            (metres, 0 is no surface) and 'normals' (127 times the unit normal: right, up,
            towards the camera); None is segment and depth with several objects, else none.
        render_images: pictures of a variant that is rendered at first use.
    """

    published = {
        "lab": ((38.44, 3.03, 4.77), (17.42, 9.41, 11.37)),
        "rgb": ((98.12, 89.92, 84.36), (43.95, 42.66, 44.05)),
    }

    def __init__(
        self,
        split: str,
        dataset_choice: str = "lg_3222",
        use_lab: bool = True,
        dense: list[str] | None = None,
        render_images: int = 2400,
    ):
        self.space = "lab" if use_lab else "rgb"
        self.dataset_choice, self.render_images = dataset_choice, render_images
        try:
            paths.under(paths.DATA_DIR / "syn", dataset_choice)
        except ValueError as error:
            raise UserError(f"SynDataset.dataset_choice: {error}") from None
        for name in dense or ():
            if name not in DENSE:
                raise UserError(f"SynDataset.dense: '{name}' is none{nearest(name, DENSE)}")
        self.dense = dense
        super().__init__(split)

    @property
    def stem(self) -> str:
        """`syn/<choice>/data_<res>`."""
        return f"syn/{self.dataset_choice}/data_{self.input_res}"

    # ---- the file --------------------------------------------------------------------------

    def find(self) -> Path:
        """Path of the data file in the folder of this name, else in that of its variant."""
        path, folder = super().find(), paths.DATA_DIR / "syn"
        if path.exists():
            return path
        self.variant = world.configuration(self.dataset_choice)
        if self.dataset_choice == self.variant:
            return path
        if self.variant and not path.parent.exists():
            return folder / self.variant / path.name
        known = sorted(entry.name for entry in folder.glob("*") if entry.is_dir())
        raise UserError(
            f"SynDataset.dataset_choice = '{self.dataset_choice}': {path} is missing (rendered "
            f"when asked for: {', '.join(world.VARIANTS)}; "
            f"known in {folder}: {', '.join(known) or 'none'})"
        )

    def prepare(self) -> None:
        """Render a missing variant; other data files must exist already."""
        if self.path.exists():
            return
        images, res, processes = self.render_images, self.input_res, cpus()
        produce.check(images, res, processes)
        assert self.variant is not None, "`find` refuses a missing file of another name"
        scenes = default_world(self.variant)
        seconds = produce.seconds(scenes.objects, images, res) / processes
        print(f"data set '{self.variant}' is not there: {images} pictures of {res}x{res} are "
              f"rendered now, about {clock(seconds)} with {processes} processes",
              file=sys.stderr, flush=True)  # fmt: skip
        produce.produce(self.path, scenes, images, res, processes)

    def spans(self, total: int, splits: dict | None) -> dict[str, tuple[int, int]]:
        """The file's splits or the published ones; valid and test have at most `num_valid`."""
        if splits:
            train, later = splits["train"], splits["train"] + splits["valid"]
        else:
            train, later = total * 5 // 6, total * 5 // 6 + total // 12
        return {
            "train": (0, train),
            "valid": (train, min(train + self.num_valid, later)),
            "test": (later, min(later + self.num_valid, total)),
        }

    # ---- targets ---------------------------------------------------------------------------

    def fields(self) -> dict[str, str]:
        """Target -> array: the class of a single object, and those of `dense`."""
        arrays = {}
        packed = self._is_packed()
        if hdf5.has(self.path, "targets") and not packed:
            arrays["class"] = "targets"
        for name in self._dense(packed):
            array = "targets" if packed and name != "normals" else name
            if not hdf5.has(self.path, array):
                raise UserError(f"SynDataset.dense: {self.path} has no '{name}'")
            arrays[name] = array
        return arrays

    def conversions(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Conversions of original files of several objects, with all targets in one array."""
        functions = {"segment": _segment, "depth": _depth} if self._is_packed() else {}
        return {
            name: functions[name] for name in self._dense(bool(functions)) if name in functions
        }

    def _is_packed(self) -> bool:
        """Whether 'targets' are images: [N, 3, H, W] with class and depth in the last two."""
        there = hdf5.has(self.path, "targets")
        return there and len(hdf5.locate(self.path, "targets").shape) == 4

    def _dense(self, packed: bool) -> list[str]:
        if self.dense is not None:
            return self.dense
        if packed:
            return ["segment", "depth"]
        several = hdf5.has(self.path, "object_class")
        return [name for name in DENSE[:2] if several and hdf5.has(self.path, name)]

    def _targets(self) -> dict[str, int]:
        dense = {"segment": (len(self.classes) or CLASSES) + 1, "depth": 0, "normals": 0}
        counts = {name: dense[name] for name in dense if name in self.store.fields}
        return super()._targets() | counts


def default_world(variant: str) -> world.World:
    """A variant's world with the defaults of `render`, regardless of bindings."""
    known = inspect.signature(world.World).parameters
    defaults = {name: parameter.default for name, parameter in known.items()}
    return world.World(**defaults | world.settings(variant))


def _segment(targets: Tensor) -> Tensor:
    """Classes [n, H, W] uint8 from original targets [n, 3, H, W]."""
    classes = targets[:, 1]
    return torch.where(classes == NOTHING, 0, classes).to(torch.uint8)


def _depth(targets: Tensor) -> Tensor:
    """Depth [n, H, W] float16 in metres from original targets [n, 3, H, W] in centimetres."""
    return (targets[:, 2].float() / 100).half()
