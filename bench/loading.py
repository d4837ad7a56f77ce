"""Loading: time to read each byte from HDF5, peak memory, and sharing between trials.

`python -m bench.loading` prints three Markdown tables. The files are in a temporary
folder and cached by the system, so times are processor time, without disk access.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import gin
import h5py
import numpy as np
import torch
from torch import Tensor

import paths
from bench.common import interleave, prepare, table
from selfstudy.data.augment import augment
from selfstudy.data.loader import Loader
from selfstudy.datasets.cifar import CIFARDataset
from util import hdf5

RES, CHUNK, BATCH = 32, 1000, 512
SMALL = 5_000  # images of a trial before its memory is measured
SHARED = 200_000  # images of 3072 bytes: 614 MB
MEETINGS = 4  # barriers in `trial`


def run(quick: bool = False) -> list[tuple]:
    """Rows (what, value, unit, goal) of speed, peak memory and sharing."""
    images = 10_000 if quick else 50_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = speed(folder, images, 3 if quick else 9)
        rows += peak(folder, images)
        return rows + sharing(folder, SHARED // 10 if quick else SHARED, 2 if quick else 8)


# ---- speed ---------------------------------------------------------------------------------


def speed(folder: Path, images: int, repeats: int) -> list[tuple]:
    """Processor time to read all bytes, against the original's implementation."""
    ours, theirs = write(folder / "bytes", images), folder / "half.h5"
    with h5py.File(theirs, "w") as file:
        data = file.create_dataset("data", (images, 3, RES, RES), np.float16)
        for start in range(0, images, CHUNK):
            data[start : start + CHUNK] = np.random.randn(CHUNK, 3, RES, RES)
    rows = np.arange(images)
    block = torch.zeros(images, 3, RES, RES, dtype=torch.uint8)
    ways = {
        "float16, slices of 1000, concatenated": lambda: slices(theirs),
        "bytes, mapped and each touched": lambda: touch(hdf5.open_map(ours, "data")),
        "bytes, read into a new block": lambda: hdf5.read(ours, "data", rows),
        # As with a GPU: torch caches and reuses pinned blocks.
        "bytes, read into a block that is there": lambda: hdf5.read_into(
            block, ours, "data", rows
        ),
    }
    seconds = interleave(ways, repeats)
    reference = seconds[next(iter(ways))]
    timings = [(f"{images} images: {way}", 1000 * s, "ms") for way, s in seconds.items()]
    # No goal for fresh blocks: a CPU maps the file, and pinned memory is reused.
    goals = {way: "" if "new block" in way else " (goal >= 6)" for way in ways}
    ratios = ["", *(f"{reference / s:.1f} times as fast{goals[way]}"
                    for way, s in list(seconds.items())[1:])]  # fmt: skip
    return [(*row, ratio) for row, ratio in zip(timings, ratios, strict=True)]


def slices(path: Path) -> Tensor:
    """The original's implementation: contiguous slices, copied, then concatenated."""
    with h5py.File(path) as file:
        data = file["data"]
        parts = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    return torch.from_numpy(np.concatenate(parts))


def touch(data: Tensor) -> Tensor:
    """Read every byte, eight at a time."""
    return data.view(-1).view(torch.int64).sum()


# ---- memory, in processes of their own -------------------------------------------------------


def peak(folder: Path, images: int) -> list[tuple]:
    """Peak memory of an epoch above that of the imports."""
    write(folder / "peak", images)
    rows = []
    for views in (1, 2):
        (usage,) = measure(1, folder / "peak", views)
        grown = f"{images} images, an epoch, {views} view(s): peak above imports"
        rows.append((grown, usage["peak"], "MB", "goal <= 250"))
    return rows


def sharing(folder: Path, images: int, trials: int) -> list[tuple]:
    """Private memory added by the data to each of several concurrent processes."""
    write(folder / "shared", images)
    usages = measure(trials, folder / "shared", 1)
    size = images * 3 * RES * RES / 1e6
    worst = max(usage["private"] for usage in usages)
    label = f"{trials} processes, {size:.0f} MB of data: most private memory added"
    return [(label, worst, "MB", "goal < 30")]


def measure(trials: int, folder: Path, views: int) -> list[dict[str, float]]:
    """Run `trial` in several concurrent processes; each measures while all are alive."""
    code = "import sys; from bench import loading; loading.trial(sys.argv[1], int(sys.argv[2]))"
    command = [sys.executable, "-c", code, str(folder), str(views)]
    pipe = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=paths.ROOT)
    running = [subprocess.Popen(command, **pipe) for _ in range(trials)]
    for _ in range(MEETINGS):
        lines = [process.stdout.readline() for process in running]
        for process in running:
            process.stdin.write("go on\n")
            process.stdin.flush()
    for process in running:
        process.wait()
    names = ("peak", "private")
    return [dict(zip(names, map(float, line.split()), strict=True)) for line in lines]


def trial(folder: str, views: int) -> None:
    """An epoch over the data in `folder`, without a model; prints peak and private MB.

    The private memory of the data is counted after a pass over a few images, which grows the
    allocator and torch's buffers to their size.
    """
    torch.set_num_threads(1)
    imports = memory("status", "VmRSS")
    gin.bind_parameter("BaseDataset.double_sample", views == 2)
    gin.bind_parameter("BaseDataset.max_images", 10**6)
    paths.DATA_DIR = Path(folder) / "small"
    loader = epoch()
    meet("a few images seen")
    before = private()
    meet("measured")
    paths.DATA_DIR = Path(folder)
    loader = epoch()
    meet("all images seen")
    added = private() - before
    meet(f"{memory('status', 'VmHWM') - imports} {added}")
    del loader


def meet(text: str) -> None:
    """Barrier of all trials: what counts as private depends on the other processes."""
    print(text, flush=True)
    sys.stdin.readline()


def epoch() -> Loader:
    """One pass over the augmented minibatches; returns the loader, which keeps the mapping."""
    data = CIFARDataset("train")
    loader = Loader(data, augment(data.info, True), torch.device("cpu"), BATCH)
    for batch in loader:
        del batch
    return loader


def memory(file: str, field: str) -> float:
    """A field of this process's /proc file, in MB."""
    lines = Path(f"/proc/self/{file}").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(field))


def private() -> float:
    """Private memory of this process, in MB."""
    return memory("smaps_rollup", "Private_Dirty") + memory("smaps_rollup", "Private_Clean")


def write(folder: Path, images: int) -> Path:
    """Write random bytes as CIFAR's data file in `folder`, a few also in `folder`/small."""
    if folder.name != "small":
        write(folder / "small", SMALL)
    path = folder / "cifar" / f"data_{RES}_10.h5"

    def fill(file: h5py.File) -> None:
        data = file.create_dataset("data", (images, 3, RES, RES), np.uint8)
        block = np.frombuffer(os.urandom(CHUNK * 3 * RES * RES), np.uint8)
        for start in range(0, images, CHUNK):
            data[start : start + CHUNK] = block.reshape(CHUNK, 3, RES, RES)
        file["targets"] = np.arange(images) % 10

    hdf5.create(path, fill)
    return path


if __name__ == "__main__":
    print(prepare(), end="\n\n")
    print(table(run(), ("what", "value", "unit", "against")))
