"""What notebooks import: all figures, and the published program's names.

from selfstudy.analysis import results
from util import vis

vis.slices(results.trials("grid"), "valid_accuracy", save="grid")
"""

from selfstudy.analysis.figures import (
    accuracy,
    confusion,
    contact_sheet,
    heat_map,
    importance,
    parallel,
    rungs,
    slices,
    timeline,
    training,
    utility,
)
from selfstudy.analysis.published import (
    ExperimentResult,
    calc_utility,
    convert_ds_name,
    merge_results,
)
from selfstudy.analysis.published.figures import (
    accuracy_plot,
    compare_training_curves,
    utility_plot,
)
from selfstudy.analysis.published.grids import (
    compare_hyper_exps,
    display_hyperparam_results,
    draw_number_grid,
    plot_hyperparam_comparison,
)

__all__ = [
    "ExperimentResult", "accuracy", "accuracy_plot", "calc_utility", "compare_hyper_exps",
    "compare_training_curves", "confusion", "contact_sheet", "convert_ds_name",
    "display_hyperparam_results", "draw_number_grid", "heat_map", "importance",
    "merge_results", "parallel", "plot_hyperparam_comparison", "rungs", "slices", "timeline",
    "training", "utility", "utility_plot",
]  # fmt: skip
