"""Random scenes: camera, objects, light and backdrop.

World coordinates are right-handed, z up, in metres. The camera is at (1, 0, .4) and looks
slightly down towards the origin; +y is to the right in the picture. Parameters are those of the
published renderer (Newell & Deng, CVPR 2020) where it has them.
"""

import colorsys
import math
from dataclasses import dataclass, replace

import numpy as np

from selfstudy.render.mesh import Mesh

SCALE = 0.62  # metres, of the diagonal; within the picture at any rotation
SCALE_OF_SEVERAL = 0.45
WARP = 0.1  # standard deviation of each axis' scale, relative
POSE = (math.pi / 2, 0.0, -math.pi / 6)  # Euler angles x, y, z: y-up becomes z-up, then turned
VIEW = 0.5  # standard deviation of the Euler angles, radians
LIGHT_RADIUS, LIGHT_HEIGHT, LIGHT_ANGLE = 1.5, 0.9, -0.5
LIGHT_SPREAD = 2.0  # standard deviation of the light's angle, radians
APART = 0.3  # metres between the centres of several objects
FLOOR, NEAREST, FARTHEST = -0.15, 0.2, -0.9  # z and range of x of several objects, metres
WIDE = 0.26  # lateral offset relative to their distance
MOTION = (0.05, 0.04)  # of a pair's second camera: metres, radians


def euler(angles: tuple[float, float, float] | np.ndarray) -> np.ndarray:
    """Rotation matrix [3, 3] about x, then y, then z (radians)."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def turn(vector: np.ndarray) -> np.ndarray:
    """Rotation matrix of a rotation vector (axis times radians; Rodrigues' formula)."""
    angle = float(np.linalg.norm(vector))
    if angle == 0:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


@dataclass(frozen=True)
class Camera:
    """A pinhole camera with a square picture.

    Attributes:
        position: [3].
        axes: [3, 3], its rows: right, up and backwards (towards the viewer) in the world.
        focal: focal length in widths of the picture (50 mm on 36 mm).
    """

    position: np.ndarray
    axes: np.ndarray
    focal: float = 50 / 36

    def see(self, points: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Column, row (pixels; centres at .5) and depth (metres) of points [..., 3]."""
        right, up, back = np.moveaxis((points - self.position) @ self.axes.T, -1, 0)
        depth = -back
        scale = self.focal * size / depth
        return size / 2 + right * scale, size / 2 - up * scale, depth

    def rays(self, column: np.ndarray, row: np.ndarray, size: int) -> np.ndarray:
        """Ray directions [..., 3] in the world through image points, of depth 1."""
        right = (column / size - 0.5) / self.focal
        up = (0.5 - row / size) / self.focal
        return np.stack([right, up, np.full_like(right, -1)], -1) @ self.axes

    def move(self, motion: np.ndarray) -> "Camera":
        """The camera moved by `motion[:3]` (metres), rotated by `motion[3:]`, in its axes."""
        position = self.position + motion[:3] @ self.axes
        return replace(self, position=position, axes=turn(motion[3:]).T @ self.axes)


CAMERA = Camera(
    np.array([1.0, 0.0, 0.4]), np.round(euler((0.36 * math.pi, 0, math.pi / 2)), 15).T
)


@dataclass(frozen=True)
class Body:
    """An object in a scene.

    Attributes:
        mesh: its shape.
        label, model: class, and the shape's number.
        rotation: [3, 3], mesh axes to world axes (`rot_mat`).
        scale, location: [3] each.
        color: [3], 0..1.
        texture: index, -1 for none.
        tint: weight of the colour in a textured surface.
    """

    mesh: Mesh
    label: int
    model: int
    rotation: np.ndarray
    scale: np.ndarray
    location: np.ndarray
    color: np.ndarray
    texture: int = -1
    tint: float = 0.0

    def vertices(self) -> np.ndarray:
        """[V, 3] in the world."""
        return (self.mesh.vertices * self.scale) @ self.rotation.T + self.location


@dataclass(frozen=True)
class Backdrop:
    """The plane behind the objects, at three times the camera's distance.

    Attributes:
        color: [3], 0..1.
        texture: index, -1 for none.
        offset: [2], of the texture.
        repeats: of the texture per metre.
    """

    color: np.ndarray
    texture: int
    offset: np.ndarray
    repeats: float


@dataclass(frozen=True)
class Scene:
    """Everything that a picture depends on."""

    bodies: tuple[Body, ...]
    backdrop: Backdrop
    light: np.ndarray  # position [3] of the point light
    shine: float  # strength of the highlights
    motion: np.ndarray | None = None  # [6], of the second camera of a pair


@dataclass(frozen=True)
class Factors:
    """Factors of variation: the four bits T, C, V, L."""

    texture: bool
    color: bool
    viewpoint: bool
    lighting: bool

    @classmethod
    def parse(cls, bits: str) -> "Factors":
        """From '1010'; a `ValueError` for anything else."""
        if len(bits) != 4 or set(bits) - set("01"):
            raise ValueError(f"'{bits}' is not four bits")
        return cls(*(bit == "1" for bit in bits))


def class_color(draw: np.random.Generator, label: int, classes: int) -> np.ndarray:
    """A colour [3] of the class's hue; hues are equally spaced."""
    hue, saturation, value = draw.uniform((-0.2, 0.25, 0.4), (0.2, 0.85, 0.95))
    return np.array(colorsys.hsv_to_rgb((label + hue) / classes % 1, saturation, value))


def any_color(draw: np.random.Generator) -> np.ndarray:
    """A colour of any hue, [3]."""
    hue, saturation, value = draw.uniform((0, 0.1, 0.3), (1, 0.9, 0.95))
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value))


def places(draw: np.random.Generator, count: int) -> np.ndarray:
    """Object positions [count, 3]: the origin for one object, else spread over a floor.

    The floor is at height `FLOOR` metres; objects are in view and, if found in a few draws,
    `APART` from each other.
    """
    if count == 1:
        return np.zeros((1, 3))
    draws = draw.uniform((FARTHEST, -1), (NEAREST, 1), (count, 20, 2))
    chosen: list[np.ndarray] = []
    for options in draws:
        ahead = options[:, 0]
        across = options[:, 1] * WIDE * (CAMERA.position[0] - ahead)
        points = np.stack([ahead, across, np.full_like(ahead, FLOOR)], 1)
        gaps = np.array([np.linalg.norm(points - other, axis=1) for other in chosen])
        room = gaps.min(0) if chosen else np.full(len(points), np.inf)
        best = int(np.argmax(room >= APART)) if (room >= APART).any() else int(room.argmax())
        chosen.append(points[best])
    return np.stack(chosen)


def sample(
    draw: np.random.Generator,
    factors: Factors,
    models: list[tuple[int, int, Mesh]],
    textures: np.ndarray | None,
    classes: int,
    pairs: bool = False,
    spread: tuple[float, float] = (VIEW, LIGHT_SPREAD),
) -> Scene:
    """A random scene.

    All parameters are drawn whether their factor is on or off, so that switching one factor
    does not change the rest of the scene.

    Args:
        draw: generator of this picture.
        factors: which factors vary.
        models: class, number and shape of each object.
        textures: indices to choose from; None if `factors.texture` is off.
        classes: number of classes.
        pairs: add a second camera.
        spread: standard deviations of the object's Euler angles and of the light's angle,
            radians, where their factor is on.
    """
    located = places(draw, len(models))
    size = SCALE if len(models) == 1 else SCALE_OF_SEVERAL
    bodies = []
    for (label, model, mesh), location in zip(models, located, strict=True):
        scale = size * np.clip(1 + WARP * draw.standard_normal(3), 0.5, 1.5)
        angles = np.array(POSE) + spread[0] * factors.viewpoint * draw.standard_normal(3)
        fixed, free = class_color(draw, label, classes), any_color(draw)
        texture = draw.random()
        bodies.append(
            Body(
                mesh, label, model, euler(angles), scale, location,
                color=free if factors.color else fixed,
                texture=_pick(textures, texture),
                tint=0.0 if factors.color else 0.4,
            )
        )  # fmt: skip
    angle = LIGHT_ANGLE + spread[1] * factors.lighting * draw.standard_normal()
    around = LIGHT_RADIUS * np.array([math.cos(angle), math.sin(angle)])
    shine = draw.uniform(0.05, 0.3)
    backdrop = Backdrop(
        color=any_color(draw),
        texture=_pick(textures, draw.random()),
        offset=draw.random(2),
        repeats=draw.uniform(0.5, 1.1),
    )
    motion = draw.standard_normal(6) * np.repeat(MOTION, 3)
    return Scene(
        tuple(bodies), backdrop, np.append(around, LIGHT_HEIGHT), shine,
        motion=motion if pairs else None,
    )  # fmt: skip


def _pick(numbers: np.ndarray | None, share: float) -> int:
    return -1 if numbers is None else int(numbers[int(share * len(numbers))])
