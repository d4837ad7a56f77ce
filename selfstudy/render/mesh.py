"""Triangle meshes.

Orientation as in ShapeNet: y is up, the front faces -z; the bounding box is centred at the
origin with diagonal 1.
"""

from dataclasses import dataclass

import numpy as np

BUCKETS = 12  # disjoint sets of shapes and textures: 10 for training, 1 validation, 1 test


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh.

    Attributes:
        vertices: [V, 3] float64.
        faces: [F, 3] int64, vertex indices; the winding order is arbitrary.
    """

    vertices: np.ndarray
    faces: np.ndarray


def normalise(mesh: Mesh) -> Mesh:
    """Centre the bounding box at the origin and scale its diagonal to 1.

    Vertices without a face are removed.

    Raises:
        ValueError: no faces, no extent, or coordinates that are not finite.
    """
    used, faces = np.unique(mesh.faces, return_inverse=True)
    vertices = np.asarray(mesh.vertices, np.float64)[used]
    if not len(used) or not np.isfinite(vertices).all():
        raise ValueError("a mesh needs faces and finite vertices")
    low, high = vertices.min(0), vertices.max(0)
    size = np.linalg.norm(high - low)
    if size == 0:
        raise ValueError("a mesh needs an extent")
    return Mesh((vertices - (low + high) / 2) / size, faces.reshape(-1, 3))
