"""The only place that spells a folder or a file name.

All paths are absolute, because a Ray worker's working folder is not the user's.
`SELFSTUDY_DATA` and `SELFSTUDY_EXP` move the data and the experiments elsewhere.
"""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent
CONFIG_DIR = ROOT / "config"
GIN_DIR = CONFIG_DIR / "gin"
RAY_DIR = CONFIG_DIR / "ray"
DATA_DIR = Path(os.environ.get("SELFSTUDY_DATA") or ROOT / "data").absolute()
EXP_DIR = Path(os.environ.get("SELFSTUDY_EXP") or ROOT / "exp").absolute()

# An experiment's own files.
PLAN = "plan.json"
ENVIRONMENT = "environment.json"
STUDY = "study.json"  # of several experiments, which lie below it
JOURNAL = "journal.jsonl"  # what happened, a line each
# A trial's files.
PARAMS = "params.json"
CONFIG = "config.gin"
RESULT = "result.json"
ERROR = "error.txt"
WRITER = ".writer"  # which process may write to the folder
# A checkpoint's files; the card is written last and marks it as complete.
CHECKPOINT = "checkpoint_"
SNAPSHOT = "snapshot"
CARD = "card.json"


def under(root: Path, relative: str) -> Path:
    """`root / relative`, or a `ValueError` when that would leave `root`.

    Every path that a user or a file supplies passes here, so that `-e ../../x` or
    `SynDataset.dataset_choice = "../.."` cannot reach other folders. Links are followed.
    """
    name = str(relative)
    parts = Path(name).parts  # none for "" and "."
    if not parts or "\0" in name or Path(name).is_absolute() or ".." in parts:
        raise ValueError(f"'{name}' must be a plain path inside {root}")
    path = Path(root) / name
    if not path.resolve().is_relative_to(Path(root).resolve()):
        raise ValueError(f"'{name}' leads out of {root}")
    return path
