"""Solids from which the procedural shapes are composed: y is up, the front faces -z.

Each is a loft: a surface through rings of points, closed at both ends.
"""

import math
from collections.abc import Sequence

import numpy as np

from selfstudy.render.mesh import Mesh, normalise

Point = tuple[float, float, float] | np.ndarray
Points = np.ndarray | Sequence[Sequence[float] | np.ndarray]  # [n, 2] or [n, 3]
AXES = {"x": 0, "y": 1, "z": 2}


def circle(sides: int) -> np.ndarray:
    """[sides, 2] points on the unit circle; polygons of few sides stand on an edge."""
    angles = (np.arange(sides) + 0.5) / sides * 2 * math.pi
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def frame(direction: np.ndarray) -> np.ndarray:
    """[2, 3] two unit vectors normal to a direction; the first is horizontal if possible."""
    direction = direction / np.linalg.norm(direction)
    helper = np.array([0.0, 1, 0]) if abs(direction[1]) < 0.95 else np.array([0.0, 0, 1])
    across = np.cross(helper, direction)
    across /= np.linalg.norm(across)
    return np.stack([across, np.cross(direction, across)])


def arc(start: float, end: float, steps: int) -> np.ndarray:
    """[steps, 2] cosines and sines from one angle to another, in degrees."""
    angles = np.radians(np.linspace(start, end, steps))
    return np.stack([np.cos(angles), np.sin(angles)], 1)


class Shape:
    """A list of parts; `mesh` joins them."""

    def __init__(self):
        self.vertices: list[np.ndarray] = []
        self.faces: list[np.ndarray] = []
        self.count = 0

    def mesh(self) -> Mesh:
        """Join all parts to one normalised mesh."""
        return normalise(Mesh(np.concatenate(self.vertices), np.concatenate(self.faces)))

    def add(self, vertices: np.ndarray, faces: np.ndarray) -> None:
        """Add a part: vertices [V, 3] and faces [F, 3]."""
        self.vertices.append(np.asarray(vertices, float))
        self.faces.append(np.asarray(faces, np.int64) + self.count)
        self.count += len(vertices)

    def loft(self, rings: np.ndarray) -> None:
        """Add a surface through rings [n, m, 3] of points, closed at both ends."""
        rings = np.asarray(rings, float)
        n, m = rings.shape[:2]
        at = np.arange((n - 1) * m).reshape(n - 1, m)
        right = np.roll(at, -1, 1)
        faces = [np.stack([at, right, right + m], -1), np.stack([at, right + m, at + m], -1)]
        ends = [n * m, n * m + 1]
        first, last = np.arange(m), np.arange(m) + (n - 1) * m
        caps = [np.stack([np.full(m, ends[0]), np.roll(first, -1), first], -1),
                np.stack([np.full(m, ends[1]), last, np.roll(last, -1)], -1)]  # fmt: skip
        centres = rings[[0, -1]].mean(1)
        self.add(
            np.concatenate([rings.reshape(-1, 3), centres]),
            np.concatenate([part.reshape(-1, 3) for part in (*faces, *caps)]),
        )

    def box(self, low: Point, high: Point, bevel: float = 0.0) -> None:
        """Add a box between two corners, its edges bevelled by `bevel`."""
        (x0, y0, z0), (x1, y1, z1) = low, high
        b = min(bevel, *(0.45 * (t - f) for f, t in zip(low, high, strict=True)))
        if b <= 0:
            ring = np.array([[x0, z0], [x1, z0], [x1, z1], [x0, z1]])
            self.prism(ring, y0, y1)
            return
        ring = np.array([[x0 + b, z0], [x1 - b, z0], [x1, z0 + b], [x1, z1 - b],
                         [x1 - b, z1], [x0 + b, z1], [x0, z1 - b], [x0, z0 + b]])  # fmt: skip
        middle = np.array([(x0 + x1) / 2, (z0 + z1) / 2])
        half = np.array([(x1 - x0) / 2, (z1 - z0) / 2])
        inner = middle + (ring - middle) * (half - b) / half
        heights = [(inner, y0), (ring, y0 + b), (ring, y1 - b), (inner, y1)]
        self.loft(np.stack([np.insert(outline, 1, y, axis=1) for outline, y in heights]))

    def prism(self, outline: np.ndarray, low: float, high: float, axis: str = "y") -> None:
        """Add a convex outline [m, 2] (the two other axes in order) extruded along an axis."""
        at = AXES[axis]
        self.loft(np.stack([np.insert(outline, at, level, axis=1) for level in (low, high)]))

    def beam(self, start: Point, end: Point, width: float, depth: float | None = None) -> None:
        """Add a straight bar of `width` (horizontal) by `depth` between two points."""
        start, end = np.asarray(start, float), np.asarray(end, float)
        across, up = frame(end - start)
        depth = width if depth is None else depth
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2 * [width, depth]
        ring = corners @ np.stack([across, up])
        self.loft(np.stack([start + ring, end + ring]))

    def tube(self, path: Points, radius: float | np.ndarray, sides: int = 6) -> None:
        """Add a tube along points [n, 3], with one radius or one per point."""
        points = np.asarray(path, float)
        steps = np.diff(points, axis=0)
        steps /= np.linalg.norm(steps, axis=1, keepdims=True)
        tangents = np.concatenate([steps[:1], steps[:-1] + steps[1:], steps[-1:]])
        radii = np.broadcast_to(radius, len(points))
        across, _ = frame(tangents[0])
        rings = []
        for place, tangent, size in zip(points, tangents, radii, strict=True):
            tangent = tangent / np.linalg.norm(tangent)
            across = across - (across @ tangent) * tangent  # parallel transport of the frame
            across /= np.linalg.norm(across)
            rings.append(place + size * circle(sides) @ [across, np.cross(tangent, across)])
        self.loft(np.stack(rings))

    def lathe(
        self, profile: Points, centre: Point = (0, 0, 0), sides: int = 14, axis: str = "y"
    ) -> None:
        """Add a solid of revolution: profile [n, 2] of radius and height; axis at `centre`."""
        outline = np.asarray(profile, float)
        at = AXES[axis]
        flat = outline[:, :1, None] * circle(sides)
        rings = np.insert(flat, at, outline[:, 1:], axis=2)
        self.loft(rings + np.asarray(centre, float))

    def disc(
        self, centre: Point, radius: float, thick: float, axis: str, sides: int = 16
    ) -> None:
        """Add a flat cylinder centred at `centre`."""
        half = thick / 2
        self.lathe([[radius, -half], [radius, half]], centre, sides, axis)

    def ball(self, centre: Point, radii: Point, sides: int = 10, steps: int = 6) -> None:
        """Add an ellipsoid."""
        turn = arc(-84, 84, steps)
        rings = np.insert(turn[:, :1, None] * circle(sides), 1, turn[:, 1:], axis=2)
        self.loft(rings * np.asarray(radii, float) + np.asarray(centre, float))

    def ring(
        self, centre: Point, radius: float, thick: float, axis: str = "x", sides: int = 18
    ) -> None:
        """Add a torus around an axis, of major radius `radius` and minor radius `thick`."""
        turn, small = circle(sides), circle(6)
        across = radius + thick * small[:, 0]
        points = np.empty((sides, 6, 3))
        first_axis, second_axis = (index for index in range(3) if index != AXES[axis])
        points[..., first_axis] = turn[:, :1] * across
        points[..., second_axis] = turn[:, 1:] * across
        points[..., AXES[axis]] = thick * small[:, 1]
        at = np.arange(sides * 6).reshape(sides, 6)
        side, ahead = np.roll(at, -1, 1), np.roll(at, -1, 0)
        corner = np.roll(side, -1, 0)
        faces = [np.stack([at, side, corner], -1), np.stack([at, corner, ahead], -1)]
        self.add(points.reshape(-1, 3) + np.asarray(centre, float),
                 np.concatenate(faces).reshape(-1, 3))  # fmt: skip

    def add_mirrored(self, part: "Shape") -> None:
        """Add another shape and its mirror image in x."""
        for vertices, faces in part.parts():
            self.add(vertices, faces)
            self.add(vertices * [-1, 1, 1], faces)

    def parts(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Vertices and faces (counted from 0) of each part."""
        starts = np.cumsum([0, *map(len, self.vertices)])
        return [(vertices, faces - start) for vertices, faces, start
                in zip(self.vertices, self.faces, starts, strict=False)]  # fmt: skip
