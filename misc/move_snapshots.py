"""List, and with -m move, each trial's checkpoint to a name that is easy to type.

    python misc/move_snapshots.py -e EXP -p '{cfg[SynDataset.dataset_choice]}' -m

Afterwards `Wrapper.pretrained = "EXP/<name>"` loads it.
"""

import argparse
import sys
from pathlib import Path

# A file of the user's folder that is named like one of our modules must not win.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from selfstudy.storage import checkpoints, relocate  # noqa: E402
from util.errors import printable, reports_errors  # noqa: E402


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="List, and with -m move, each trial's last (or best) checkpoint."
    )
    parser.add_argument("-e", "--exp_id", required=True, help="the experiment")
    parser.add_argument(
        "-p",
        "--pattern",
        help="name inside the experiment, such as '{cfg[SynDataset.dataset_choice]}'; "
        "without it a single trial's checkpoint goes to the experiment's own folder",
    )
    parser.add_argument("-m", "--move", action="store_true", help="move, not only list")
    parser.add_argument(
        "--best", metavar="METRIC", help="the best checkpoint by this metric, not the last one"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace snapshots that are there already"
    )
    return parser.parse_args()


@reports_errors
def main() -> None:
    """Print the moves of the command line's experiment, and perform them with -m."""
    args = _arguments()
    moves, skipped = relocate.relocations(args.exp_id, args.pattern, args.best, args.overwrite)
    for folder, reason in skipped:
        print(printable(f"Skipping: {checkpoints.short_name(folder)}: {reason}"))
    for source, destination in moves:
        names = checkpoints.short_name(source), checkpoints.short_name(destination)
        print(printable(f"Moving from: {names[0]} to: {names[1]}"), flush=True)
        if args.move:
            relocate.move([(source, destination)])
    if moves and not args.move:
        print("Nothing was moved; add -m to move them.")


if __name__ == "__main__":
    main()
