"""One HTML page with the results of experiments.

    from selfstudy.analysis import report

    report.write(["u1"], "report.html")

Plain files are read and nothing in them is executed or loaded, so a stranger's experiments are
safe to look at.
"""

import dataclasses
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfstudy.analysis import efficiency, results
from selfstudy.analysis.compare import Group, groups
from selfstudy.analysis.efficiency import Curves
from selfstudy.analysis.report import chapters, page
from selfstudy.analysis.results import METRIC, Experiment, TrialRecord
from util import files
from util.errors import UserError
from util.forecast import ENDED

if TYPE_CHECKING:
    import pandas

FALLBACK = (METRIC, "valid_accuracy", "train_accuracy", "train_loss")  # without the search's


@dataclasses.dataclass
class Findings:
    """What all chapters of the page are made from.

    Attributes:
        names: as the user has typed them.
        experiments: those behind the names.
        study: of `results.study`; empty when it is none.
        coming: whether the study has stages without a plan yet.
        frame, rounds: of all their trials.
        answering: the experiments that the headline summarises.
        part: of `frame`, their trials.
        metric, mode: what trials are compared by.
        valueless: the search's metric, where no trial has a value of it.
        groups: their trials grouped over seeds, best first.
        curves: accuracies against labels, where trials differ in labels and pretraining.
    """

    names: list[str]
    experiments: list[Experiment]
    study: dict[str, Any]
    coming: bool
    frame: "pandas.DataFrame"
    rounds: "pandas.DataFrame"
    answering: list[Experiment]
    part: "pandas.DataFrame"
    metric: str
    mode: str
    valueless: str
    groups: list[Group]
    curves: Curves | None

    @property
    def trials(self) -> list[TrialRecord]:
        """Of all experiments."""
        return [trial for experiment in self.experiments for trial in experiment.trials]

    @property
    def several(self) -> bool:
        """Whether the headline is about more than one experiment."""
        return len(self.answering) > 1


def gather(names: Sequence[str | Path]) -> Findings:
    """Read everything that the page shows.

    Args:
        names: of experiments, or of studies, which include all experiments inside.

    Raises:
        UserError: one doesn't exist.
    """
    read = {
        experiment.folder: experiment for experiment in map(results.read, results.expand(names))
    }
    experiments = list(read.values())
    studies = _studies(names)
    study = next(iter(studies.values()), {})
    stages = [folder / stage for folder, content in studies.items()
              for stage in content.get("stages", [])]  # fmt: skip
    frame = results.trial_frame(experiments)
    answering, curves = _answer(experiments, study, frame)
    part = _rows_of(answering, frame)
    metric, mode = _goal(answering, part)
    if curves:
        metric = curves.metric
    asked = [name for experiment in answering for name, _ in experiment.goals()]
    return Findings(
        names=list(map(str, names)),
        experiments=experiments,
        study=study,
        coming=any(folder not in read for folder in stages),
        frame=frame,
        rounds=results.round_frame(experiments),
        answering=answering,
        part=part,
        metric=metric,
        mode=mode,
        valueless="" if metric in asked or not asked else asked[0],
        groups=groups(
            [trial for experiment in answering for trial in experiment.trials], metric, mode
        ),
        curves=curves,
    )


def _studies(names: Sequence[str | Path]) -> dict[Path, dict[str, Any]]:
    """Folder -> content of `study.json`, of those names that are studies."""
    folders = [folder for folder in map(results.locate, names) if folder]
    return {folder: content for folder in folders if (content := results.study(folder))}


def _answer(
    experiments: list[Experiment], study: dict[str, Any], frame: "pandas.DataFrame"
) -> tuple[list[Experiment], Curves | None]:
    """The experiments that the headline is about, and their label efficiency if measured."""
    labelled = _vary_labels(experiments, frame)
    curves = _curves(_rows_of(labelled, frame)) if labelled else None
    return (labelled, curves) if curves else (_answering(experiments, study), None)


def _rows_of(experiments: list[Experiment], frame: "pandas.DataFrame") -> "pandas.DataFrame":
    """The rows of the trials of these experiments."""
    return frame.loc[frame.exp.isin([experiment.name for experiment in experiments])]


def _answering(experiments: list[Experiment], study: dict[str, Any]) -> list[Experiment]:
    """A study's last stage that has results answers its question."""
    begun = [
        experiment
        for experiment in experiments
        if any(trial.rounds for trial in experiment.trials)
    ]
    return begun[-1:] if study and begun else experiments


def _vary_labels(experiments: list[Experiment], frame: "pandas.DataFrame") -> list[Experiment]:
    """Those whose trials override the number of labels."""
    if efficiency.LABELS not in frame:
        return []
    names = set(frame.loc[frame[efficiency.LABELS].notna(), "exp"])
    return [experiment for experiment in experiments if experiment.name in names]


def _curves(part: "pandas.DataFrame") -> Curves | None:
    if not efficiency.has_curves(part):
        return None
    try:
        curves = efficiency.curves(part)
    except ValueError:  # no trial has an accuracy
        return None
    return curves if curves.values else None


def _goal(experiments: list[Experiment], frame: "pandas.DataFrame") -> tuple[str, str]:
    """The search's metric that trials have a value of, else a usual one."""
    goals = dict(goal for experiment in experiments for goal in experiment.goals())
    usual = {name: "min" if "loss" in name else "max" for name in FALLBACK}
    known = [(name, mode) for name, mode in (usual | goals).items()
             if name in frame and any(frame[name].notna())]  # fmt: skip
    preferred = [pair for pair in known if pair[0] in goals]
    return next(iter(preferred + known), next(iter(goals.items()), (METRIC, "max")))


# ---- the page -------------------------------------------------------------------------------


def make(names: Sequence[str | Path]) -> str:
    """The page as text.

    Args:
        names: of experiments or studies.

    Raises:
        UserError: an experiment that doesn't exist.
    """
    return _compose(gather(names))


def _compose(findings: Findings, refresh: int = 0) -> str:
    draw = Drawer()
    parts = [chapter(findings, draw) for chapter in chapters.ALL]
    title = findings.study.get("question") or ", ".join(findings.names)
    return page.render(title, chapters.header(findings), parts, refresh)


class Drawer:
    """Makes figures for one page, each with its own number."""

    def __init__(self):
        self.count = 0

    def __call__(
        self, caption: str, function: Callable[..., Any], *args: Any, **options: Any
    ) -> list[page.Drawing | page.Text]:
        """The figure that `function` makes; none where it finds nothing to show."""
        self.count += 1
        try:
            with warnings.catch_warnings():  # a stranger's numbers may leave all scales
                warnings.simplefilter("ignore", RuntimeWarning)
                picture = page.inline(function(*args, **options), caption, self.count)
        except UserError:
            return []
        except (ArithmeticError, ValueError):
            return [page.Text([f"No figure could be drawn of this: {caption}."])]
        return [page.Drawing(picture, caption)]


def write(names: Sequence[str | Path], output: str | Path) -> int:
    """Write the page, whole or not at all; returns the number of trials in it.

    Raises:
        UserError: an experiment that doesn't exist, or a file that cannot be written.
    """
    path = writable(output)
    findings = gather(names)
    _write(path, _compose(findings))
    return len(findings.trials)


def writable(output: str | Path) -> Path:
    """`output` as a path of a file in a folder that is there.

    Raises:
        UserError: it is none.
    """
    path = Path(output)
    if "\0" in str(path):
        raise UserError(f"-o {path}: no file can have such a name")
    if os.path.isdir(path):  # unlike is_dir, false for a name that is too long
        raise UserError(f"-o {path} is a folder: name a file in it")
    if not os.path.isdir(path.parent):
        raise UserError(f"-o {path}: there is no folder {path.parent}")
    return path


def _write(path: Path, text: str) -> None:
    try:
        files.write_text(path, text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


# ---- while they run -------------------------------------------------------------------------


def watch(
    names: Sequence[str | Path],
    output: str | Path,
    every: float,
    said: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Write the page again whenever results have changed, until every trial has ended.

    Args:
        names: of experiments or studies.
        output: the file.
        every: seconds between two looks.
        said: called with a line for each page written.
        sleep: waits for a number of seconds.

    Raises:
        UserError: as for `write`, or `every` is below 1.
    """
    if not every >= 1:
        raise UserError(f"--watch {every:g}: expected seconds, 1 or more")
    path = writable(output)
    before: Any = None
    while True:
        findings = gather(names)
        ended = _has_ended(findings)
        now = [(trial.exp, trial.name, trial.status, trial.why, len(trial.rounds), trial.last)
               for trial in findings.trials]  # fmt: skip
        if now != before or ended:
            _write(path, _compose(findings, 0 if ended else max(1, round(every))))
            count = sum(trial.status in ENDED for trial in findings.trials)
            said(f"{path}: {count} of {len(findings.trials)} trials have ended")
        if ended:
            return
        before = now
        sleep(every)


def _has_ended(findings: Findings) -> bool:
    """Whether all trials have ended and no later stage of a study is missing."""
    return not findings.coming and all(trial.status in ENDED for trial in findings.trials)
