"""Save what frozen networks make of images, and how well a linear classifier reads it.

    python misc/save_network_output.py -e EXP/name --get_feats --train_lr
    python misc/save_network_output.py -e EXP --train_lr --data_amts 1000 all --include_test
    python misc/save_network_output.py -e EXP -p 'session.dataset = "CIFARDataset"' --train_lr

Each snapshot is read under its own configuration and on its own data, unless -g and -p name
others. The files go into the snapshot's folder.
"""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A file of the user's folder that is named like one of our modules must not win.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

from selfstudy import configure, extra, registry  # noqa: E402
from selfstudy.data.dataset import SPLITS, BaseDataset  # noqa: E402
from selfstudy.evaluate import features, logistic  # noqa: E402
from selfstudy.evaluate.encoder import Encoder, Pixels  # noqa: E402
from selfstudy.storage import checkpoints, snapshot  # noqa: E402
from selfstudy.storage.snapshot import Snapshot  # noqa: E402
from util.errors import UserError, cause, printable, reports_errors  # noqa: E402
from util.text import table  # noqa: E402

AMOUNTS = [100, 250, 1000, 4000, 16000, 50000]  # labelled images, as published
DENSE_AMOUNTS = [100, 250, 1000, 4000]
TRAIN_PIXELS, HELD_PIXELS = 50000, 5000  # positions of feature maps, as published
HELD_IMAGES = 1000  # from which those of validation and test are drawn
BLOCK = 256  # images whose targets are read together
# All labels, regardless of a snapshot's label cut, and each image once.
WHOLE = "\nBaseDataset.semisupervised = None\nBaseDataset.double_sample = False\n"


def _amount(text: str) -> int | str:
    if text != "all" and not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"'{text}' is no number of labels, nor 'all'")
    return text if text == "all" else int(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Save features of frozen networks, and linear classifiers of them."
    )
    add = parser.add_argument
    add("-e", "--exp_id", required=True,
        help="EXP/name of a snapshot or trial, or EXP for all of its snapshots")  # fmt: skip
    add("-g", "--gin_config", nargs="+", action="extend", default=[], type=extra.gin_name,
        help="files below config/gin that say which data; later ones win")  # fmt: skip
    add("-p", "--gin_param", nargs="+", action="extend", default=[],
        help="gin bindings for the data, which win over files")  # fmt: skip
    add("-d", "--device", help="where to compute, such as cpu or cuda:1")
    add("--get_feats", action="store_true", help="write network_output.pt: features and labels")
    add(
        "--train_lr", action="store_true", help="write fc_N.pt: logistic regression of N labels"
    )
    add("--data_amts", nargs="+", type=_amount, metavar="N",
        help="numbers of labelled images, or 'all'")  # fmt: skip
    add("--dense", action="store_true", help="segmentation: of positions of the feature map")
    add("--baselines", action="store_true",
        help="with --train_lr, too: the first one's pixels and untrained network")  # fmt: skip
    add("--include_test", action="store_true", help="the test split, too")
    args = parser.parse_args()
    if not args.get_feats and not args.train_lr:
        raise UserError("nothing to do: add --get_feats, --train_lr or both")
    if args.baselines and (args.dense or not args.train_lr):
        raise UserError("--baselines needs --train_lr, and there are none for --dense")
    return args


def snapshots(name: str) -> list[str]:
    """The names of the snapshots that `-e` stands for; of a trial the newest."""
    names = [checkpoints.short_name(folder) for folder in
             _below(checkpoints.under_experiments(name))]  # fmt: skip
    return names or [name]


def _below(folder: Path) -> list[Path]:
    if checkpoints.is_snapshot(folder) or checkpoints.checkpoints(folder):
        return [folder]
    return [
        folder_below
        for child in checkpoints.subfolders(folder)
        for folder_below in _below(child)
    ]


@dataclass
class ProbeData:
    """What a linear classifier is trained on and tried on.

    Attributes:
        saved: for `network_output.pt`, tensor by name.
        examples: number of labelled images -> features [n, D] and their classes [n].
        held: split -> the same, for trying.
        images: labelled training images there are.
        classes: K.
    """

    saved: dict[str, Tensor]
    examples: Callable[[int], tuple[Tensor, Tensor]]
    held: dict[str, tuple[Tensor, Tensor]]
    images: int
    classes: int


def datasets(snap: Snapshot, args: argparse.Namespace) -> tuple[dict[str, BaseDataset], int]:
    """The splits that hold images, and the seed of their label cut."""
    spec = configure.Spec(tuple(args.gin_config), tuple(args.gin_param))
    with configure.isolate(snap.config + WHOLE, f"{snap.name}/config.gin", spec):
        make = registry.get("dataset", configure.value("session", "dataset"))
        data = {split: make(split) for split in SPLITS if split != "test" or args.include_test}
        seed = configure.value("BaseDataset", "label_seed")
    return {split: item for split, item in data.items() if len(item.rows)}, seed


def of_images(
    encoder: Encoder | Pixels, data: dict[str, BaseDataset], seed: int, args: argparse.Namespace
) -> ProbeData:
    """One embedding and one class an image."""
    saved: dict[str, Tensor] = {}
    held: dict[str, tuple[Tensor, Tensor]] = {}
    rows = {split: np.unique(item.rows) for split, item in data.items()}
    labels: dict[str, Tensor] = {}  # split -> class of every image
    chosen: dict[str, Tensor] = {}  # split -> positions in `rows` whose features are computed
    for split, item in data.items():
        has_classes = args.train_lr or "class" in item.info.targets
        if has_classes:
            labels[split] = saved[f"{split}_class"] = logistic.labels(item, rows[split])
        else:
            labels[split] = torch.full((len(rows[split]),), features.IGNORED)
        chosen[split] = _choose_images(labels[split], split, seed, args)
        used = rows[split][chosen[split].numpy()]
        values = features.table(encoder, item, rows=used).layer()
        saved |= {f"{split}_features": values, f"{split}_rows": torch.from_numpy(used)}
        held[split] = values, labels[split][chosen[split]]
    train_values, train_classes = held.pop("train")

    def examples(amount: int) -> tuple[Tensor, Tensor]:
        subset = logistic.balanced(labels["train"], amount, seed)
        at = torch.searchsorted(chosen["train"], subset)
        return train_values[at], train_classes[at]

    images = int(torch.count_nonzero(labels["train"] != features.IGNORED))
    return ProbeData(saved, examples, held, images, data["train"].info.targets.get("class", 0))


def _choose_images(labels: Tensor, split: str, seed: int, args: argparse.Namespace) -> Tensor:
    """[m] int64, rising: the images of a split whose features are needed."""
    if args.get_feats:
        return torch.arange(len(labels))
    labelled = torch.nonzero(labels != features.IGNORED)[:, 0]
    if split != "train":
        return labelled
    return logistic.balanced(labels, max(amounts(args, len(labelled))), seed)


def of_pixels(
    encoder: Encoder, data: dict[str, BaseDataset], seed: int, args: argparse.Namespace
) -> ProbeData:
    """A feature and a class at each position of the last feature map."""
    train = data["train"]
    if "segment" not in train.info.targets:
        raise UserError(f"{train.path} has no segmentation: leave --dense out")
    rows = np.unique(train.rows)
    classes = torch.zeros(len(rows), dtype=torch.int64)  # where there are none, any image does
    if "class" in train.info.targets:
        classes = logistic.labels(train, rows)
    images = int((classes != features.IGNORED).sum())
    pool = logistic.balanced(classes, max(amounts(args, images)), seed)
    chosen = {"train": rows[pool]}
    for split in data.keys() - {"train"}:
        others = np.unique(data[split].rows)
        order = np.random.RandomState(seed).permutation(len(others))
        chosen[split] = others[np.sort(order[:HELD_IMAGES])]
    saved, held = {}, {}
    for split, item in data.items():
        maps = features.table(encoder, item, ("dense",), chosen[split]).layer("dense")
        truth = segments(item, chosen[split], maps.shape[2:])
        every = torch.arange(len(maps))
        saved |= {f"{split}_features": maps, f"{split}_segment": truth,
                  f"{split}_rows": torch.from_numpy(chosen[split])}  # fmt: skip
        held[split] = features.pixels(maps, truth, every, HELD_PIXELS, seed)
    held.pop("train")

    def examples(amount: int) -> tuple[Tensor, Tensor]:
        cut = torch.searchsorted(pool, logistic.balanced(classes, amount, seed))
        maps, truth = saved["train_features"], saved["train_segment"]
        return features.pixels(maps, truth, cut, TRAIN_PIXELS, seed)

    return ProbeData(saved, examples, held, images, train.info.targets["segment"])


def segments(data: BaseDataset, rows: np.ndarray, size: torch.Size) -> Tensor:
    """[n, h, w] int64: the class at the nearest pixel, as probes are trained."""
    parts = []
    for start in range(0, len(rows), BLOCK):
        truth = data.store.read(rows[start : start + BLOCK])["segment"]
        parts.append(F.interpolate(truth[:, None].float(), tuple(size))[:, 0].long())
    return torch.cat(parts)


def amounts(args: argparse.Namespace, images: int) -> list[int]:
    """The numbers of labelled images, rising; of the default ones those that there are."""
    if not args.data_amts:
        usual = DENSE_AMOUNTS if args.dense else AMOUNTS
        return [amount for amount in usual if amount <= images] or [images]
    wanted = {images if amount == "all" else amount for amount in args.data_amts}
    if images and max(wanted) > images:
        raise UserError(f"--data_amts {max(wanted)}: there are {images} labelled images")
    return sorted(wanted)


def process(name: str, args: argparse.Namespace, device: torch.device | None) -> list[dict]:
    """Write the files of one snapshot; returns lines of the table."""
    snap = snapshot.resolve(name)
    encoder = Encoder(snap, device)
    data, seed = datasets(snap, args)
    probe_data = (of_pixels if args.dense else of_images)(encoder, data, seed, args)
    suffix = "_dense" if args.dense else ""
    lines: list[dict] = []
    if args.get_feats:
        path = snap.folder / f"network_output{suffix}.pt"
        save(probe_data.saved, path)
        counts = {split: len(probe_data.saved[f"{split}_rows"]) for split in data}
        lines.append({"snapshot": snap.name, "file": path.name, **counts})
    return lines + (train_classifiers(snap, probe_data, suffix, args) if args.train_lr else [])


def train_classifiers(
    snap: Snapshot, probe_data: ProbeData, suffix: str, args: argparse.Namespace
) -> list[dict]:
    """A classifier for each number of labels, beside the snapshot; lines of the table."""
    lines: list[dict] = []
    for amount in amounts(args, probe_data.images):
        path = snap.folder / f"fc{suffix}_{amount}.pt"
        accuracy = train(probe_data, amount, path)
        lines.append({"snapshot": snap.name, "file": path.name, **accuracy})
    return lines


def baselines(name: str, args: argparse.Namespace, device: torch.device | None) -> list[dict]:
    """Lines of what needs no pretraining, on the data of a snapshot: see `--baselines`."""
    snap = snapshot.resolve(name)
    data, seed = datasets(snap, args)
    args = argparse.Namespace(**vars(args) | {"get_feats": False})
    untrained = Encoder(snap, device, trained=False)
    features.settle(untrained, data["train"])
    lines: list[dict] = []
    for encoder in (Pixels(snap, device), untrained):
        probe_data = of_images(encoder, data, seed, args)
        of = train_classifiers(snap, probe_data, f"_{encoder.kind}", args)
        lines += [line | {"snapshot": encoder.kind} for line in of]
    return lines


def train(probe_data: ProbeData, amount: int, path: Path) -> dict[str, str]:
    """Fit, try and save one classifier; returns its accuracies as the table shows them."""
    values, classes = probe_data.examples(amount)
    model = logistic.fit(values, classes, probe_data.classes)
    accuracy = {"train": model.accuracy(values, classes)}
    accuracy |= {split: model.accuracy(*held) for split, held in probe_data.held.items()}
    known = {f"{split}_accuracy": value for split, value in accuracy.items()}
    save(
        {"state": model.state(), "amount": amount, "converged": model.converged, **known}, path
    )
    accuracies = {split: f"{value:.4f}" for split, value in accuracy.items()}
    return accuracies | ({} if model.converged else {"note": "not converged"})


def save(content: dict[str, Any], path: Path) -> None:
    """Write tensors and plain values, whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        torch.save(content, part)
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch's own words for a failed write
        raise UserError(f"{path} could not be written: {cause(error)}") from None
    finally:
        part.unlink(missing_ok=True)


def _device(name: str | None) -> torch.device | None:
    try:
        return torch.device(name) if name else None
    except RuntimeError:
        raise UserError(f"-d '{name}' is no device: expected such as cpu or cuda:0") from None


@reports_errors
def main() -> int:
    """Process the command line's snapshots; 3 when one of several could not be."""
    args = _arguments()
    registry.discover()
    device, names = _device(args.device), snapshots(args.exp_id)
    lines, failed = baselines(names[0], args, device) if args.baselines else [], 0
    for name in names:
        try:
            lines += process(name, args, device)
        except UserError as error:
            if len(names) == 1:
                raise
            failed += 1
            print(printable(f"Skipping: {name}: {error.text}"), file=sys.stderr)
    known = {key for line in lines for key in line}
    header = [key for key in ("snapshot", "file", *SPLITS, "note") if key in known]
    if lines:
        print(table([[line.get(key, "") for key in header] for line in lines], header))
    return 3 if failed else 0


if __name__ == "__main__":
    main()
