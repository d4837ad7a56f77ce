"""User meshes as a library of shapes: a folder per class, as in ShapeNet."""

import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from selfstudy.render.mesh import BUCKETS, Mesh, normalise
from util.errors import UserError, cause

ENDINGS = (".glb", ".obj", ".off", ".ply", ".stl")
MOST_FACES = 500_000  # a second or two per picture
MOST_BYTES = 200_000_000
MOST_CLASSES = 254  # segmentation maps are uint8


class Meshes:
    """Mesh files below a folder, whose sub-folders are the classes.

    Meshes have y up and are scaled to a bounding box of diagonal 1; colours and materials are
    ignored.

    Args:
        folder: ROOT of files such as ROOT/<class>/<model>/models/model_normalized.obj.

    Attributes:
        classes: names of the sub-folders, sorted.

    Raises:
        UserError: no classes, or a class with fewer models than buckets.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        inside = sorted(entry for entry in self.folder.iterdir() if entry.is_dir())
        self.files = {entry.name: _below(entry) for entry in inside
                      if not entry.name.startswith(".")}  # fmt: skip
        self.classes = tuple(self.files)
        if not 0 < len(self.classes) <= MOST_CLASSES:
            raise UserError(
                f"{folder} has {len(self.classes)} folders, expected one for each class, "
                f"1 to {MOST_CLASSES}"
            )
        for name, files in self.files.items():
            if len(files) < BUCKETS:
                raise UserError(
                    f"{self.folder / name} holds {len(files)} meshes ({', '.join(ENDINGS)}), "
                    f"expected at least {BUCKETS}: ten to train, one to validate, one to test"
                )
        self.kept = lru_cache(64)(_load)

    def pick(self, label: int, bucket: int, turn: int) -> int:
        """Model number of this class and bucket; `turn` cycles through them."""
        count = len(self.files[self.classes[label]])
        inside = range(bucket, count, BUCKETS)
        return inside[turn % len(inside)]

    def make(self, label: int, model: int) -> Mesh:
        """Load the mesh of a model.

        Raises:
            UserError: the file is unreadable or too large.
        """
        return self.kept(self.files[self.classes[label]][model])


def _below(folder: Path) -> list[Path]:
    """All mesh files below `folder`, sorted, without empty files and links to outside."""
    root = folder.resolve()
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in ENDINGS
        and not path.name.startswith(".")
        and path.is_file()
        and path.stat().st_size
        and path.resolve().is_relative_to(root)
    )


def _load(path: Path) -> Mesh:
    try:
        import trimesh
    except ImportError:
        raise UserError("render.meshes needs trimesh: pip install trimesh") from None
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f"{path} is larger than {MOST_BYTES // 10**6} MB: decimate it")
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")
            scene = trimesh.load_scene(
                file,
                file_type=path.suffix[1:].lower(),
                # trimesh only calls its methods, whatever its class.
                resolver=_NoOtherFiles(),  # pyright: ignore[reportArgumentType]
                process=False,
                skip_materials=True,
            )
            _check_size(path, scene)
            loaded = scene.to_mesh()
        faces = np.asarray(loaded.faces, np.int64)
        if faces.min(initial=0) < 0:
            raise ValueError("a face's vertex has a negative number")
        return normalise(Mesh(np.asarray(loaded.vertices, float), faces))
    except UserError:
        raise
    except Exception as error:  # a parser of arbitrary files may raise any exception
        raise UserError(f"{path} is not a readable mesh ({cause(error)}): remove it") from None


def _check_size(path: Path, scene: Any) -> None:
    """Check before parts are instanced: a small file may contain a million instances."""
    sizes = {name: len(getattr(part, "faces", ())) for name, part in scene.geometry.items()}
    count = sum(sizes[scene.graph[node][1]] for node in scene.graph.nodes_geometry)
    if count > MOST_FACES:
        raise UserError(f"{path} has {count} faces, expected at most {MOST_FACES}: decimate it")


class _NoOtherFiles:
    """Resolver that refuses references to other files: materials, pictures, buffers."""

    def get(self, name: str) -> Any:
        raise OSError(f"it needs another file, '{name}'")

    __getitem__ = get

    def keys(self) -> list[str]:
        return []

    def namespaced(self, namespace: str) -> "_NoOtherFiles":
        return self
