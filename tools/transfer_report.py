"""How tools.transfer_study shows a study: results.json, tables in Markdown, and a figure."""

import contextlib
import json
import os
from collections.abc import Mapping
from typing import Any

from pipeline.atomic import open_atomically
from tools.ablation_report import standard_error
from tools.transfer_panels import PANELS, Measured, Panel, cell_text, make_panels, shown_in_panels, table_rows
from tools.transfer_plan import PROBED, SCRATCH
from tools.transfer_plots import draw_panels, foot_text

FORMAT = "keras_mae transfer study"


def write_report(folder: str | os.PathLike, results: Mapping[str, Any], with_figure: bool) -> None:
    """Writes results.json and, where there is something new to show, table.md and transfer.png.

    Args:
        folder: of the study.
        results: what results.json holds, as `tools.transfer_study` makes it.
        with_figure: whether to write table and figure.
    """
    with open_atomically(os.path.join(folder, "results.json")) as file:
        file.write((json.dumps(results, indent=1) + "\n").encode())
    if not with_figure:
        return
    with open_atomically(os.path.join(folder, "table.md"), durable=False) as file:
        file.write(table_text(results).encode())
    measured, picture = measured_in(results), os.path.join(folder, "transfer.png")
    if panels := make_panels(measured, results["num_images"]):
        with open_atomically(picture, durable=False) as file:
            file.write(draw_panels(panels, foot_text(measured, results["num_held_out"])))
    else:
        with contextlib.suppress(FileNotFoundError):
            os.remove(picture)  # of what was measured before, and is not asked for now


def measured_in(results: Mapping[str, Any]) -> list[Measured]:
    """The accuracies that a study has."""
    return [
        Measured(
            row["protocol"],
            row["num_labels"],
            row["mask_ratio"],
            row["trainable_blocks"],
            row["seed"],
            row["accuracy_percent"],
        )
        for row in results["rows"]
        if row["state"] == "finished"
    ]


def table_text(results: Mapping[str, Any]) -> str:
    """The tables as Markdown, with what must be known to read them."""
    measured = measured_in(results)
    lines = ["# Transfer study", ""]
    for panel in make_panels(measured, results["num_images"]):
        lines += [*_panel_lines(panel), ""]
    lines += [*_single_lines(measured), *(f"- {note}" for note in notes(results, measured))]
    return "\n".join(lines) + "\n"


def _panel_lines(panel: Panel) -> list[str]:
    _, title, label = PANELS[panel.name]
    own = [series.label for series in panel.series if not series.is_published]
    lines = [
        f"## {title}",
        "",
        f"| {' | '.join([label.removesuffix(' (logarithmic)'), *own])} |",
        f"|{' --- |' * (1 + len(own))}",
    ]
    return [*lines, *(f"| {' | '.join([place, *cells])} |" for place, cells in table_rows(panel))]


def _single_lines(measured: list[Measured]) -> list[str]:
    """A table of what is in no panel, having but one place on each axis."""
    shown = shown_in_panels(measured)
    rest: dict[Measured, list[float]] = {}
    for one in measured:
        if one not in shown:
            rest.setdefault(one._replace(seed=0, accuracy=0), []).append(one.accuracy)
    if not rest:
        return []
    lines = ["| training | labels | masking ratio | accuracy |", "| --- | --- | --- | --- |"]
    for group, values in rest.items():
        blocks = "" if group.trainable_blocks is None else f", last {group.trainable_blocks:g} blocks"
        ratio = "-" if group.mask_ratio is None else f"{100 * group.mask_ratio:g}%"
        lines.append(f"| {group.protocol}{blocks} | {group.num_labels:,} | {ratio} | {cell_text(values)} |")
    return [*lines, ""]


def notes(results: Mapping[str, Any], measured: list[Measured]) -> list[str]:
    """What the figures are of, how exact they can be, and which are missing and why."""
    setting, images = results["setting"], results["num_held_out"]
    seeds = sorted({row["seed"] for row in results["rows"]})
    errors = ", ".join(f"{standard_error(percent, images):.2f} at {percent}%" for percent in (60, 90, 97))
    lines = [
        f"Recipe `{setting['recipe']}`, seeds {', '.join(map(str, seeds))}: each with its own pre-training on "
        f"{results['num_images']:,} images of `{setting['split']}` and, of fewer than all labels, its own choice; "
        f"accuracy on {images:,} images of `{setting['val_split']}`, the same for all.",
        "Means over the seeds that are done; in brackets, two seeds from the lower to the higher; after ±, the "
        "standard deviation of three or more. Two seeds show that results move, not by how much they move in general.",
        f"The standard error of an accuracy on {images:,} images, in points: {errors}. All seeds are "
        "measured on the same images, so it comes on top of their spread; differences below two of it say nothing.",
        "Accuracy is that of the last step, not of the best one.",
    ]
    if any(one.protocol == SCRATCH for one in measured):
        lines.append(
            f"From scratch: {setting['scratch_length']:g} times the images of the fine-tuning. Fine-tuned "
            "accuracies have had those of the pre-training beside that."
        )
    if any(one.protocol == PROBED for one in measured):
        lines.append("Linear probes: on all labels, and on features of images that are not augmented.")
    missing = (row for row in results["rows"] if row["state"] not in ("finished", "to do"))
    lines += [f"{row['name']}: {row['state']}, {row['reason']}" for row in missing]
    if to_do := sum(row["state"] == "to do" for row in results["rows"]):
        lines.append(f"Not there yet: {to_do} of {len(results['rows'])} accuracies.")
    return lines
