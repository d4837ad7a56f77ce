"""Draw docs/figures/grid.svg from the experiment 'grid' of the README.

python main.py -e grid -r grid_search -g digits/r9/classify
python docs/make_figures.py
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import matplotlib  # noqa: E402

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

import paths  # noqa: E402
from selfstudy.plan import Plan  # noqa: E402
from util import files  # noqa: E402
from util.errors import UserError, reports_errors  # noqa: E402

LABELS, RATES = "BaseDataset.semisupervised", "scheduler.target_lrs"
# Okabe and Ito's colours and different lines, told apart with any eyes and in grey.
STYLES = [("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", ":")]


def curves(plan: Plan) -> dict[int, dict[float, list[float]]]:
    """Label count -> peak rate -> validation accuracy of each round."""
    found: dict[int, dict[float, list[float]]] = {}
    for row in plan.rows:
        lines = files.read_lines(plan.folder / row.name / paths.RESULT)
        if not lines:
            raise UserError(f"{plan.exp_id}/{row.name} has no results yet")
        peak = max(row.overrides[RATES])
        found.setdefault(row.overrides[LABELS], {})[peak] = [
            line["valid_accuracy"] for line in lines
        ]
    return found


def draw(ax: Axes, labels: int, of_rate: dict[float, list[float]]) -> None:
    """One panel: the curves of all peak rates at one label count."""
    for (rate, accuracy), (color, line) in zip(sorted(of_rate.items()), STYLES, strict=True):
        rounds = range(1, len(accuracy) + 1)
        ax.plot(rounds, accuracy, line, color=color, label=f"{rate:g}", linewidth=1.6)
    ax.set_title(f"{labels} labels", fontsize=10)
    ax.set_xlabel("round")
    ax.set_ylim(top=1.01)
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)


@reports_errors
def main() -> None:
    """Read the experiment and write the picture."""
    parser = argparse.ArgumentParser(description="Draw the learning curves of the README.")
    parser.add_argument("-e", "--exp_id", default="grid", help="the experiment (grid)")
    default = ROOT / "docs" / "figures" / "grid.svg"
    parser.add_argument("-o", "--output", default=default, help="an .svg or .png file")
    args = parser.parse_args()
    panels = curves(Plan.stored(args.exp_id))
    # Letters as text, no random ids and no date: a small file, equal for equal results.
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "selfstudy", "font.size": 9}
    figure, axes = plt.subplots(
        1, len(panels), figsize=(7, 2.6), sharey=True, layout="constrained"
    )
    for ax, (labels, of_rate) in zip(axes, sorted(panels.items()), strict=True):
        draw(ax, labels, of_rate)
    axes[0].set_ylabel("validation accuracy")
    axes[-1].legend(title="peak learning rate", loc="lower right", frameon=False)
    svg = Path(args.output).suffix == ".svg"
    figure.savefig(args.output, dpi=150, **({"metadata": {"Date": None}} if svg else {}))
    print(args.output)


if __name__ == "__main__":
    main()
