"""Results under the names of the published program, so that old notebooks run.

Accuracies are percent, the last axis is (train, valid). Methods are compared in the form
`results[method][data set][labels] -> array [repeats, 2]`.
"""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfstudy.analysis import results
from selfstudy.analysis import utility as utilities
from util.errors import UserError, nearest

FACTORS = "TCVL"  # texture, colour, viewpoint, light
_DIGITS = re.compile(r"\d")


def convert_ds_name(ds: str | int) -> str:
    """The factors that a data set varies: 1010 and 'xlg1010' are 'T-V-'.

    Args:
        ds: a name whose last four digits are the factors, or these as an integer; another
            name stays as it is.
    """
    bits = _bits(ds)
    if bits is None:
        return str(ds)
    return "".join(name if bit != "0" else "-" for name, bit in zip(FACTORS, bits, strict=True))


def _bits(ds: Any) -> str | None:
    """The last four digits, None where there are fewer in a name."""
    if isinstance(ds, (int, float, np.number)) and not isinstance(ds, bool):
        return f"{int(ds):04d}"[-4:] if ds == ds and ds >= 0 else None
    digits = "".join(_DIGITS.findall(str(ds)))
    return digits[-4:] if len(digits) >= 4 else None


def merge_results(parts: Sequence[Mapping]) -> dict:
    """Nested results as one: arrays under the same keys are joined along their repeats.

    Args:
        parts: nested dicts with arrays [repeats, ...] as leaves; they stay as they are.

    Raises:
        ValueError: under the same keys there is an array in one and a dict in another.
    """
    merged: dict = {}
    for key in dict.fromkeys(key for part in parts for key in part):
        values = [part[key] for part in parts if key in part]
        nested = [isinstance(value, Mapping) for value in values]
        if any(nested) and not all(nested):
            raise ValueError(f"'{key}' holds an array in one result and a dict in another")
        merged[key] = merge_results(values) if all(nested) else np.concatenate(values)
    return merged


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) < 1e300


def _peak(value: Any) -> Any:
    several = isinstance(value, (list, tuple)) and value and all(map(_number, value))
    return max(value) if several else value


def _last(value: Any) -> Any:
    return value[-1] if isinstance(value, (list, tuple)) and value else value


def _factors(value: Any) -> Any:
    bits = _bits(value)
    return value if bits is None else int(bits)


RULES: dict[str, Callable[[Any], Any]] = {
    "dataset_choice": _factors, "milestones": _last, "target_lrs": _peak,
}  # fmt: skip


class ExperimentResult:
    """The trials of an experiment as arrays.

    Args:
        path: an experiment's name or folder; one of old, without a plan, too.

    Attributes:
        results_raw: trial -> its lines of results, one a round.
        params_raw: trial -> gin name -> value.
        exp_lens: [trials] rounds of each.
        acc: [trials, 2] last accuracies for train and valid (or test), percent.
        params: [trials, keys] values of the parameters, see `process_params`.
        param_keys: [keys] their leaf names, in full where two have the same.
        left_out: trials without results, which are in none of these, with their status.

    Raises:
        UserError: there is no such experiment.
    """

    def __init__(self, path: str | Path):
        experiment = results.read(path)
        having = [trial for trial in experiment.trials if trial.rounds]
        self.results_raw = {trial.name: trial.rounds for trial in having}
        self.params_raw = {trial.name: trial.overrides for trial in having}
        self.left_out = {trial.name: trial.status for trial in experiment.trials
                         if not trial.rounds}  # fmt: skip
        if self.left_out:
            warnings.warn(
                f"{experiment.name}: {len(self.left_out)} of {len(experiment.trials)} trials "
                "have no results",
                stacklevel=2,
            )
        self.update_results()
        self.process_params()

    def update_results(self, get_test: bool = False) -> None:
        """Read `exp_lens` and `acc` from the lines; with `get_test` (train, test)."""
        second = "test_accuracy" if get_test else "valid_accuracy"
        self.exp_lens = np.array([len(lines) for lines in self.results_raw.values()], int)
        rows = [[results.number(lines[-1], name) for name in ("train_accuracy", second)]
                 for lines in self.results_raw.values()]  # fmt: skip
        self.acc = np.array(rows, float).reshape(-1, 2) * 100  # None becomes NaN

    def process_params(
        self,
        to_ignore: Sequence[str] = ("pretrained", "model_choice"),
        custom_rules: Mapping[str, Callable[[Any], Any]] | None = None,
    ) -> None:
        """Make `params` and `param_keys`: a column a parameter, as numbers where they are.

        A data set becomes its four factors (10 for 'xlg0010'), milestones their last and
        target_lrs their largest.

        Args:
            to_ignore: leaf names that get no column.
            custom_rules: leaf name -> what to make of its values, before these rules.
        """
        rules = RULES | dict(custom_rules or {})
        rows = list(self.params_raw.values())
        leaves = {name: name.rpartition(".")[2] for row in rows for name in row}
        kept = [name for name, leaf in leaves.items() if leaf not in to_ignore]
        often = Counter(leaves[name] for name in kept)
        self.param_keys = [leaves[name] if often[leaves[name]] == 1 else name for name in kept]
        columns = [[rules.get(leaves[name], lambda value: value)(row.get(name)) for row in rows]
                   for name in kept]  # fmt: skip
        numeric = all(value is None or _number(value) for column in columns for value in column)
        self.params = np.empty((len(rows), len(columns)), float if numeric else object)
        for number, column in enumerate(columns):
            for at, value in enumerate(column):
                self.params[at, number] = value

    def _keys(self, names: Sequence[str]) -> list[list]:
        """Of each trial the values of these parameters."""
        for name in names:
            if name not in self.param_keys:
                raise UserError(f"no trial overrides '{name}'{nearest(name, self.param_keys)}")
        at = [self.param_keys.index(name) for name in names]
        return [[_plain(row[number]) for number in at] for row in self.params]

    def organize_as_dict(
        self,
        exp_data: np.ndarray | None = None,
        key_list: Sequence[str] = ("dataset_choice", "semisupervised"),
        filt_idxs: Sequence[int] | None = None,
    ) -> dict:
        """Nested dicts by the values of some parameters, with arrays [repeats, 2] as leaves.

        Args:
            exp_data: [trials, 2] what to arrange; default: `acc`.
            key_list: leaf names, the outermost first.
            filt_idxs: the trials to take, or a mask of them; default: all.

        Raises:
            UserError: no trial overrides one of these.
        """
        data = self.acc if exp_data is None else np.asarray(exp_data)
        keys = self._keys(key_list)
        taken = np.arange(len(data)) if filt_idxs is None else np.arange(len(data))[filt_idxs]
        nested: dict = {}
        for at in sorted(taken, key=lambda at: [_order(value) for value in keys[at]]):
            inner = nested
            for value in keys[at][:-1]:
                inner = inner.setdefault(value, {})
            inner.setdefault(keys[at][-1], []).append(data[at])
        return _arrays(nested)

    def organize_as_arr(
        self, exp_data: np.ndarray | None = None, key_list: Sequence[str] | None = None
    ) -> tuple[np.ndarray, np.ndarray, list[list]]:
        """Means and deviations over repeats: an axis a parameter, then (train, valid).

        Args:
            exp_data: [trials, 2]; default: `acc`.
            key_list: leaf names; default: all of `param_keys`.

        Returns:
            Means, standard deviations (of the repeats themselves, no sample), both NaN where
            there is no trial, and the values of each parameter.
        """
        data = self.acc if exp_data is None else np.asarray(exp_data)
        names = self.param_keys if key_list is None else list(key_list)
        keys = self._keys(names)
        values = [sorted({row[at] for row in keys}, key=_order) for at in range(len(names))]
        shape = (*map(len, values), *data.shape[1:])
        mean, spread = np.full(shape, np.nan), np.full(shape, np.nan)
        cells: dict[tuple, list] = {}
        for row, numbers in zip(keys, data, strict=True):
            at = tuple(cell.index(value) for cell, value in zip(values, row, strict=True))
            cells.setdefault(at, []).append(numbers)
        for at, repeats in cells.items():
            mean[at], spread[at] = np.mean(repeats, axis=0), np.std(repeats, axis=0)
        return mean, spread, values


def _plain(value: Any) -> Any:
    """A value that can be a key: whole numbers as integers, lists as tuples, NaN as None."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_plain, value))
    if isinstance(value, (float, np.floating)):
        if value != value:
            return None
        return int(value) if float(value).is_integer() else float(value)
    return repr(value) if isinstance(value, dict) else value


def _order(value: Any) -> tuple:
    number = isinstance(value, (int, float))
    return (value is not None, not number, value if number else str(value))


def _arrays(nested: Any) -> Any:
    if isinstance(nested, dict):
        return {key: _arrays(inner) for key, inner in nested.items()}
    return np.array(nested)


def calc_utility(
    v0: Mapping[int, np.ndarray],
    v1: Mapping[int, np.ndarray],
    d_amts: Sequence[int] | None = None,
    formula: str = "monotone",
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Utility of a method over a baseline.

    Args:
        v0: the baseline, labels -> [repeats, 2] accuracies in percent; the last column counts.
        v1: the method, likewise.
        d_amts: the method's numbers of labels to include; default: all.
        formula: 'monotone' is `utility.utility`, where what the baseline never reaches counts
            with its bound; 'original' the published program's with its faults.

    Returns:
        Labels, utility and its standard deviation, [n] each: the spread when one repeat at a
        time stands for the mean.

    Raises:
        UserError: another formula.
    """
    base: dict[int, Any]
    ours: dict[int, Any]
    base, ours = (
        {int(n): np.asarray(values, float).reshape(len(values), -1)[:, -1]
         for n, values in curve.items()}
        for curve in (v0, v1)
    )  # fmt: skip
    if d_amts is not None:
        ours = {n: values for n, values in ours.items() if n in set(d_amts)}
    if formula == "original":
        return utilities.original(base, ours)
    if formula != "monotone":
        raise UserError(f"formula '{formula}': expected 'monotone' or 'original'")
    estimate = utilities.utility(base, ours, draws=0)
    spread = []
    for at, n in enumerate(sorted(ours)):
        singles = [utilities.utility(base, ours | {n: [value]}, draws=0) for value in ours[n]]
        spread.append(np.std([repeat.value[at] for repeat in singles]))
    return estimate.labels, estimate.value, np.array(spread)
