"""Solids from which the procedural shapes are put together: y is up, the front looks to -z.

Everything is a loft: rings of points joined to a skin, closed at both ends.
"""

import math
from collections.abc import Sequence

import numpy as np

from selfstudy.render.mesh import Mesh, normalise

Point = tuple[float, float, float] | np.ndarray
Points = np.ndarray | Sequence[Sequence[float] | np.ndarray]  # [n, 2] or [n, 3]
AXES = {"x": 0, "y": 1, "z": 2}


def circle(sides: int) -> np.ndarray:
    """[sides, 2] on the unit circle; few-sided ones stand on an edge."""
    angles = (np.arange(sides) + 0.5) / sides * 2 * math.pi
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def frame(direction: np.ndarray) -> np.ndarray:
    """[2, 3] two unit vectors across a direction; the first is level where that can be."""
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
    """Collects parts; `mesh` joins them."""

    def __init__(self):
        self.vertices: list[np.ndarray] = []
        self.faces: list[np.ndarray] = []
        self.count = 0

    def mesh(self) -> Mesh:
        """All parts as one normalised mesh."""
        return normalise(Mesh(np.concatenate(self.vertices), np.concatenate(self.faces)))

    def add(self, vertices: np.ndarray, faces: np.ndarray) -> None:
        """Vertices [V, 3] and faces [F, 3] of a part."""
        self.vertices.append(np.asarray(vertices, float))
        self.faces.append(np.asarray(faces, np.int64) + self.count)
        self.count += len(vertices)

    def loft(self, rings: np.ndarray) -> None:
        """A skin over rings [n, m, 3] of points in the same order, with both ends closed."""
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
        """A box between two corners; `bevel` cuts its edges off."""
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
        self.loft(np.stack([np.insert(each, 1, y, axis=1) for each, y in heights]))

    def prism(self, outline: np.ndarray, low: float, high: float, axis: str = "y") -> None:
        """A convex outline [m, 2] (the two other axes in order) drawn out along an axis."""
        at = AXES[axis]
        self.loft(np.stack([np.insert(outline, at, level, axis=1) for level in (low, high)]))

    def beam(self, start: Point, end: Point, width: float, depth: float | None = None) -> None:
        """A straight bar of `width` (level) by `depth` between two points."""
        start, end = np.asarray(start, float), np.asarray(end, float)
        across, up = frame(end - start)
        depth = width if depth is None else depth
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2 * [width, depth]
        ring = corners @ np.stack([across, up])
        self.loft(np.stack([start + ring, end + ring]))

    def tube(self, path: Points, radius: float | np.ndarray, sides: int = 6) -> None:
        """A round bar along points [n, 3]; the radius may change from point to point."""
        points = np.asarray(path, float)
        steps = np.diff(points, axis=0)
        steps /= np.linalg.norm(steps, axis=1, keepdims=True)
        tangents = np.concatenate([steps[:1], steps[:-1] + steps[1:], steps[-1:]])
        radii = np.broadcast_to(radius, len(points))
        across, _ = frame(tangents[0])
        rings = []
        for place, tangent, size in zip(points, tangents, radii, strict=True):
            tangent = tangent / np.linalg.norm(tangent)
            across = across - (across @ tangent) * tangent  # carried along without twisting
            across /= np.linalg.norm(across)
            rings.append(place + size * circle(sides) @ [across, np.cross(tangent, across)])
        self.loft(np.stack(rings))

    def lathe(
        self, profile: Points, centre: Point = (0, 0, 0), sides: int = 14, axis: str = "y"
    ) -> None:
        """A profile [n, 2] of radius and height turned about an axis through `centre`."""
        outline = np.asarray(profile, float)
        at = AXES[axis]
        flat = outline[:, :1, None] * circle(sides)
        rings = np.insert(flat, at, outline[:, 1:], axis=2)
        self.loft(rings + np.asarray(centre, float))

    def disc(
        self, centre: Point, radius: float, thick: float, axis: str, sides: int = 16
    ) -> None:
        """A flat cylinder around `centre`."""
        half = thick / 2
        self.lathe([[radius, -half], [radius, half]], centre, sides, axis)

    def ball(self, centre: Point, radii: Point, sides: int = 10, steps: int = 6) -> None:
        """An ellipsoid."""
        turn = arc(-84, 84, steps)
        rings = np.insert(turn[:, :1, None] * circle(sides), 1, turn[:, 1:], axis=2)
        self.loft(rings * np.asarray(radii, float) + np.asarray(centre, float))

    def ring(
        self, centre: Point, radius: float, thick: float, axis: str = "x", sides: int = 18
    ) -> None:
        """A torus of `radius`, its own `thick`ness a radius, around an axis."""
        turn, small = circle(sides), circle(6)
        across = radius + thick * small[:, 0]
        points = np.empty((sides, 6, 3))
        one, two = (index for index in range(3) if index != AXES[axis])
        points[..., one] = turn[:, :1] * across
        points[..., two] = turn[:, 1:] * across
        points[..., AXES[axis]] = thick * small[:, 1]
        at = np.arange(sides * 6).reshape(sides, 6)
        side, ahead = np.roll(at, -1, 1), np.roll(at, -1, 0)
        corner = np.roll(side, -1, 0)
        faces = [np.stack([at, side, corner], -1), np.stack([at, corner, ahead], -1)]
        self.add(points.reshape(-1, 3) + np.asarray(centre, float),
                 np.concatenate(faces).reshape(-1, 3))  # fmt: skip

    def add_mirrored(self, part: "Shape") -> None:
        """Another shape twice: as it is, and its mirror image with x turned round."""
        for vertices, faces in part.parts():
            self.add(vertices, faces)
            self.add(vertices * [-1, 1, 1], faces)

    def parts(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Vertices and faces (counted from 0) of each part."""
        starts = np.cumsum([0, *map(len, self.vertices)])
        return [(vertices, faces - start) for vertices, faces, start
                in zip(self.vertices, self.faces, starts, strict=False)]  # fmt: skip
