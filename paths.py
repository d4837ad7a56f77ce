"""The only place that spells a folder or a file name.

All paths are absolute, because a Ray worker's working folder is not the user's.
`SELFSTUDY_DATA` and `SELFSTUDY_EXP` move the data and the experiments elsewhere;
`SELFSTUDY_EXTRA` names folders whose code and configurations are used beside ours.
"""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent
CONFIG_DIR = ROOT / "config"
GIN_DIR = CONFIG_DIR / "gin"
RAY_DIR = CONFIG_DIR / "ray"
DATA_DIR = Path(os.environ.get("SELFSTUDY_DATA") or ROOT / "data").absolute()
EXP_DIR = Path(os.environ.get("SELFSTUDY_EXP") or ROOT / "exp").absolute()
# Used by `selfstudy.extra`; a folder that is named twice counts once.
EXTRA_DIRS = tuple(
    dict.fromkeys(
        Path(folder).expanduser().absolute()
        for folder in os.environ.get("SELFSTUDY_EXTRA", "").split(os.pathsep)
        if folder
    )
)

# An experiment's own files.
PLAN = "plan.json"
ENVIRONMENT = "environment.json"
PATCH = "changes{}.patch"  # code that is in no commit; {} is '-1', ... of an extra folder
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


def exported() -> dict[str, str]:
    """Environment variables by which another process sees the same folders."""
    return {
        "SELFSTUDY_DATA": str(DATA_DIR),
        "SELFSTUDY_EXP": str(EXP_DIR),
        "SELFSTUDY_EXTRA": os.pathsep.join(map(str, EXTRA_DIRS)),
    }


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
