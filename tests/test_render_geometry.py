"""Geometry of rendered scenes against independent ways to the same numbers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from later import Later
from scipy.spatial.transform import Rotation

from selfstudy.data.dataset import pose_classes
from selfstudy.render import shade
from selfstudy.render.mesh import Mesh, normalise
from selfstudy.render.raster import rasterise
from selfstudy.render.scene import (
    CAMERA,
    Backdrop,
    Body,
    Factors,
    Scene,
    euler,
    sample,
    turn,
)
from selfstudy.render.shade import Solids, colour, label
from selfstudy.render.world import flow

trimesh = Later("trimesh")

RES = 48


def mesh(made: trimesh.Trimesh) -> Mesh:
    return normalise(Mesh(np.array(made.vertices), np.array(made.faces)))


@pytest.fixture(scope="module")
def meshes() -> list[Mesh]:
    create = trimesh.creation
    return [mesh(create.icosphere(2)), mesh(create.torus(0.5, 0.2)),
            mesh(create.box((1, 0.5, 0.3))), mesh(create.cone(0.3, 1))]  # fmt: skip


def scene(meshes, seed=0, count=4, pairs=False) -> Scene:
    draw = np.random.default_rng(seed)
    models = [(index, 0, meshes[index % len(meshes)]) for index in range(count)]
    return sample(draw, Factors.parse("0111"), models, None, 10, pairs)


def body(made: Mesh, scale=0.5, location=(0.0, 0, 0), rotation=None) -> Body:
    rotation = np.eye(3) if rotation is None else rotation
    return Body(made, 0, 0, rotation, np.full(3, scale), np.array(location), np.ones(3))


def still(*bodies: Body, light=(1.2, -0.8, 0.9)) -> Scene:
    backdrop = Backdrop(np.full(3, 0.5), -1, np.zeros(2), 1.0)
    return Scene(bodies, backdrop, np.array(light), shine=0.0)


def cast(solids: Solids, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Triangle (-1 for none) and depth at each pixel's centre, by trimesh's ray caster."""
    made = trimesh.Trimesh(
        solids.corners.reshape(-1, 3),
        np.arange(3 * len(solids.corners)).reshape(-1, 3),
        process=False,
    )
    row, column = np.indices((size, size)).reshape(2, -1) + 0.5
    rays = CAMERA.rays(column, row, size)
    origins = np.tile(CAMERA.position, (len(rays), 1))
    caster = trimesh.ray.ray_triangle.RayMeshIntersector(made)
    places, ray, triangle = caster.intersects_location(origins, rays, multiple_hits=True)
    depth = (places - CAMERA.position) @ -CAMERA.axes[2]
    nearest, found = np.full(len(rays), np.inf), np.full(len(rays), -1)
    for index, number, far in zip(ray, triangle, depth, strict=True):
        if far < nearest[index]:
            nearest[index], found[index] = far, number
    return found.reshape(size, size), np.where(found < 0, 0, nearest).reshape(size, size)


@pytest.mark.parametrize("seed", range(3))
def test_labels_agree_with_a_ray_caster(meshes, seed):
    made = scene(meshes, seed)
    solids = Solids.of(made.bodies)
    triangle, depth = cast(solids, RES)
    seen = label(made, CAMERA, RES)
    assert (triangle >= 0).sum() > 200
    assert np.array_equal(seen.body, np.where(triangle < 0, -1, solids.body[triangle]))
    assert np.allclose(seen.depth, depth, atol=1e-9)
    rows = triangle >= 0
    normals = solids.normals[triangle[rows]] @ CAMERA.axes.T
    found = seen.normals[:, rows].T
    assert np.allclose(np.abs((normals * found).sum(1)), 1)
    # Each looks at the camera: against the ray to its pixel.
    row, column = (np.indices((RES, RES)) + 0.5)[:, rows]
    rays = CAMERA.rays(column, row, RES) @ CAMERA.axes.T
    assert ((rays * found).sum(1) <= 1e-12).all()


def test_a_sphere_is_where_the_formula_says():
    radius, centre = 0.3, np.array([0.1, -0.05, 0.02])
    ball = mesh(trimesh.creation.icosphere(5))
    size = radius / np.linalg.norm(ball.vertices[0])
    seen = label(still(body(ball, size, centre)), CAMERA, RES)
    row, column = np.indices((RES, RES)) + 0.5
    rays = CAMERA.rays(column, row, RES)
    unit = rays / np.linalg.norm(rays, axis=2, keepdims=True)
    ahead = unit @ (centre - CAMERA.position)
    rest = radius**2 - (np.sum((centre - CAMERA.position) ** 2) - ahead**2)
    inside = rest > 1e-3 * radius**2  # not at the very edge, where facets differ
    distance = ahead - np.sqrt(np.maximum(rest, 0))
    points = CAMERA.position + unit * distance[..., None]
    normals = np.moveaxis((points - centre) / radius @ CAMERA.axes.T, -1, 0)
    assert inside.sum() > 300
    assert np.array_equal(seen.body[inside], np.zeros(inside.sum()))
    depth = (points - CAMERA.position) @ -CAMERA.axes[2]
    assert np.abs(seen.depth - depth)[inside].max() < 2e-3
    middle = rest > 0.05 * radius**2
    angles = np.degrees(np.arccos((seen.normals * normals).sum(0)[middle].clip(-1, 1)))
    assert angles.max() < 2.5 and seen.normals[2][middle].min() > 0


def test_the_camera_stands_where_the_protocol_puts_it():
    # 50 mm on a 36 mm film at (1, 0, .4), turned by (.36 pi, 0, pi / 2); right is +y.
    turned = Rotation.from_euler("xyz", [0.36 * np.pi, 0, np.pi / 2]).as_matrix()
    assert np.allclose(CAMERA.axes, turned.T)
    edge = CAMERA.position - CAMERA.axes[2] + 0.36 * CAMERA.axes[0]
    assert np.allclose(CAMERA.see(edge, 100), (100, 50, 1))
    column, _, _ = CAMERA.see(np.array([0.0, 0.1, 0.0]), 100)
    _, row, _ = CAMERA.see(np.array([0.0, 0.0, 0.1]), 100)
    assert column > 50 and row < 50


def test_rotations_and_pose_classes_agree_with_scipy():
    draw = np.random.default_rng(0)
    angles = draw.normal(0, 2, (200, 3))
    ours = np.stack([euler(each) for each in angles])
    theirs = Rotation.from_euler("xyz", angles).as_matrix()
    assert np.allclose(ours, theirs)
    assert np.allclose(turn(angles[0]), Rotation.from_rotvec(angles[0]).as_matrix())
    up = Rotation.from_euler("xyz", angles).apply([0, 1, 0])
    tilt = np.degrees(np.arctan2(up[:, 0], up[:, 1]))
    expected = np.select(
        [up[:, 2] > np.cos(np.pi / 8), abs(tilt) >= 135, tilt < -45, tilt < 45], [0, 1, 2, 3], 4
    )
    assert np.array_equal(pose_classes(torch.from_numpy(ours)).numpy(), expected)
    assert len(set(expected.tolist())) == 5


def test_an_upright_mesh_stands_upright_and_large(meshes):
    made = sample(
        np.random.default_rng(1), Factors.parse("0000"), [(0, 0, meshes[3])], None, 10
    )
    (only,) = made.bodies
    assert np.allclose(only.rotation[:, 1], [0, 0, 1])  # no viewpoint: y of the mesh is up
    assert np.allclose(only.location, 0) and 0.35 < only.scale.mean() < 0.75


# ---- z-buffer --------------------------------------------------------------------------------


def test_the_z_buffer_agrees_with_a_loop_over_pixels():
    draw = np.random.default_rng(3)
    x, y = draw.uniform(-5, 25, (2, 40, 3))
    near = draw.uniform(0.1, 1, (40, 3))
    layer = draw.integers(0, 2, 40)
    found, value = rasterise(x, y, near, layer, (2, 18, 20))
    for view, row, column in np.ndindex(2, 18, 20):
        best, which = 0.0, -1
        for index in np.flatnonzero(layer == view):
            sides = np.array([[*x[index]], [*y[index]], [1, 1, 1]])
            share = np.linalg.solve(sides, [column + 0.5, row + 0.5, 1])
            if (share >= 0).all() and share @ near[index] > best:
                best, which = share @ near[index], index
        assert found[view, row, column] == which
        assert value[view, row, column] == pytest.approx(best, rel=1e-6)


def test_neighbouring_triangles_leave_no_gap_and_share_no_pixel():
    # A fan around corners that lie exactly on pixel centres, each triangle drawn alone.
    corners = np.array([[0.5, 0.5], [12.5, 2.5], [16.5, 9.5], [7.5, 15.5], [0.5, 11.5]])
    middle = np.array([6.5, 6.5])
    fan = np.stack([[middle, corners[i], corners[(i + 1) % 5]] for i in range(5)])
    found, _ = rasterise(fan[..., 0], fan[..., 1], np.ones((5, 3)), np.arange(5), (5, 18, 18))
    times = (found >= 0).sum(0)
    assert times.max() == 1
    grid = np.stack(np.indices((18, 18))[::-1], -1) + 0.5
    edges = np.roll(corners, -1, 0) - corners
    to = grid[:, :, None] - corners
    inside = (edges[:, 0] * to[..., 1] - edges[:, 1] * to[..., 0] > 0).all(-1)
    assert (times[inside] == 1).all()


def test_an_empty_scene_is_all_backdrop():
    empty = still()
    seen = label(empty, CAMERA, 16)
    assert (seen.body == -1).all() and not seen.depth.any() and not seen.normals.any()
    assert colour(empty, CAMERA, 16, None).shape == (3, 16, 16)


# ---- light -----------------------------------------------------------------------------------


def test_an_object_in_the_lights_way_darkens_what_is_behind_it():
    wall = mesh(trimesh.creation.box((0.02, 1, 1)))  # upright, faces the camera
    ball = mesh(trimesh.creation.icosphere(3))
    light = np.array([1.2, -0.8, 0.9])
    back = body(wall, 0.7, (-0.2, 0, 0))
    between = body(ball, 0.12, np.array([-0.2, 0, 0]) + 0.3 * (light - [-0.2, 0, 0]))
    alone = colour(still(back, light=light), CAMERA, 64, None).astype(int)
    shaded = colour(still(back, between, light=light), CAMERA, 64, None).astype(int)
    both = label(still(back, between, light=light), CAMERA, 64)
    visible_wall = both.body == 0
    darker = alone.mean(0) - shaded.mean(0)
    column, row, _ = CAMERA.see(np.array([-0.19, 0, 0]), 64)
    assert visible_wall[int(row), int(column)], "the ball must not hide its own shadow"
    assert darker[int(row), int(column)] > 25
    assert np.median(np.abs(darker[visible_wall])) < 2  # the rest of the wall is as it was
    half = (darker > 5) & (darker < 20) & visible_wall
    assert half.any(), "the shadow has a soft edge"


def test_a_convex_object_is_lit_by_the_formula_and_nothing_shades_itself():
    ball = mesh(trimesh.creation.icosphere(4))
    for light in ((0.5, 1.5, 0.2), (0.5, -1.5, 0.2), (1.5, 0, 0.6), (-0.6, 0.3, 1.3)):
        made = still(replace(body(ball), color=np.full(3, 0.5)), light=light)
        seen = label(made, CAMERA, 64)
        normals = np.moveaxis(seen.normals, 0, -1) @ CAMERA.axes
        to_light = np.array(light) - seen.points
        to_light /= np.linalg.norm(to_light, axis=-1, keepdims=True)
        facing = (normals * to_light).sum(-1)
        overhead = normals @ shade.SUN_DIRECTION
        share = shade.AMBIENT + shade.POINT * facing + shade.SUN * overhead.clip(0)
        # Away from edges of the ball and of its own shadow.
        away = np.pad(seen.body, 2, constant_values=-1)
        whole = np.lib.stride_tricks.sliding_window_view(away, (5, 5)).min((2, 3)) == 0
        clear = whole & (facing > 0.2) & (np.abs(overhead) > 0.2)
        found = colour(made, CAMERA, 64, None)[0] / 255
        assert clear.sum() > 40
        error = np.abs(found - 0.5 * share)[clear]
        assert np.median(error) < 0.01 and np.percentile(error, 95) < 0.05, light


# ---- pairs -----------------------------------------------------------------------------------


def test_flow_agrees_with_projection_and_warps_one_picture_onto_the_other(meshes):
    made = scene(meshes, seed=5, pairs=True)
    moved = CAMERA.move(made.motion)
    seen, other = label(made, CAMERA, RES), label(made, moved, RES)
    field = flow(seen, moved)
    on = seen.body >= 0
    assert (field[:, ~on] == 0).all() and np.abs(field[:, on]).max() > 1
    # By homogeneous matrices, instead of `see`.
    matrix = np.array([[50 / 36 * RES, 0, -RES / 2], [0, -50 / 36 * RES, -RES / 2], [0, 0, -1]])
    points = np.column_stack([seen.points[on], np.ones(on.sum())])
    outside = np.column_stack([moved.axes, -moved.axes @ moved.position])
    image = points @ (matrix @ outside).T
    row, column = np.argwhere(on).T + 0.5
    assert np.allclose(field[0][on], image[:, 0] / image[:, 2] - column)
    assert np.allclose(field[1][on], image[:, 1] / image[:, 2] - row)
    # The second picture, looked up along the flow, is the first one.
    first, second = (torch.from_numpy(colour(made, view, RES, None)).double()
                     for view in (CAMERA, moved))  # fmt: skip
    grid = np.indices((RES, RES))[::-1] + 0.5 + field
    places = torch.from_numpy(np.moveaxis(grid / RES * 2 - 1, 0, -1))[None]
    warped = F.grid_sample(second[None], places, align_corners=False)[0]
    there = F.grid_sample(
        torch.from_numpy(other.body + 1.0)[None, None], places, "nearest", align_corners=False
    )[0, 0]
    both = torch.from_numpy(on) & (there == torch.from_numpy(seen.body + 1.0))
    assert both.sum() > 0.8 * on.sum()
    still_there = (first - second).abs()[:, both].mean()
    assert (first - warped).abs()[:, both].mean() < 0.5 * still_there


def test_no_motion_is_no_flow(meshes):
    seen = label(scene(meshes), CAMERA, RES)
    assert np.abs(flow(seen, CAMERA.move(np.zeros(6)))).max() < 1e-9


@pytest.mark.parametrize(
    "faces, vertices",
    [([], [[0, 0, 0]]), ([[0, 0, 0]], [[1, 1, 1]]), ([[0, 1, 2]], np.full((3, 3), np.nan))],
)
def test_what_has_no_extent_is_refused(faces, vertices):
    with pytest.raises(ValueError, match="a mesh needs"):
        normalise(Mesh(np.array(vertices, float), np.array(faces, np.int64).reshape(-1, 3)))
