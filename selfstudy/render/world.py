"""A world: the pictures of a rendered data set, each determined by its number.

Picture `number` is in bucket `number % 12` and uses shapes and textures of that bucket only:
ten twelfths are for training, one each for validation and test on unseen ones. Classes are
equally frequent in a bucket, in random order, and a shape is used in `REUSE` pictures of its
class, as in the published sets.
"""

import dataclasses
import hashlib
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import paths
from selfstudy.registry import configurable
from selfstudy.render import patterns
from selfstudy.render import textures as texture_banks
from selfstudy.render.mesh import BUCKETS
from selfstudy.render.meshes import Meshes
from selfstudy.render.scene import CAMERA, LIGHT_SPREAD, VIEW, Camera, Factors, Scene, sample
from selfstudy.render.shade import Labels, Solids, colour, label
from selfstudy.render.shapes import Procedural
from util.errors import UserError
from util.files import given_folder

VERSION = 1  # to be increased when pictures change
SEVERAL = 4  # objects in a scene of the '-multi' sets
REUSE = 10  # pictures of a class that show the same shape
MULTI = "TCVL-multi"
VARIANTS = ("0000", "1000", "0100", "0010", "0001", "1100", "0110", "0101", "0111", "1110",
            "1011", "1111", MULTI)  # fmt: skip
PIXEL_LABELS = ("instance", "segment", "depth", "normals")


def configuration(name: str) -> str | None:
    """The variant of a name; None for other names.

    Any four bits are allowed, also unpublished ones: '0010', 'xlg0010' and 'lg0010'
    are '0010', 'TCVL' is '1111', 'TCVL-multi' is itself.
    """
    if name == MULTI:
        return name
    bits = "1111" if name == "TCVL" else name[-4:]
    known = len(bits) == 4 and not set(bits) - set("01") and name[:-4] in ("", "xlg", "lg")
    return bits if known or name == "TCVL" else None


def settings(variant: str) -> dict[str, Any]:
    """Arguments of `World` for a variant, as named by `configuration`."""
    if variant == MULTI:
        return {"factors": "1111", "objects": SEVERAL}
    return {"factors": variant, "objects": 1}


@configurable("render")
class World:
    """The pictures of a rendered set.

    Args:
        factors: four bits: texture, colour, viewpoint, lighting. Off: plain surfaces, a hue per
            class, a fixed viewpoint, a fixed light.
        objects: per scene.
        seed: of the scenes; shapes and textures are the same in every set.
        pairs: add a second picture with a moved camera, its motion and the optical flow.
        labels: which dense labels to store.
        meshes: folder with a folder of meshes per class, instead of the ten classes.
        textures: folder of pictures, instead of the procedural textures.
        view_spread: standard deviation of an object's Euler angles with the factor on, radians.
        light_spread: standard deviation of the light's angle with the factor on, radians.
        grey: plain colours are grey, as in the published code.

    Attributes:
        classes: names, in the order of the labels.

    Raises:
        UserError: a value is out of range.
    """

    def __init__(
        self,
        factors: str = "1111",
        objects: int = 1,
        seed: int = 0,
        pairs: bool = False,
        labels: list[str] | tuple[str, ...] = PIXEL_LABELS,
        meshes: str | None = None,
        textures: str | None = None,
        view_spread: float = VIEW,
        light_spread: float = LIGHT_SPREAD,
        grey: bool = False,
    ):
        try:
            self.factors = Factors.parse(factors)
        except ValueError as error:
            raise UserError(f"render.factors: {error}, such as '1010'") from None
        for name, value, least, most in (
            ("objects", objects, 1, 100),
            ("seed", seed, 0, 2**63),
        ):
            if not least <= value <= most:
                raise UserError(f"render.{name} = {value}: expected {least} to {most}")
        if strange := set(labels) - set(PIXEL_LABELS):
            raise UserError(
                f"render.labels: no labels are called {', '.join(sorted(strange))}; expected "
                f"some of {', '.join(PIXEL_LABELS)}"
            )
        self.objects, self.seed, self.pairs, self.grey = objects, seed, pairs, grey
        self.labels = tuple(name for name in PIXEL_LABELS if name in labels)
        self.meshes, self.textures = meshes, textures
        self.spread = (view_spread, light_spread)
        if textures and not self.factors.texture:
            raise UserError(
                f"render.textures = '{textures}': factors '{factors}' have no textures"
            )

    @cached_property
    def library(self) -> Meshes | Procedural:
        """The library of shapes."""
        return Meshes(_folder("meshes", self.meshes)) if self.meshes else Procedural()

    @cached_property
    def bank(self) -> texture_banks.Bank | None:
        """The textures; None for plain surfaces. Procedural ones are cached in a file."""
        if not self.factors.texture:
            return None
        if self.textures:
            folder = _folder("textures", self.textures)
            return texture_banks.from_folder(folder, paths.DATA_DIR / "syn")
        return texture_banks.procedural(paths.DATA_DIR / "syn")

    def __getstate__(self) -> dict:
        """Pickled without shapes and textures: another process creates its own."""
        return {
            key: value for key, value in vars(self).items() if key not in ("library", "bank")
        }

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.library.classes

    def recipe(self) -> dict:
        """Everything that determines a picture's bytes, as plain values."""
        bits = dataclasses.astuple(self.factors)
        return {
            "renderer": [VERSION, patterns.VERSION],
            "factors": "".join(str(int(bit)) for bit in bits),
            "objects": self.objects,
            "seed": self.seed,
            "pairs": self.pairs,
            "labels": list(self.labels),
            "meshes": self.meshes and _listing(_folder("meshes", self.meshes)),
            "textures": self.textures and _listing(_folder("textures", self.textures)),
            "spread": list(self.spread),
            "grey": self.grey,
        }

    # ---- one picture -----------------------------------------------------------------------

    def models(self, number: int) -> list[tuple[int, int]]:
        """Class and shape of each object of picture `number`."""
        turn, bucket = divmod(number, BUCKETS)
        classes, models = len(self.classes), []
        for slot in range(turn * self.objects, (turn + 1) * self.objects):
            block, place = divmod(slot, classes)
            order = np.random.default_rng([self.seed, bucket, block, classes])
            chosen = int(order.permutation(classes)[place])
            models.append((chosen, self.library.pick(chosen, bucket, block // REUSE)))
        return models

    def scene(self, number: int) -> Scene:
        """The scene of picture `number`."""
        models = [(*model, self.library.make(*model)) for model in self.models(number)]
        numbers = self.bank.numbers(number % BUCKETS) if self.bank else None
        draw = np.random.default_rng([self.seed, number])
        scene = sample(
            draw, self.factors, models, numbers, len(self.classes), self.pairs, self.spread
        )
        return _make_grey(scene) if self.grey else scene

    def arrays(self, res: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of every array of `picture`, by name."""
        several = (self.objects,) if self.objects > 1 else ()
        wide = (res, res)
        kept = {
            "data": ((3, *wide), "uint8"),
            ("object_class" if several else "targets"): (several, "int64"),
            "model": (several, "int64"),
            "rot_mat": ((*several, 3, 3), "float32"),
            "scale": ((*several, 3), "float32"),
            "location": ((*several, 3), "float32"),
            "bbox": ((*several, 2, 3), "float32"),
            "box": ((*several, 4), "int16"),
            "color": ((*several, 3), "uint8"),
            "texture": (several, "int64"),
            "light": ((3,), "float32"),
            "back_color": ((3,), "uint8"),
            "back_texture": ((), "int64"),
        }
        per_pixel = {
            "instance": (wide, "uint8"),
            "segment": (wide, "uint8"),
            "depth": (wide, "float16"),
            "normals": ((3, *wide), "int8"),
        }
        kept |= {name: per_pixel[name] for name in self.labels}
        if self.pairs:
            kept["data_next"] = ((3, *wide), "uint8")
            kept["flow"] = ((2, *wide), "float16")
            kept["camera_motion"] = ((6,), "float32")
        return {name: (shape, np.dtype(kind)) for name, (shape, kind) in kept.items()}

    def picture(self, number: int, res: int) -> dict[str, np.ndarray]:
        """Render picture `number`, `res` pixels wide, with its labels; see `arrays`."""
        scene = self.scene(number)
        solids = Solids.of(scene.bodies)
        seen = label(scene, CAMERA, res, solids)
        values = _of_objects(scene, seen)
        values["data"] = colour(scene, CAMERA, res, self.bank, solids)
        classes = np.array([0, *(body.label + 1 for body in scene.bodies)])
        values["instance"] = seen.body + 1
        values["segment"] = classes[seen.body + 1]
        values["depth"] = seen.depth
        values["normals"] = np.rint(seen.normals * 127)
        if scene.motion is not None:
            moved = CAMERA.move(scene.motion)
            values["data_next"] = colour(scene, moved, res, self.bank, solids)
            values["flow"] = flow(seen, moved)
            values["camera_motion"] = scene.motion
        arrays = {}
        for name, (shape, kind) in self.arrays(res).items():
            arrays[name] = np.asarray(values[name]).astype(kind).reshape(shape)
        return arrays


def flow(seen: Labels, camera: Camera) -> np.ndarray:
    """Optical flow (right, down) from one camera to another.

    Args:
        seen: labels of the first camera.
        camera: the second one.

    Returns:
        [2, R, R] float64 pixels; 0 without an object. Points occluded in the second view have
        flow, too.
    """
    size = len(seen.body)
    row, column = np.indices(seen.body.shape) + 0.5
    there = camera.see(seen.points, size)
    moved = np.stack([there[0] - column, there[1] - row])
    return np.where(seen.body >= 0, moved, 0)


def _of_objects(scene: Scene, seen: Labels) -> dict[str, Any]:
    """The arrays with one entry per object or picture."""
    bodies = scene.bodies
    shown = [body.vertices() for body in bodies]
    labels = [body.label for body in bodies]
    return {
        "targets": labels,
        "object_class": labels,
        "model": [body.model for body in bodies],
        "rot_mat": [body.rotation for body in bodies],
        "scale": [body.scale for body in bodies],
        "location": [body.location for body in bodies],
        "bbox": [(points.min(0), points.max(0)) for points in shown],
        "box": [_box(seen.body == index) for index in range(len(bodies))],
        "color": [np.rint(body.color * 255) for body in bodies],
        "texture": [body.texture for body in bodies],
        "light": scene.light,
        "back_color": np.rint(scene.backdrop.color * 255),
        "back_texture": scene.backdrop.texture,
    }


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the pixels of a mask, the last two exclusive."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _make_grey(scene: Scene) -> Scene:
    def grey(color: np.ndarray) -> np.ndarray:
        return np.repeat(color[:1], 3)

    bodies = tuple(dataclasses.replace(b, color=grey(b.color)) for b in scene.bodies)
    backdrop = dataclasses.replace(scene.backdrop, color=grey(scene.backdrop.color))
    return dataclasses.replace(scene, bodies=bodies, backdrop=backdrop)


def _folder(name: str, place: str) -> Path:
    return given_folder(f"render.{name}", place, paths.DATA_DIR)


def _listing(folder: Path) -> str:
    """A hash of the names and sizes of all files below a folder."""
    entries = [
        (os.path.relpath(os.path.join(place, name), folder),
         os.path.getsize(os.path.join(place, name)))
        for place, _, names in os.walk(folder) for name in names
    ]  # fmt: skip
    return hashlib.sha256(repr(sorted(entries)).encode()).hexdigest()
