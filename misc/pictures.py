"""Draw what trials see and what they take for what, into their folders.

    python misc/pictures.py u0/pretrain
    python misc/pictures.py grid/e_lr=0.01_0003

Contact sheets and predictions of each trial that has a checkpoint, or whose checkpoint was
moved, go to its folder `pictures/`; `misc/results.py report` shows them.
"""

import argparse
import sys
from pathlib import Path

# A file of the user's folder that is named like one of our modules must not win.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from selfstudy.analysis import results  # noqa: E402
from selfstudy.analysis.results import TrialRecord  # noqa: E402
from selfstudy.evaluate import pictures  # noqa: E402
from selfstudy.storage.checkpoints import checkpoints, short_name  # noqa: E402
from util.errors import UserError, printable, reports_errors  # noqa: E402


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draw what trials see and take for what.")
    parser.add_argument("names", nargs="+", metavar="EXP", help="an experiment, or EXP/TRIAL")
    return parser.parse_args()


def source(trial: TrialRecord) -> str | None:
    """The snapshot of a trial, as users type it; None when there is none."""
    if trial.snapshot:
        return trial.snapshot
    return short_name(trial.folder) if trial.folder and checkpoints(trial.folder) else None


@reports_errors
def main() -> int:
    """Draw the pictures of the command line's trials; 3 when some could not be."""
    selected = [
        results.find(str(name))
        for argument in _arguments().names
        for name in results.expand([argument])
    ]
    trials = [record for experiment, trial in selected
              for record in ([trial] if trial else experiment.trials)]  # fmt: skip
    drawn, failed = 0, 0
    for trial in trials:
        if not (name := source(trial)) or not trial.folder:
            continue
        try:
            for path in pictures.draw(name, trial.folder):
                print(printable(short_name(path)))
            drawn += 1
        except UserError as error:
            print(printable(f"Skipping: {name}: {error.text}"), file=sys.stderr)
            failed += 1
    if not drawn and not failed:
        raise UserError("none of these trials has a checkpoint; -c saves one at the end")
    return 3 if failed else 0


if __name__ == "__main__":
    main()
