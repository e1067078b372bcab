"""The curves of several runs in one picture, for tools.report."""

import io
import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from tools.report_runs import Run, figures_of
from tools.shard_figures import COLORS, STYLE

# Title of each panel, in order; figures without one are not drawn, but for those of evaluations.
TITLES = {
    "loss": "Loss of training batches",
    "val_loss": "Loss on the validation split",
    "val_accuracy": "Accuracy on the validation split",
    "val_top5_accuracy": "Top-5 accuracy on the validation split",
    "val_knn": "kNN accuracy on the validation split",
    "learning_rate": "Learning rate",
    "images_per_second": "Images per second",
    "data_wait": "Share of the time waiting for data",
    "memory_gb": "Peak memory, GB",
    "gpu_memory_gb": "Peak GPU memory, GB",
}
SHARES = ("val_accuracy", "val_top5_accuracy", "val_knn", "data_wait")
FROM_ZERO = ("images_per_second", "data_wait", "memory_gb", "gpu_memory_gb")
NOISY = "loss"  # drawn with its running mean over this share of the rows
SMOOTHED_SHARE = 0.03

COLUMNS = 3
PANEL = (4.0, 2.7)  # inches
LEGEND_ROW = 0.22
DOTS_PER_INCH = 110


def draw_curves(runs: Sequence[Run], against: str = "step") -> bytes:
    """PNG with a panel for each figure that the runs have; unfinished runs are dashed.

    Args:
        runs: in the order of the legend.
        against: "step" or "epoch".
    """
    panels = panel_figures(runs)
    rows = math.ceil(len(panels) / COLUMNS)
    height = max(1, rows) * PANEL[1] + LEGEND_ROW * (len(runs) + 1)
    with matplotlib.rc_context(STYLE):
        figure = Figure((COLUMNS * PANEL[0], height), dpi=DOTS_PER_INCH, facecolor="white", layout="constrained")
        figure.get_layout_engine().set(h_pad=0.09, w_pad=0.08)
        for number, name in enumerate(panels):
            _draw_panel(figure.add_subplot(rows, COLUMNS, number + 1), runs, name, against)
        handles = [matplotlib.lines.Line2D([], [], **_line(number, run)) for number, run in enumerate(runs)]
        labels = [run.name if run.is_finished else f"{run.name} (unfinished)" for run in runs]
        figure.legend(handles, labels, loc="outside upper left", frameon=False)
        png = io.BytesIO()
        figure.savefig(png, format="png")
    return png.getvalue()


def panel_figures(runs: Sequence[Run]) -> list[str]:
    """The figures to draw: losses and evaluations first, then speed and memory."""
    found = figures_of(runs)
    others = [name for name in found if name.startswith("val_") and name not in TITLES]
    return [name for name in TITLES if name in found] + others


def running_mean(values: Sequence[float], width: int) -> np.ndarray:
    """The mean of up to `width` values around each: float64, of the same length."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    first = np.maximum(places - (width - 1) // 2, 0)
    last = np.minimum(places + width // 2 + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


def _draw_panel(axes: Axes, runs: Sequence[Run], name: str, against: str) -> None:
    for number, run in enumerate(runs):
        steps, values = run.curve(name)
        places = [run.epochs(step) for step in steps] if against == "epoch" else steps
        style = _line(number, run)
        if name == NOISY:
            axes.plot(places, values, **{**style, "linewidth": 0.6, "alpha": 0.35, "linestyle": "-"})
            values = running_mean(values, max(1, round(SMOOTHED_SHARE * len(values))))
        axes.plot(places, values, **style, marker="o" if len(values) < 25 else None, markersize=3)
    axes.set_title(TITLES.get(name, name))
    axes.set_xlabel(against)
    if name in SHARES:
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    if name in FROM_ZERO:
        axes.set_ylim(0, 1.08 * max(axes.dataLim.y1, 1e-9))


def _line(number: int, run: Run) -> dict:
    return {
        "color": COLORS[number % len(COLORS)],
        "linewidth": 1.5 if number < len(COLORS) else 0.8,
        "linestyle": "-" if run.is_finished else "--",
    }
