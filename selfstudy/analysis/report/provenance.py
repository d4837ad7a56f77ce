"""Where results come from: machines, versions, commits, commands, data; and their files."""

import csv
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paths
from selfstudy.analysis import efficiency, figures, sheets
from selfstudy.analysis.compare import given_settings
from selfstudy.analysis.report import page
from selfstudy.analysis.report.page import Chapter, Downloads, Facts, Photos
from selfstudy.analysis.results import Experiment, TrialRecord
from selfstudy.storage.checkpoints import subfolders
from util import files

if TYPE_CHECKING:
    from selfstudy.analysis.report import Drawer, Findings

PICTURES = "pictures"  # a trial's folder of what it has drawn
PREDICTIONS = "predictions.csv"
MOST_PICTURES = 12
MOST_BYTES = 500_000  # of a picture
ALL_BYTES = 1_200_000  # of all pictures, since the page is to stay small
MOST_PREDICTIONS = 1 << 24  # bytes
MOST_CLASSES = 100
LINES = 20_000  # of rounds.csv; beyond, or beyond its size, only last rounds are listed
CSV_BYTES = 700_000
_PNG = b"\x89PNG\r\n\x1a\n"


def environment(folder: Path) -> dict[str, Any]:
    """What `environment.json` of an experiment says; empty without one that is whole."""
    try:
        return files.read_object(folder / paths.ENVIRONMENT)
    except (OSError, ValueError):
        return {}


def _object(record: dict[str, Any], key: str) -> dict[str, Any]:
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def commit(record: dict[str, Any]) -> str:
    """The commit, and whether files differed from it."""
    git = _object(record, "git")
    name = str(git.get("commit", ""))[:12]
    return f"{name}, with changes that are in no commit" if git.get("changed") else name


def hardware(record: dict[str, Any]) -> str:
    """System, processors and accelerators."""
    machine = _object(record, "machine")
    devices = machine.get("devices")
    words = [f"{machine.get('system', '')} {machine.get('machine', '')}".strip(),
             f"{machine['cpus']} CPUs" if "cpus" in machine else "",
             *(map(str, devices) if isinstance(devices, list) else [])]  # fmt: skip
    return ", ".join(filter(None, words))


def versions(record: dict[str, Any]) -> str:
    """Such as 'python 3.11.7, torch 2.14.1'."""
    return ", ".join(f"{name} {value}" for name, value in _object(record, "versions").items())


def distinct_texts(records: Iterable[dict[str, Any]], text: Callable[[dict], str]) -> list[str]:
    """The different texts of environments."""
    return list(dict.fromkeys(filter(None, map(text, records))))


def plan_commands(experiments: Iterable[Experiment]) -> list[str]:
    """The command that has made each experiment."""
    commands = (experiment.manifest.plan.get("command", "") for experiment in experiments)
    return list(dict.fromkeys(filter(None, commands)))


# ---- pictures -------------------------------------------------------------------------------


def pictures(findings: "Findings", draw: "Drawer") -> Chapter:
    """What trials have drawn, those of the best first, and the best one's confusions."""
    trials = [trial for group in findings.groups for trial in group.trials]
    trials += [trial for trial in findings.trials if trial not in trials]
    items: list[tuple[str, str]] = []
    size, left_out = 0, 0
    for trial in trials:
        for path in _pictures(trial):
            content = _png(path) if len(items) < MOST_PICTURES else b""
            if not content or size + len(content) > ALL_BYTES:
                left_out += 1
                continue
            size += len(content)
            caption = f"{path.stem.replace('_', ' ')}: {trial.exp}/{trial.name}"
            items.append((page.address(content, "image/png"), caption))
    note = f"{left_out} more in the trials' folders." if left_out else ""
    blocks: list[Any] = [Photos(items, note)] if items or left_out else []
    for trial in trials:
        if pairs := _predictions(trial):
            caption = f"Predictions of {trial.exp}/{trial.name}"
            return Chapter("pictures", "Pictures",
                           [*blocks, *draw(caption, figures.confusion, *pairs)])  # fmt: skip
    return Chapter("pictures", "Pictures", blocks)


def _folder(trial: TrialRecord) -> list[Path]:
    """The trial's folder of pictures, which is no link."""
    inner = subfolders(trial.folder) if trial.folder else []
    return [folder for folder in inner if folder.name == PICTURES]


def _pictures(trial: TrialRecord) -> list[Path]:
    return sorted(path for folder in _folder(trial) for path in folder.iterdir()
                  if path.suffix == ".png")  # fmt: skip


def _png(path: Path) -> bytes:
    try:
        content = files.read_bytes(path, MOST_BYTES)
    except OSError:
        return b""
    return content if content.startswith(_PNG) else b""


def _predictions(trial: TrialRecord) -> tuple[list[Any], list[Any]] | None:
    """True and predicted classes of the trial's test split, else of what it has."""
    for folder in _folder(trial):
        try:
            content = files.read_bytes(folder / PREDICTIONS, MOST_PREDICTIONS)
            text = io.StringIO(content.decode(errors="replace"))
            rows = [row for row in csv.DictReader(text)
                    if row.get("truth") and row.get("predicted")]  # fmt: skip
        except (OSError, csv.Error):
            return None
        splits = {row.get("split") for row in rows}
        split = next((name for name in ("test", "valid") if name in splits), None)
        rows = [row for row in rows if split is None or row["split"] == split]
        pairs = (
            _classes([row["truth"] for row in rows]),
            _classes([row["predicted"] for row in rows]),
        )
        return pairs if rows and len({*pairs[0], *pairs[1]}) <= MOST_CLASSES else None
    return None


def _classes(texts: list[str]) -> list[Any]:
    """Numbers where all are, so that 10 follows 9."""
    if all(text.isdecimal() and len(text) < 10 for text in texts):
        return list(map(int, texts))
    return texts


# ---- provenance -----------------------------------------------------------------------------


def origins(findings: "Findings", draw: "Drawer") -> Chapter:
    """How each experiment was made, and on what data."""
    blocks: list[Any] = []
    for experiment in findings.experiments:
        plan = experiment.manifest.plan
        spec = plan.get("spec", {})
        begun = [event.get("command") for event in experiment.manifest.events
                 if event["event"] == "begin"]  # fmt: skip
        commands = [plan.get("command"), *begun]
        data = _object(environment(experiment.folder), "data")
        rows = [
            ("experiment", [f"{experiment.name}, {len(experiment.trials)} trials"]),
            ("ray config", [" ".join(filter(None, (
                plan.get("ray"), f"(digest {str(plan['digest'])[:12]})" if plan.get("digest")
                else "")))] if plan else []),
            ("settings", given_settings(plan)),
            ("gin files", spec.get("gin", [])),
            ("parameters", spec.get("params", [])),
            ("commands", list(dict.fromkeys(c for c in commands if isinstance(c, str)))),
            ("data (SHA-256)", [f"{name}: {str(value)[:16]}" for name, value in data.items()]),
        ]  # fmt: skip
        blocks.append(Facts([row for row in rows if row[1]]))
    return Chapter("provenance", "Provenance", blocks)


def downloads(findings: "Findings", draw: "Drawer") -> Chapter:
    """The numbers behind the page, as files inside it."""
    items = []
    if len(findings.frame):
        items.append(_download("trials.csv", sheets.csv(findings.frame), "a row per trial"))
    if len(findings.rounds):
        items.append(_download("rounds.csv", *_rounds(findings)))
    if findings.curves:
        text = sheets.csv(efficiency.table(findings.curves))
        about = "a row per data set, method and number of labels"
        items.append(_download("table.csv", text, about))
    return Chapter("downloads", "Downloads", [Downloads(items)] if items else [])


def _rounds(findings: "Findings") -> tuple[str, str]:
    """Rounds as CSV in six digits; where that is too much, the last one of each trial."""
    if len(findings.rounds) <= LINES:
        short = findings.rounds.map(lambda value: float(f"{value:.6g}")
                                 if isinstance(value, float) else value)  # fmt: skip
        text = sheets.csv(short)
        if len(text) <= CSV_BYTES:
            return text, "a row per trial and round"
    last = findings.rounds.drop_duplicates(["exp", "trial"], keep="last")
    return sheets.csv(last), (
        f"the last round of each trial; all {len(findings.rounds):,} are too many for a page"
    )


def _download(name: str, text: str, about: str) -> tuple[str, str, str]:
    content = text.encode()
    return name, page.address(content, "text/csv"), f"{about}, {len(content) / 1000:,.0f} kB"
