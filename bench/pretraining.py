"""Pretraining against lightly: images per second, peak memory, share of augmentation.

`python -m bench.pretraining` prints two Markdown tables (needs Fashion-MNIST, prepared if
missing). Both train our narrow ResNet-9 in channels_last memory with the same head,
minibatches, augmentations and number of threads. Lightly's program follows its documentation:
PIL pictures in a DataLoader, its transforms, losses and helpers.
"""

import copy
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead, SimCLRProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import MoCoV2Transform, SimCLRTransform
from PIL import Image
from torch import Tensor, nn

import paths
from bench.common import interleave, prepare, table
from bench.loading import memory
from selfstudy import configure, registry
from selfstudy.data.augment import Augmentation
from selfstudy.data.dataset import BaseDataset
from selfstudy.train.session import Session

GOALS = {"moco": 2.0, "simclr": 1.4}
THREADS, BATCH, QUEUE, HIDDEN, DIMS = 2, 256, 65536, 512, 128  # batch and queue as published
PARAMS = (
    "session.valid_iters = 0", "session.test_iters = 0", "Wrapper.run_classifier = False",
    f"dataloader.batch_size = {BATCH}",
)  # fmt: skip
STRONG = ("augment.photo_jitter = [0.4, 0.4, 0.4, 0.1]", "augment.grayscale = 0.2",
          "augment.blur = True")  # fmt: skip
WAYS = {
    "ours": (0, THREADS),  # workers, threads of torch
    "lightly": (0, THREADS),
    "lightly, one worker": (1, THREADS - 1),
}
WARMUP = 4  # steps for warm-up, not timed


def session(method: str, *params: str) -> Session:
    """A session of `-g fashion/r9/<method>` without probes."""
    registry.discover()
    queue = (f"MoCoModel.queue_size = {QUEUE}",) if method == "moco" else ()
    configure.load(configure.Spec((f"fashion/r9/{method}",), (*PARAMS, *queue, *params)))
    return Session(torch.device("cpu"))


# ---- against lightly, each in processes of their own -----------------------------------------


def run(quick: bool = False) -> list[tuple]:
    """Rows (what, images a second, peak MB, times as fast as that, goal)."""
    steps, repeats = (3, 1) if quick else (8, 3)
    return [row for method in GOALS for row in compare(method, steps, repeats)]


def compare(method: str, steps: int, repeats: int) -> list[tuple]:
    """Compare one method; the implementations are interleaved, with the median of each."""
    runs_by_way: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way in WAYS:
            runs_by_way[way].append(measure(way, method, steps))
    middle = {way: [statistics.median(column) for column in zip(*runs, strict=True)]
              for way, runs in runs_by_way.items()}  # fmt: skip
    speed, peak = middle.pop("ours")
    others = [(f"{method}, {way}", other, most, speed / other, f">= {GOALS[method]}")
              for way, (other, most) in middle.items()]  # fmt: skip
    return [(f"{method}, ours", speed, peak, "", "memory <= lightly's"), *others]


def measure(way: str, method: str, steps: int) -> list[float]:
    """Images per second and peak MB of a training process; see `child`."""
    # Waiting threads sleep: spinning ones would slow all processes on a shared machine.
    env = os.environ | {"OMP_NUM_THREADS": str(WAYS[way][1]), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", "bench.pretraining", way, method, str(steps)]
    output = subprocess.run(
        command, env=env, cwd=paths.ROOT, check=True, text=True, stdout=subprocess.PIPE
    ).stdout
    return [float(item) for item in output.split()[-2:]]


def child(way: str, method: str, steps: int) -> None:
    """Train for `WARMUP` + `steps` minibatches; prints images a second and peak MB.

    Private memory above that of the imports: pages of a mapped file belong to the system's page
    cache, shared between processes.
    """
    workers, threads = WAYS[way]
    torch.set_num_threads(threads)
    registry.discover()
    imports, peak, times = memory("status", "RssAnon"), [0.0], []

    def watch() -> None:
        while True:
            peak[0] = max(peak[0], memory("status", "RssAnon"))
            time.sleep(0.01)

    threading.Thread(target=watch, daemon=True).start()
    train = ours if way == "ours" else lightly
    train(method, WARMUP + steps, workers, lambda *_: times.append(time.perf_counter()))
    print(BATCH * steps / (times[-1] - times[WARMUP - 1]), peak[0] - imports)


def ours(method: str, steps: int, workers: int, tick: Callable) -> None:
    """A round of a session; calls `tick` after each step."""
    session(method, f"session.train_iters = {steps}").round(tick)


def lightly(method: str, steps: int, workers: int, tick: Callable) -> None:
    """A training loop as in lightly's documentation; arguments as in `ours`."""
    source = session(method)  # only for the data and an untrained network
    train = source.loaders["train"]
    module = {"moco": MoCo, "simclr": SimCLR}[method](source.model.backbone.encoder)
    module.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, weight_decay=1e-4)
    pictures = Pictures(train.dataset, views_of(method, train.augmentation))
    loader = torch.utils.data.DataLoader(
        pictures, BATCH, shuffle=True, drop_last=True, num_workers=workers
    )
    del source, train
    for _, views in zip(range(steps), loader, strict=False):
        loss = module(*(view.contiguous(memory_format=torch.channels_last) for view in views))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        tick()


def views_of(method: str, ours: Augmentation) -> Callable:
    """Lightly's transform with our augmentations and strengths for grey pictures."""
    kind = {"moco": MoCoV2Transform, "simclr": SimCLRTransform}[method]
    info, least = ours.info, ours.transforms["resized_crop"].scale[0]
    jitter = ours.transforms["photo_jitter"].strengths
    names = ("cj_bright", "cj_contrast", "cj_sat", "cj_hue")
    scale = {"mean": [v / 255 for v in info.mean], "std": [v / 255 for v in info.std]}
    return kind(
        input_size=info.input_res, min_scale=least, **dict(zip(names, jitter, strict=True)),
        random_gray_scale=0.0, gaussian_blur=0.0, normalize=scale,
    )  # fmt: skip


class Pictures(torch.utils.data.Dataset):
    """PIL pictures of a split, two views of each, grey ones as RGB."""

    def __init__(self, data: BaseDataset, views: Callable):
        rows = torch.from_numpy(data.rows)
        self.images = data.store.map()["images"][rows, 0].numpy()
        self.views = views

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> list[Tensor]:
        return self.views(Image.fromarray(self.images[index]).convert("RGB"))


class SimCLR(nn.Module):
    """SimCLR from lightly's parts."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.head = SimCLRProjectionHead(encoder.out_feats, HIDDEN, DIMS, batch_norm=False)
        self.criterion = NTXentLoss(0.2)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The loss of two views [B, 3, H, W]."""
        z0, z1 = (self.head(self.encoder(view).pooled) for view in (first, second))
        return self.criterion(z0, z1)


class MoCo(nn.Module):
    """MoCo (momentum encoder and memory bank) from lightly's parts."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.head = MoCoProjectionHead(encoder.out_feats, HIDDEN, DIMS)
        self.momentum_encoder = copy.deepcopy(nn.ModuleList((self.encoder, self.head)))
        deactivate_requires_grad(self.momentum_encoder)
        self.criterion = NTXentLoss(0.2, memory_bank_size=(QUEUE, DIMS))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Update the momentum encoder; return the loss of two views [B, 3, H, W]."""
        for leader, copied in zip(
            (self.encoder, self.head), self.momentum_encoder, strict=True
        ):
            update_momentum(leader, copied, 0.99)
        query = self.head(self.encoder(first).pooled)
        encoder, head = self.momentum_encoder
        key = head(encoder(second).pooled).detach()
        return self.criterion(query, key)


# ---- the augmentation's share ----------------------------------------------------------------


def shares(quick: bool = False) -> list[tuple]:
    """Rows (what, milliseconds per minibatch, share, goal) with one thread."""
    settings = {"simclr": (), "simclr, with colour and blur": STRONG, "moco": ()}
    return [row for name, params in settings.items()
            for row in share(name, session(name.split(",")[0], *params), quick)]  # fmt: skip


def share(name: str, trained: Session, quick: bool) -> list[tuple]:
    """Time of data and augmentation relative to the whole step."""
    count = 2 if quick else 6
    model, loader = trained.model.train(), trained.loaders["train"]
    batches = list(loader.batches(count))

    def data() -> None:
        for _ in loader.batches(count):
            pass

    def steps() -> None:
        for batch in batches:
            loss, _ = trained.task.evaluate(batch, model(batch))
            trained.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            trained.optimizer.step()
            model.after_step(0.5)

    seconds = interleave({"data": data, "steps": steps}, 2 if quick else 5)
    total = sum(seconds.values())
    label = f"{name}: data and augmentation, of two-view steps"
    return [(label, 1e3 * seconds["data"] / count, seconds["data"] / total, "<= 0.1")]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        child(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    else:
        header = ("what", "images/s", "peak MB", "ours is so many times as fast", "goal")
        print(f"{prepare().replace('1 thread', f'{THREADS} threads')}", end="\n\n")
        print(table(run(), header), end="\n\n")
        print(table(shares(), ("what", "ms a minibatch", "share", "goal")))
