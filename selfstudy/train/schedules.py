"""Learning rates as functions of the progress of a run."""

import numpy as np


def piecewise_linear(
    rounds: float, milestones: list[float], targets: list[float], exp_factor: float = 0.0
) -> float:
    """Learning rate after `rounds` (fractional) rounds: linear interpolation of `targets`.

    The targets are reached at 0 and at each milestone. In the last segment the line is
    multiplied by a factor that falls from 1 to 1e-7, to the power `exp_factor`.

    Args:
        rounds: progress in rounds.
        milestones: rounds, increasing.
        targets: rates, one more than milestones.
        exp_factor: 0 keeps the last segment linear; a larger exponent decays sooner.
    """
    rate = float(np.interp(rounds, [0.0, *milestones], targets))
    start = milestones[-2] if len(milestones) > 1 else 0.0
    if exp_factor and rounds > start:
        share = min(1.0, (rounds - start) / (milestones[-1] - start))
        rate *= (1 + share * (1e-7 - 1)) ** exp_factor
    return rate
