"""The pictures of a transfer study, for tools.transfer_study and tools.report.

Dots are seeds, a line joins the means, bars show the spread. What the paper published is grey, and dashed.
"""

import io
import statistics
import textwrap
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from tools.ablation_report import standard_error
from tools.shard_figures import COLORS, GREY, STYLE
from tools.transfer_panels import PANELS, Measured, Panel, Series, spread, tick_text, ticks_of
from tools.transfer_plan import PROBED, SCRATCH, TUNED

LINE_COLORS = {TUNED: COLORS[0], SCRATCH: COLORS[1], PROBED: COLORS[2]}
MORE_COLORS = (COLORS[3], COLORS[4], "#0987a0", "#97266d", "#744210")
LIGHT_GREY = "#a0aec0"

PANEL = (4.3, 3.7)  # inches
LEGEND_ROW, FOOT_ROW = 0.2, 0.2
FOOT_LETTERS = 75  # in a line below a panel
DOTS_PER_INCH = 120
LEGEND = {"loc": "upper left", "bbox_to_anchor": (-0.1, -0.22), "fontsize": 8, "borderaxespad": 0}
MIN_SPAN = 5.0  # points of accuracy that a panel shows at least, so that little differences look little


def draw_panels(panels: Sequence[Panel], foot: str = "") -> bytes:
    """PNG of some panels side by side, each with its legend below.

    Args:
        panels: one at least.
        foot: text at the bottom.
    """
    rows = max(len(panel.series) for panel in panels)
    lines = textwrap.wrap(foot, FOOT_LETTERS * len(panels))
    height = PANEL[1] + LEGEND_ROW * (rows + 1) + FOOT_ROW * len(lines)
    with matplotlib.rc_context(STYLE):
        figure = Figure((PANEL[0] * len(panels), height), dpi=DOTS_PER_INCH, facecolor="white", layout="constrained")
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.06)
        for number, panel in enumerate(panels):
            draw_panel(figure.add_subplot(1, len(panels), number + 1), panel)
        if lines:
            figure.supxlabel("\n".join(lines), x=0.01, ha="left", size=8, color=GREY)
        png = io.BytesIO()
        figure.savefig(png, format="png")
    return png.getvalue()


def draw_panel(axes: Axes, panel: Panel) -> None:
    """Draws a panel into its axes."""
    _, title, label = PANELS[panel.name]
    ticks = ticks_of(panel.series)
    places = _places(panel.name, ticks)
    lines = []
    others = iter(MORE_COLORS)
    used = set()
    for series in panel.series:
        color = LINE_COLORS[series.protocol]
        if not series.is_published:
            color = next(others, GREY) if color in used else color
            used.add(color)
        lines.append((_draw_published if series.is_published else _draw_series)(axes, series, places, color))
    if panel.name == "labels":
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks([places[tick] for tick in ticks], [tick_text(panel, tick) for tick in ticks])
    axes.margins(x=0.08)
    points = [values for series in panel.series for values in series.points.values()]
    axes.set_ylim(*_limits([end for values in points for end in (*values, *spread(values))]))
    axes.set(title=title, xlabel=label, ylabel="top-1 accuracy, %")
    axes.legend(lines, [series.label for series in panel.series], **LEGEND)


def _places(name: str, ticks: Sequence[float | None]) -> dict[float | None, float]:
    # Numbers of blocks, unevenly far apart, stand side by side, as in the paper's figure.
    return {tick: number for number, tick in enumerate(ticks)} if name == "blocks" else {tick: tick for tick in ticks}


def _draw_series(axes: Axes, series: Series, places: dict[float | None, float], color: str) -> Line2D:
    means = [statistics.mean(values) for values in series.points.values()]
    at = [places[place] for place in series.points]
    line = axes.plot(at, means, color=color, linewidth=1.6, label=series.label)[0]
    for place, mean, values in zip(at, means, series.points.values(), strict=True):
        axes.plot([place] * len(values), values, "o", color=color, markersize=5, alpha=0.6, markeredgewidth=0)
        if len(values) > 1:  # the spread of one is not 0, but unknown
            low, high = spread(values)
            bar = [[mean - low], [high - mean]]
            axes.errorbar(place, mean, yerr=bar, fmt="none", ecolor=color, elinewidth=1, capsize=5)
    return line


def _draw_published(axes: Axes, series: Series, places: dict[float | None, float], color: str) -> Line2D:
    at, values = [places[place] for place in series.points], [values[0] for values in series.points.values()]
    look = {"linestyle": "--", "color": LIGHT_GREY, "marker": "s", "markerfacecolor": "white", "markeredgecolor": color}
    return axes.plot(at, values, **look, label=series.label, zorder=1)[0]


def _limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    middle, span = (low + high) / 2, max(1.16 * (high - low), MIN_SPAN)
    return middle - span / 2, min(middle + span / 2, 100.5)


def foot_text(measured: Sequence[Measured], held_out: int) -> str:
    """What must be known to read the pictures: what bars are, and how exact an accuracy can be."""
    seeds = len({one.seed for one in measured})
    bars = {1: "One seed: no spread is known", 2: "Dots: two seeds; bars: from the one to the other"}
    text = bars.get(seeds, f"Dots: {seeds} seeds; bars: standard deviation, of two the ends; lines: means")
    error = standard_error(90, held_out)
    return f"{text}. An accuracy of 90% on {held_out:,} images has a standard error of {error:.2f} points."
