"""How tools.ablate shows a table: Markdown, and a figure, both beside the paper's numbers."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.atomic import open_atomically
from tools.shard_figures import COLORS, STYLE

OURS = ("finetuned_percent", "linear_percent")
COLUMNS = (
    ("here: fine-tuned", "finetuned_percent"),
    ("here: linear probe", "linear_percent"),
    ("paper: fine-tuned", "paper_finetuned_percent"),
    ("paper: linear probe", "paper_linear_percent"),
)
PAPER = "ViT-L/16, 800 epochs of ImageNet-1K (published, not measured here)"

# The figure, in inches
WIDTH, NAME_WIDTH, MARGIN, GAP = 11.0, 2.6, 0.3, 0.35
ROW_HEIGHT, HEAD, FOOT = 0.42, 1.0, 0.95
DOTS_PER_INCH = 100
MIN_SPAN = 4.0  # points that a panel shows at least, so that little differences look little


def write_report(folder: str | os.PathLike, results: Mapping[str, Any]) -> None:
    """Writes results.json, table.md and table.png.

    Args:
        folder: of the table.
        results: what results.json holds, of `tools.ablate.run_table`.
    """
    with open_atomically(os.path.join(folder, "results.json")) as file:
        file.write((json.dumps(results, indent=2) + "\n").encode())
    with open_atomically(os.path.join(folder, "table.md"), durable=False) as file:
        file.write(table_text(results).encode())
    with open_atomically(os.path.join(folder, "table.png"), durable=False) as file:
        draw_table(results, file)


def standard_error(percent: float, images: int) -> float:
    """Of an accuracy in percent, measured on so many images, in points."""
    return math.sqrt(percent * (100 - percent) / images)


def shown_rows(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows that are part of the table: all but those left out."""
    return [row for row in results["rows"] if row["state"] != "left out"]


def shown_columns(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The columns of figures, as (title, name in a row); without linear probes here there is no such column."""
    without = results["setting"]["probe_flags"] is None
    return [(title, name) for title, name in COLUMNS if not (without and name == "linear_percent")]


def table_text(results: Mapping[str, Any]) -> str:
    """The table as Markdown, with what must be known to read it."""
    columns = shown_columns(results)
    lines = [
        f"# Table {results['table']} in small: {results['text']}",
        "",
        f"| {' | '.join([results['text'], *(column for column, _ in columns)])} |",
        f"|{' --- |' * (1 + len(columns))}",
    ]
    for row in shown_rows(results):
        lines.append(f"| {' | '.join([row['text'], *(_cell(row, name, results) for _, name in columns)])} |")
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(results))]) + "\n"


def notes(results: Mapping[str, Any]) -> list[str]:
    """What the figures are of, how exact they can be, and which rows are missing and why."""
    images, setting = results["num_held_out"], results["setting"]
    lines = [
        f"Here: recipe `{setting['recipe']}`, one run a row (seed {setting['seed']}); pre-trained on "
        f"{results['num_images']:,} images (`{setting['split']}`), fine-tuned on {results['num_labels']:,} "
        f"(`{setting['labels']}`), accuracy on {images:,} (`{setting['val_split']}`).",
        "± is the standard error of an accuracy on so many images; another seed moves a row as well.",
        f"Paper: {PAPER}.",
    ]
    if setting["probe_flags"] is not None:
        images = f"{results['num_images']:,} images of `{setting['split']}`"
        lines.insert(1, f"Linear probes here: on all {images} with their labels.")
    lines += [
        f"{row['text']}: {row['state']}, {row['reason']}"
        for row in results["rows"]
        if row["state"] not in ("finished", "to do")
    ]
    return lines


def _cell(row: Mapping[str, Any], name: str, results: Mapping[str, Any]) -> str:
    if name not in OURS:
        return f"{row[name]:.1f}%"
    if row["state"] != "finished":
        return row["state"]
    return f"{row[name]:.1f}% ± {standard_error(row[name], results['num_held_out']):.1f}"


def draw_table(results: Mapping[str, Any], file: BinaryIO) -> None:
    """Writes the table as PNG: a line of dots for each column, the names of the rows at the left."""
    rows = shown_rows(results)
    height = HEAD + len(rows) * ROW_HEIGHT + FOOT
    columns = shown_columns(results)
    panel = (WIDTH - NAME_WIDTH - 2 * MARGIN - (len(columns) - 1) * GAP) / len(columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure((WIDTH, height), dpi=DOTS_PER_INCH, facecolor="white")
        title = f"Table {results['table']} in small: {results['text']}"
        figure.text(MARGIN / WIDTH, 1 - 0.45 / height, title, size=14, weight="bold")
        for number, (column, name) in enumerate(columns):
            left = NAME_WIDTH + MARGIN + number * (panel + GAP)
            place = (left / WIDTH, FOOT / height, panel / WIDTH, len(rows) * ROW_HEIGHT / height)
            axes = figure.add_axes(place)
            _draw_column(axes, rows, name, results["num_held_out"])
            axes.set_title(f"{column}, %")
            axes.set_yticks(range(len(rows)), [row["text"] for row in rows] if number == 0 else [])
        shown = notes(results)[:1] + [f"Paper: {PAPER}."]
        figure.text(MARGIN / WIDTH, 0.15 / height, "\n".join(shown).replace("`", ""), size=8)
        figure.savefig(file, format="png")


def _draw_column(axes: Axes, rows: Sequence[Mapping[str, Any]], name: str, images: int) -> None:
    # Dots, not bars: the scale does not begin at 0. Only our own figures have an error to show.
    color = COLORS[0] if name in OURS else COLORS[5]
    found = [(place, row[name]) for place, row in enumerate(rows) if row.get(name) is not None]
    ends = []
    for place, percent in found:
        error = standard_error(percent, images) if name in OURS else 0
        ends += [percent - error, percent + error]
        axes.errorbar(percent, place, xerr=error or None, fmt="o", color=color, capsize=3, markersize=6)
        axes.annotate(f"{percent:.1f}", (percent, place), (0, 7), textcoords="offset points", ha="center", size=8)
    for place, row in enumerate(rows):
        if row.get(name) is None:
            axes.text(0.5, place, row["state"], transform=axes.get_yaxis_transform(), ha="center", va="center")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(*_limits(ends))
    axes.tick_params(axis="y", length=0)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return 0, 100
    middle, span = (min(values) + max(values)) / 2, max(1.3 * (max(values) - min(values)), MIN_SPAN)
    return middle - span / 2, middle + span / 2
