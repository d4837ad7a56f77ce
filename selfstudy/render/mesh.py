"""Triangle meshes.

Meshes stand like ShapeNet's: y is up, the front looks towards -z, the bounding box lies around
the origin and its diagonal is 1.
"""

from dataclasses import dataclass

import numpy as np

BUCKETS = 12  # disjoint shapes and textures: 10 for training, then one each to validate, test


@dataclass(frozen=True)
class Mesh:
    """Triangles.

    Attributes:
        vertices: [V, 3] float64.
        faces: [F, 3] int64, indices of vertices; either side may face outwards.
    """

    vertices: np.ndarray
    faces: np.ndarray


def normalise(mesh: Mesh) -> Mesh:
    """The mesh moved and scaled: bounding box around the origin, its diagonal 1.

    Only vertices that a face uses count; the others are left out.

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
