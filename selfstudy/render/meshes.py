"""People's own meshes as a library of shapes: a folder for each class, as ShapeNet has them."""

import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from selfstudy.render.mesh import BUCKETS, Mesh, normalise
from util.errors import UserError, cause

ENDINGS = (".glb", ".obj", ".off", ".ply", ".stl")
MOST_FACES = 500_000  # a second or two a picture
MOST_BYTES = 200_000_000
MOST_CLASSES = 254  # segments are bytes


class Meshes:
    """Files below a folder: its sub-folders are the classes, whatever lies deeper their models.

    Meshes stand with y up and are scaled to a bounding box of diagonal 1; colours and materials
    are not read.

    Args:
        folder: such as ROOT in ROOT/<class>/<model>/models/model_normalized.obj.

    Attributes:
        classes: names of the sub-folders, sorted.

    Raises:
        UserError: no classes, or one with fewer models than there are buckets.
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
        """The number of a file of this class and bucket; they take turns."""
        count = len(self.files[self.classes[label]])
        inside = range(bucket, count, BUCKETS)
        return inside[turn % len(inside)]

    def make(self, label: int, model: int) -> Mesh:
        """That file's mesh.

        Raises:
            UserError: it cannot be read, or is too large.
        """
        return self.kept(self.files[self.classes[label]][model])


def _below(folder: Path) -> list[Path]:
    """All meshes below `folder` by name, empty files and links that lead away left out."""
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
                # Only called, never asked for its class.
                resolver=_NoOtherFiles(),  # pyright: ignore[reportArgumentType]
                process=False,
                skip_materials=True,
            )
            _check_size(path, scene)
            found = scene.to_mesh()
        faces = np.asarray(found.faces, np.int64)
        if faces.min(initial=0) < 0:
            raise ValueError("a face's vertex has a negative number")
        return normalise(Mesh(np.asarray(found.vertices, float), faces))
    except UserError:
        raise
    except Exception as error:  # a reader of strangers' files may raise anything
        raise UserError(f"{path} is not a readable mesh ({cause(error)}): remove it") from None


def _check_size(path: Path, scene: Any) -> None:
    """Before parts are put together: a small file may place one a million times."""
    sizes = {name: len(getattr(part, "faces", ())) for name, part in scene.geometry.items()}
    count = sum(sizes[scene.graph[node][1]] for node in scene.graph.nodes_geometry)
    if count > MOST_FACES:
        raise UserError(f"{path} has {count} faces, expected at most {MOST_FACES}: decimate it")


class _NoOtherFiles:
    """Refuses whatever a file refers to: materials, pictures, buffers of other files."""

    def get(self, name: str) -> Any:
        raise OSError(f"it needs another file, '{name}'")

    __getitem__ = get

    def keys(self) -> list[str]:
        return []

    def namespaced(self, namespace: str) -> "_NoOtherFiles":
        return self
