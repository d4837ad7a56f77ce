"""Rendering: pictures per second, speed-up by workers, memory, and Embree as a reference.

`python -m bench.render` prints three Markdown tables (about four minutes). Files go to a
temporary folder. The texture bank is created first and not timed.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import paths
from bench.common import interleave, prepare, table
from selfstudy.render.scene import CAMERA
from selfstudy.render.shade import Solids, colour, label
from selfstudy.render.world import World

SINGLE = ("1111", 1, 64, 1200)  # factors, objects, pixels, pictures
MULTI = ("1111", 4, 128, 300)
GOALS = {SINGLE: (12_000, 240), MULTI: (3_000, 300)}  # pictures, seconds allowed
FULL = 480_000


def make(settings: tuple, workers: int, folder: Path) -> float:
    """Wall-clock seconds to render a set, including the start of the workers."""
    from selfstudy.render import produce

    factors, objects, res, images = settings
    path = folder / f"{factors}-{objects}-{workers}-{images}.h5"
    path.unlink(missing_ok=True)
    start = time.perf_counter()
    produce.produce(path, World(factors, objects), images, res, workers)
    return time.perf_counter() - start


def speed(folder: Path, repeats: int) -> list[tuple]:
    """Rows of pictures per second with 1 and 2 workers, extrapolated to the goals' sets."""
    rows = []
    for settings in (SINGLE, MULTI):
        times: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(repeats):
            for workers, samples in times.items():
                samples.append(make(settings, workers, folder))
        single, double = (float(np.median(samples)) for samples in times.values())
        factors, objects, res, images = settings
        wanted, limit = GOALS[settings]
        name = f"{objects} object{'s' * (objects > 1)}, {res} x {res}"
        rows += [
            (f"{name}, 1 worker", images / single, 1.0, ""),
            (f"{name}, 2 workers", images / double, single / double, ">= 1.6"),
            (f"{name}, {wanted:,} pictures, s", wanted * double / images, "", f"< {limit}"),
        ]
        if objects == 1:
            hours = FULL * single / images / 3600
            rows.append((f"{name}, {FULL:,} pictures, core hours", hours, "", ""))
    return rows


def embree() -> list[tuple]:
    """Rows of milliseconds per picture: visibility by z-buffer and Embree; whole rendering."""
    import trimesh
    from trimesh.ray.ray_pyembree import RayMeshIntersector

    rows = []
    for factors, objects, res, _ in (SINGLE, MULTI):
        world = World(factors, objects)
        scenes = [world.scene(number) for number in range(20)]
        solids = [Solids.of(scene.bodies) for scene in scenes]
        row, column = np.indices((2 * res, 2 * res)).reshape(2, -1) + 0.5
        rays = CAMERA.rays(column, row, 2 * res)
        origins = np.tile(CAMERA.position, (len(rays), 1))

        def cast(solids=solids, rays=rays, origins=origins) -> None:
            for scene in solids:
                corners = scene.corners.reshape(-1, 3)
                faces = np.arange(len(corners)).reshape(-1, 3)
                mesh = trimesh.Trimesh(corners, faces, process=False)
                RayMeshIntersector(mesh, scale_to_box=False).intersects_first(origins, rays)

        def draw(scenes=scenes, solids=solids, res=res, bank=world.bank) -> None:
            for scene, triangles in zip(scenes, solids, strict=True):
                label(scene, CAMERA, res, triangles)
                colour(scene, CAMERA, res, bank, triangles)

        timings = interleave(
            {
                "z-buffer, visibility": lambda s=solids, r=res: [
                    solid.nearest([CAMERA], 2 * r) for solid in s
                ],
                "Embree, visibility": cast,
                "picture and labels": draw,
            },
            repeats=5,
        )
        base = timings["z-buffer, visibility"]
        for name, seconds in timings.items():
            what = f"{objects} object{'s' * (objects > 1)}, {res} x {res}: {name}"
            rows.append((what, seconds / len(scenes) * 1e3, seconds / base))
    return rows


def peak(folder: Path, images: int) -> float:
    """Peak memory in MB of a process that renders `images` pictures alone."""
    code = (
        "import sys, pathlib; from bench.render import make, SINGLE; "
        "make((*SINGLE[:3], int(sys.argv[2])), 1, pathlib.Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(folder), str(images)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def main() -> None:
    """Print the tables."""
    print(prepare())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths.DATA_DIR.mkdir(parents=True, exist_ok=True)
        _ = World("1111").bank
        header = ("what", "pictures/s or value", "ratio", "goal")
        print("\n" + table(speed(folder, 3), header))
        memory = [(f"{images:,} pictures", peak(folder, images)) for images in (600, 2400)]
        print("\n" + table(memory, ("peak memory, one process", "MB")))
        print("\n" + table(embree(), ("what", "ms a picture", "ratio")))


if __name__ == "__main__":
    main()
