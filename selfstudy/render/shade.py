"""Renders a scene to a picture and its labels.

Visibility is sampled at 2 x 2 positions per pixel, each visible triangle is shaded once, and
the colours are averaged; labels are those of the pixel's centre, not averaged. Surfaces are lit
by a point light, a sun overhead and ambient light, without attenuation. Soft shadows: shadow
maps of five fixed light positions, rasterised together. (Random positions per image would cause
speckle that a network can see.)
"""

from dataclasses import dataclass

import numpy as np

from selfstudy.render.raster import rasterise
from selfstudy.render.scene import CAMERA, Body, Camera, Scene
from selfstudy.render.textures import Bank

SAMPLES = 2  # per side of a pixel, for colours
AMBIENT, SUN, POINT = 0.3, 0.2, 0.75
SUN_DIRECTION = np.array([0.2, -0.15, 1.0]) / np.linalg.norm([0.2, -0.15, 1.0])
SUN_DISTANCE = 30.0  # metres: far enough for nearly parallel light
LIGHT_SIZE = 0.05  # metres, radius of the point light
# The light's centre and the vertices of a tetrahedron around it.
LIGHT_PLACES = np.array([[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
SHADOW_TEXELS = {True: 96, False: 160}  # per side, for one object and for several
GLOSS = 24.0  # exponent of the highlights
REPEATS = 1.6  # of a texture over the diagonal of a mesh
NEAR = 0.05  # metres; closer surfaces are not drawn
BACKDROP = 3.0  # distance of the backdrop behind the origin, relative to the camera's


@dataclass(frozen=True)
class Solids:
    """All triangles of a scene, in world coordinates.

    Attributes:
        corners: [T, 3, 3] metres.
        normals: [T, 3] unit, of arbitrary side; 0 for degenerate triangles.
        body: [T] int64, index of the object.
    """

    corners: np.ndarray
    normals: np.ndarray
    body: np.ndarray

    @classmethod
    def of(cls, bodies: tuple[Body, ...]) -> "Solids":
        """The triangles of these objects."""
        corners = [body.vertices()[body.mesh.faces] for body in bodies]
        joined = np.concatenate([np.empty((0, 3, 3)), *corners])
        normals = np.cross(joined[:, 1] - joined[:, 0], joined[:, 2] - joined[:, 0])
        length = np.linalg.norm(normals, axis=1, keepdims=True)
        normals = np.divide(normals, length, out=np.zeros_like(normals), where=length > 0)
        return cls(joined, normals, np.repeat(np.arange(len(bodies)), list(map(len, corners))))

    def nearest(self, cameras: list[Camera], size: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest triangle and 1 / depth at the pixel centres, [cameras, size, size]."""
        views = [camera.see(self.corners, size) for camera in cameras]
        x, y, depth = (np.concatenate(parts) for parts in zip(*views, strict=True))
        near = 1 / np.maximum(depth, NEAR)
        kept = (depth > NEAR).all(1)
        layer = np.repeat(np.arange(len(cameras)), len(self.corners))
        numbers = np.tile(np.arange(len(self.corners)), len(cameras))[kept]
        hits, near = rasterise(
            x[kept], y[kept], near[kept], layer[kept], (len(cameras), size, size)
        )
        return np.where(hits < 0, -1, np.append(numbers, -1)[hits]), near

    def meet(self, camera: Camera, rays: np.ndarray, triangle: np.ndarray) -> np.ndarray:
        """Depth [n] at which rays [n, 3] of depth 1 intersect the planes of their triangles."""
        normals = self.normals[triangle]
        ahead = ((self.corners[triangle, 0] - camera.position) * normals).sum(1)
        slope = (rays * normals).sum(1)
        return np.divide(ahead, slope, out=np.zeros_like(slope), where=slope != 0)


@dataclass(frozen=True)
class Spots:
    """Surface points to be shaded.

    Attributes:
        points, normals: [n, 3]; normals face the camera.
        albedo: [n, 3], 0..1.
        shine: strength of highlights.
    """

    points: np.ndarray
    normals: np.ndarray
    albedo: np.ndarray
    shine: float


@dataclass(frozen=True)
class Labels:
    """Ground truth at the centre of each pixel.

    Attributes:
        body: [R, R] int64, an object's index or -1.
        depth: [R, R] float64, metres along the optical axis; 0 where no object is.
        normals: [3, R, R] float64, camera axes (right, up, towards the camera); likewise 0.
        points: [R, R, 3] in the world; 0 where no object is.
    """

    body: np.ndarray
    depth: np.ndarray
    normals: np.ndarray
    points: np.ndarray


def label(scene: Scene, camera: Camera, size: int, solids: Solids | None = None) -> Labels:
    """Ground truth of a scene seen by `camera`, `size` pixels wide."""
    solids = solids or Solids.of(scene.bodies)
    ((hits,), _) = solids.nearest([camera], size)
    row, column = np.nonzero(hits >= 0)
    triangle = hits[row, column]
    rays = camera.rays(column + 0.5, row + 0.5, size)
    distance = solids.meet(camera, rays, triangle)
    depth, points, normals = (np.zeros((size, size, *rest)) for rest in ((), (3,), (3,)))
    depth[row, column] = distance
    points[row, column] = camera.position + rays * distance[:, None]
    facing = _towards(solids.normals[triangle], rays)
    normals[row, column] = facing @ camera.axes.T
    body = np.where(hits >= 0, np.append(solids.body, -1)[hits], -1)
    return Labels(body, depth, np.moveaxis(normals, -1, 0), points)


def colour(
    scene: Scene, camera: Camera, size: int, bank: Bank | None, solids: Solids | None = None
) -> np.ndarray:
    """Render the picture, [3, size, size] uint8 RGB."""
    solids = solids or Solids.of(scene.bodies)
    fine = SAMPLES * size
    ((hits,), _) = solids.nearest([camera], fine)
    pixel, triangle, column, row, share = _fragments(hits, size)
    rays = camera.rays(column, row, fine)
    distance = solids.meet(camera, rays, triangle)[:, None]
    points = camera.position + rays * distance
    normals = _towards(solids.normals[triangle], rays)
    albedo = _albedo(scene, solids, triangle, points, bank, distance, size)
    behind = _backdrop(scene, camera, size, bank)
    lights = _lights(scene, solids)
    front = _illuminate(scene, camera, Spots(points, normals, albedo, scene.shine), lights)
    picture = _illuminate(scene, camera, behind, lights)
    covered = np.bincount(pixel, share, size * size)
    picture *= (1 - covered)[:, None]
    for channel in range(3):
        picture[:, channel] += np.bincount(pixel, share * front[:, channel], size * size)
    rounded = (picture.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(rounded.reshape(size, size, 3).transpose(2, 0, 1))


def _towards(normals: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Normals, flipped where they face away from the camera."""
    away = (normals * rays).sum(1, keepdims=True) > 0
    return np.where(away, -normals, normals)


def _fragments(hits: np.ndarray, size: int) -> tuple[np.ndarray, ...]:
    """Unique (pixel, triangle) pairs of the sub-samples.

    Returns:
        Pixel, triangle, mean column and row of its sub-samples (in sub-sample units; the
        position for shading), share of the pixel.
    """
    row, column = np.nonzero(hits >= 0)
    pixel = row // SAMPLES * size + column // SAMPLES
    key = pixel * (hits.max(initial=0) + 1) + hits[row, column]
    order = np.argsort(key, kind="stable")
    key = key[order]
    starts = np.flatnonzero(np.diff(key, prepend=-1))
    counts = np.diff(starts, append=len(key))
    at = order[starts]

    def mean(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values[order], starts) / counts + 0.5 if len(starts) else values

    return (pixel[at], hits[row[at], column[at]], mean(column), mean(row),
            counts / SAMPLES**2)  # fmt: skip


def _albedo(
    scene: Scene, solids: Solids, triangle: np.ndarray, points: np.ndarray,
    bank: Bank | None, depth: np.ndarray, size: int,
) -> np.ndarray:  # fmt: skip
    """Surface colours [n, 3]: plain, or a texture projected from six sides."""
    owner = solids.body[triangle]
    albedo = np.empty((len(owner), 3))
    for index, body in enumerate(scene.bodies):
        mine = np.flatnonzero(owner == index)
        albedo[mine] = body.color
        if body.texture < 0 or bank is None or not len(mine):
            continue
        inside = (points[mine] - body.location) @ body.rotation / body.scale
        across = np.abs((solids.normals[triangle[mine]] @ body.rotation) * body.scale)
        side = across.argmax(1)
        u = np.where(side == 0, inside[:, 2], inside[:, 0])
        v = np.where(side == 1, inside[:, 2], inside[:, 1])
        uv = np.stack([u, -v], 1) * REPEATS
        pixel = depth[mine].mean() / (CAMERA.focal * size)  # metres
        level = _level(REPEATS / body.scale.mean() * pixel * bank.size)
        texels = bank.sample(body.texture, uv, level)
        albedo[mine] = texels * (1 - body.tint) + body.color * body.tint
    return albedo


def _level(texels: float) -> float:
    """Mip level for a pixel that covers `texels` texels."""
    return max(0.0, float(np.log2(max(texels, 1e-9))))


def _backdrop(scene: Scene, camera: Camera, size: int, bank: Bank | None) -> Spots:
    """The backdrop at the centre of every pixel."""
    normal = CAMERA.position / np.linalg.norm(CAMERA.position)
    distance = -BACKDROP * np.linalg.norm(CAMERA.position)
    row, column = (places.ravel() + 0.5 for places in np.indices((size, size)))
    rays = camera.rays(column, row, size)
    depth = (distance - camera.position @ normal) / (rays @ normal)
    points = camera.position + rays * depth[:, None]
    backdrop = scene.backdrop
    albedo = np.broadcast_to(backdrop.color, points.shape)
    if backdrop.texture >= 0 and bank is not None:
        up = np.cross(normal, [0, 1.0, 0])
        uv = np.stack([points[:, 1], -(points @ up)], 1) * backdrop.repeats + backdrop.offset
        pixel = depth.mean() / (camera.focal * size)
        level = _level(backdrop.repeats * pixel * bank.size)
        albedo = bank.sample(backdrop.texture, uv, level)
    return Spots(points, np.broadcast_to(normal, points.shape), albedo, shine=0.0)


# ---- light -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lights:
    """Positions of the light and the sun, with their shadow maps.

    Attributes:
        cameras: one per position, the sun's last; none without objects.
        near: [len(cameras), texels, texels], 1 / depth, 0 for no surface.
        offset: metres by which receivers are moved off their surface (shadow bias).
    """

    cameras: list[Camera]
    near: np.ndarray
    offset: float


def _lights(scene: Scene, solids: Solids) -> Lights:
    if not len(solids.corners):
        return Lights([], np.empty((0, 1, 1)), 0)
    low, high = solids.corners.min((0, 1)), solids.corners.max((0, 1))
    centre, radius = (low + high) / 2, float(np.linalg.norm(high - low) / 2)
    places = scene.light + LIGHT_SIZE / np.sqrt(3) * LIGHT_PLACES
    places = np.vstack([places, centre + SUN_DISTANCE * SUN_DIRECTION])
    cameras = [_aim(place, centre, radius) for place in places]
    texels = SHADOW_TEXELS[len(scene.bodies) == 1]
    return Lights(cameras, solids.nearest(cameras, texels)[1], 1.5 * 2 * radius / texels)


def _aim(place: np.ndarray, centre: np.ndarray, radius: float) -> Camera:
    """A camera whose picture encloses the sphere, or part of it from too near."""
    back = place - centre
    distance = float(np.linalg.norm(back))
    back = back / distance
    helper = np.eye(3)[np.abs(back).argmin()]
    right = np.cross(helper, back)
    right /= np.linalg.norm(right)
    tangent = np.sqrt(max(distance**2 - radius**2, (0.5 * distance) ** 2))
    axes = np.stack([right, np.cross(back, right), back])
    return Camera(place, axes, focal=0.5 * tangent / radius)


def _visible(lights: Lights, spots: Spots) -> np.ndarray:
    """[len(cameras), n] bool: which light positions are visible from which spots."""
    lifted = spots.points + lights.offset * spots.normals
    texels = lights.near.shape[-1]
    reached = np.ones((len(lights.cameras), len(lifted)), bool)
    for index, camera in enumerate(lights.cameras):
        column, row, depth = camera.see(lifted, texels)
        inside = np.flatnonzero(
            (column >= 0) & (column < texels) & (row >= 0) & (row < texels) & (depth > NEAR)
        )
        at = row[inside].astype(np.int64) * texels + column[inside].astype(np.int64)
        reached[index, inside] = lights.near[index].ravel()[at] * depth[inside] <= 1
    return reached


def _illuminate(scene: Scene, camera: Camera, spots: Spots, lights: Lights) -> np.ndarray:
    """Shaded colours [n, 3] of the spots, about 0..1."""
    to_light = scene.light - spots.points
    to_light /= np.linalg.norm(to_light, axis=1, keepdims=True)
    reached = _visible(lights, spots)
    point, sun = (reached[:-1].mean(0), reached[-1]) if len(reached) else (1.0, 1.0)
    facing = np.maximum((spots.normals * to_light).sum(1), 0) * point
    overhead = np.maximum(spots.normals @ SUN_DIRECTION, 0) * sun
    to_camera = camera.position - spots.points
    to_camera /= np.linalg.norm(to_camera, axis=1, keepdims=True)
    half = to_light + to_camera
    half /= np.maximum(np.linalg.norm(half, axis=1, keepdims=True), 1e-9)
    gloss = np.maximum((spots.normals * half).sum(1), 0) ** GLOSS * point
    strength = AMBIENT + POINT * facing + SUN * overhead
    return spots.albedo * strength[:, None] + (gloss * spots.shine)[:, None]
