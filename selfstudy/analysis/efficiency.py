"""Label efficiency: accuracy and utility against labels, by data set and method, from a frame.

from selfstudy.analysis import efficiency, results

found = efficiency.curves(results.trials("u1"))
table = efficiency.table(found)            # a row per data set, method and labels
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from selfstudy.analysis import utility

if TYPE_CHECKING:
    import pandas

LABELS, METHOD, PANEL = (
    "BaseDataset.semisupervised", "Wrapper.pretrained", "SynDataset.dataset_choice"
)  # fmt: skip
METRICS = ("test_accuracy", "valid_accuracy", "mean_accuracy")
SEEDS = ("session.seed", "BaseDataset.label_seed")
SCRATCH = "scratch"

# data set -> method -> labels -> an accuracy a repeat, in the order of their seeds
Nested = dict[str, dict[str, dict[int, list[float]]]]


@dataclasses.dataclass(frozen=True)
class Curves:
    """Accuracies of repeats, see `curves`.

    Attributes:
        metric: what is compared, in [0, 1].
        values: data set -> method -> labels -> accuracies; scratch first, labels rising.
        repeats: the smallest and the largest number of repeats of a cell.
        left_out: trials with a number of labels that have not ended as planned.
        paired: of every cell the same seeds have ended, so that differences are paired.
    """

    metric: str
    values: Nested
    repeats: tuple[int, int]
    left_out: int
    paired: bool


def has_curves(frame: "pandas.DataFrame") -> bool:
    """Whether trials differ in labels and were pretrained or not."""
    return LABELS in frame and METHOD in frame and len(set(frame[LABELS].dropna())) > 1


def methods(frame: "pandas.DataFrame") -> list[str]:
    """A name for what each trial started from: 'scratch', or its snapshot's folder.

    The data set's name and folders that all snapshots share are no part of it: of
    'u1/pretrain/rotate/1000' and 'u1/pretrain/cmc/1000' the names are 'rotate' and 'cmc'.
    """
    sets = frame[PANEL] if PANEL in frame else [None] * len(frame)
    folders = [
        None if not isinstance(name, str) or not name
        else [part for part in name.split("/") if part != str(choice)]
        for name, choice in zip(frame[METHOD], sets, strict=True)
    ]  # fmt: skip
    used = [folder for folder in folders if folder]
    shared = 0
    shortest = min((len(folder) for folder in used), default=1)
    while shared < shortest - 1 and len({folder[shared] for folder in used}) == 1:
        shared += 1
    return [SCRATCH if folder is None else "/".join(folder[shared:]) for folder in folders]


def curves(frame: "pandas.DataFrame", metric: str | None = None) -> Curves:
    """The accuracies of trials at numbers of labels.

    Args:
        frame: of `results.trials`, with `BaseDataset.semisupervised` and `Wrapper.pretrained`.
        metric: default: the first of test, valid and mean accuracy that there is.

    Raises:
        ValueError: the frame has no such columns or metric.
    """
    if LABELS not in frame or METHOD not in frame:
        raise ValueError(f"label efficiency needs trials that differ in {LABELS} and {METHOD}")
    metric = metric or next((name for name in METRICS if name in frame), METRICS[0])
    if metric not in frame:
        raise ValueError(f"no trial has {metric}")
    frame = frame.loc[frame[LABELS].notna()]  # a study's pretraining is no part of the question
    frame = frame.assign(_method=methods(frame))
    frame = frame.sort_values([name for name in SEEDS if name in frame], kind="stable")
    values: Nested = {}
    seeds: dict[tuple, list] = {}
    left_out = 0
    for row in frame.to_dict("records"):
        amount = row[LABELS]
        counts = _finite(amount) and amount > 0 and _finite(row[metric])
        if row["status"] != "done" or not counts:
            left_out += row["status"] != "planned"
            continue
        where = str(row.get(PANEL, "")), row["_method"], int(amount)
        cells = values.setdefault(where[0], {}).setdefault(where[1], {})
        cells.setdefault(where[2], []).append(float(row[metric]))
        seeds.setdefault(where, []).append(tuple(row.get(name) for name in SEEDS))
    often = [len(cell) for cell in seeds.values()] or [0]
    paired = len(set(map(tuple, seeds.values()))) == 1 and often[0] > 1
    return Curves(metric, _sort_curves(values), (min(often), max(often)), left_out, paired)


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _sort_curves(values: Nested) -> Nested:
    def names(names_read: Iterable[str]) -> list[str]:
        return sorted(names_read, key=lambda name: (name != SCRATCH, name))

    return {panel: {name: dict(sorted(values[panel][name].items()))
                    for name in names(values[panel])} for panel in sorted(values)}  # fmt: skip


def table(curves_read: Curves, baseline: str = SCRATCH, **options: Any) -> "pandas.DataFrame":
    """A row per data set, method and number of labels.

    Args:
        curves_read: of `curves`.
        baseline: the method that utility is measured against.
        options: of `utility.utility`.

    Returns:
        Columns data_set, method, labels, repeats, accuracy (mean), spread (standard deviation
        over repeats, of a sample; NaN for one), and of the utility: utility, bound ('', '>=',
        '<='), low, high, equal (labels of the baseline with the same accuracy). The utility is
        NaN where the data set has no baseline.
    """
    import numpy as np
    import pandas

    columns = ["data_set", "method", "labels", "repeats", "accuracy", "spread", "utility",
               "bound", "low", "high", "equal"]  # fmt: skip
    rows = []
    for panel, by_method in curves_read.values.items():
        for name, cells in by_method.items():
            known = None
            if baseline in by_method:
                known = utility.utility(by_method[baseline], cells, paired=curves_read.paired,
                                        **options)  # fmt: skip
            for at, (amount, repeats) in enumerate(cells.items()):
                spread = np.std(repeats, ddof=1) if len(repeats) > 1 else np.nan
                estimate = [np.nan, "", np.nan, np.nan, np.nan]
                if known:
                    estimate = [known.value[at], known.bound[at], known.low[at], known.high[at],
                            known.equal[at]]  # fmt: skip
                rows.append(
                    [panel, name, amount, len(repeats), np.mean(repeats), spread, *estimate]
                )
    return pandas.DataFrame(rows, columns=columns)


def sentences(curves_read: Curves, baseline: str = SCRATCH) -> list[str]:
    """Summary of the curves with intervals: three sentences for each data set."""
    lines = []
    frame = table(curves_read, baseline)
    for panel, part in frame.groupby("data_set", sort=False):
        others = part.loc[part.method != baseline]
        if others.empty or others.utility.isna().all():
            continue
        about = f"{panel}: " if len(curves_read.values) > 1 else ""
        lines.append(about + _equality(others, baseline))
        lines.append(about + _winners(part, baseline))
        lines.append(about + _trend(others))
    return lines


def _equality(others: "pandas.DataFrame", baseline: str) -> str:
    """The clearest gain: of values rather than bounds the largest lower end."""
    exact = others[(others.bound == "") & (others.utility > 0)]
    pool = exact if len(exact) else others
    key = pool.low.where(pool.low.notna(), pool.utility)
    best = pool.loc[key.idxmax()]
    more = {">=": " or more", "<=": " or fewer"}.get(best.bound, "")
    return (
        f"{best.method} with {best.labels:,.0f} labels is as good as {baseline} with "
        f"{best.equal:,.0f}{more}: a utility of {value(best)}."
    )


def value(row: Any) -> str:
    """A utility as text, such as '1.4 [0.9, 2.1]' or '≥ 3.0'."""
    sign = {">=": "≥ ", "<=": "≤ "}.get(row.bound, "")
    text = f"{sign}{row.utility:.2f}"
    if row.low != row.low:
        return text
    high = "∞" if row.high == float("inf") else f"{row.high:.2f}"
    return f"{text} [{row.low:.2f}, {high}]"


def _winners(part: "pandas.DataFrame", baseline: str) -> str:
    """Which method is best at each number of labels, runs of the same together."""
    runs: list[list] = []
    for amount, cell in part.groupby("labels"):
        best = cell.loc[cell.accuracy.idxmax()]
        base = cell[cell.method == baseline]
        gain = best.accuracy - base.accuracy.iloc[0] if len(base) else None
        if runs and runs[-1][0] == best.method:
            runs[-1][2] = (amount, best.accuracy, gain)
        else:
            runs.append([best.method, *[(amount, best.accuracy, gain)] * 2])
    return (
        "Best: "
        + "; ".join(_run(name, first, last, baseline) for name, first, last in runs)
        + "."
    )


def _run(name: str, first: tuple, last: tuple, baseline: str) -> str:
    ends = [first] if first == last else [first, last]
    at = " to ".join(f"{amount:,.0f}" for amount, _, _ in ends)
    text = " to ".join(f"{accuracy:.3f}" for _, accuracy, _ in ends)
    gains = [gain for _, _, gain in ends if gain is not None]
    if name == baseline or not gains:
        return f"{name} at {at} labels ({text})"
    over = " and ".join(f"{gain:+.3f}" for gain in gains)
    return f"{name} at {at} labels ({text}, {over} to {baseline})"


def _trend(others: "pandas.DataFrame") -> str:
    """Whether utility is smaller with many labels than with few, where it is no bound."""
    falls, unknown, ends = 0, 0, []
    for name, cells in others.groupby("method", sort=False):
        exact = cells[cells.bound == ""]
        rows: list[Any] = list((exact if len(exact) > 1 else cells).itertuples())
        first, last = rows[0], rows[-1]
        falls += len(exact) > 1 and last.utility < first.utility
        unknown += len(exact) < 2
        ends.append(f"{name} from {value(first)} at {first.labels:,.0f} "
                    f"to {value(last)} at {last.labels:,.0f}")  # fmt: skip
    left = f" (bounds leave {unknown} open)" if unknown else ""
    return (
        f"As labels grow, utility falls for {falls} of {len(ends)} methods{left}: "
        f"{'; '.join(ends)}."
    )
