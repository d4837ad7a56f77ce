"""Count the parameters of a configured model, part by part, without data or weights.

python misc/count_model_params.py -g cifar/r9/classify -p 'init_resnet.choice = "resnet50"'
"""

import argparse
import sys
from pathlib import Path

# A file of the user's folder that is named like one of our modules must not win.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch  # noqa: E402
from torch import nn  # noqa: E402

from selfstudy import configure, extra, registry  # noqa: E402
from selfstudy.types import DataInfo  # noqa: E402
from util.errors import reports_errors  # noqa: E402

CIFAR = DataInfo(
    channels=3,
    input_res=32,
    space="rgb",
    stored="uint8",
    mean=(0.0,) * 3,
    std=(1.0,) * 3,
    rows={"train": 45000, "valid": 5000, "test": 10000},
    targets={"class": 10},
)


def parts(model: nn.Module) -> list[tuple[str, int, int]]:
    """(name, parameters, of these trainable) of each part of a model, in its order.

    Two levels of submodules are listed; what a level holds beside its submodules is
    counted under its own name.
    """
    rows: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        path = name.split(".")[:-1]
        row = rows.setdefault(".".join(path[:2]) or "(itself)", [0, 0])
        row[0] += parameter.numel()
        row[1] += parameter.numel() * parameter.requires_grad
    return [(name, total, trainable) for name, (total, trainable) in rows.items()]


def build(spec: configure.Spec, info: DataInfo) -> nn.Module:
    """The configured model on the 'meta' device, which allocates nothing."""
    registry.discover()
    configure.load(spec, {})
    model = configure.value("session", "model")
    with torch.device("meta"):
        return registry.get("model", model)(info)


@reports_errors
def main() -> None:
    """Print the table of the command line's configuration, for 10 classes of 32x32 RGB."""
    parser = argparse.ArgumentParser(description="Count the parameters of a configured model.")
    parser.add_argument("-g", "--gin_config", nargs="+", action="extend", default=[],
                        type=extra.gin_name)  # fmt: skip
    parser.add_argument("-p", "--gin_param", nargs="+", action="extend", default=[])
    args = parser.parse_args()
    spec = configure.Spec(gin=tuple(args.gin_config), params=tuple(args.gin_param))
    rows = parts(build(spec, CIFAR))
    rows.append(("total", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    width = max(len(name) for name, _, _ in rows)
    print(f"{'part':<{width}} {'parameters':>12} {'trainable':>12}")
    for name, total, trainable in rows:
        print(f"{name:<{width}} {total:>12,} {trainable:>12,}")


if __name__ == "__main__":
    main()
