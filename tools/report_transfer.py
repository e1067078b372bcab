"""The transfer plots of tools.report: accuracy against labels, trainable blocks and masking ratio, of any results.

All of it is in results.json, but for the masking ratio of the encoder's pre-training: that is looked for in the card of
the model that was evaluated, which names what it began with.
"""

import base64
import html
import os
import pathlib
from collections.abc import Sequence

from keras_mae.evaluation.results_file import read_results
from keras_mae.training.model_card import CardError, read_card
from tools.transfer_panels import PANELS, Measured, make_panels
from tools.transfer_plan import PROBED, SCRATCH, TUNED
from tools.transfer_plots import draw_panels

COMMANDS = ("finetune", "linear_probe")
RUN_LEVELS = 2  # folders from RUN/evaluation/SPLIT up to RUN
FOOT = (
    "Dots: runs, whatever their learning rates and lengths; lines: their means; bars: from least to largest of two, "
    "standard deviation of more."
)


def measured_runs(paths: Sequence[str | os.PathLike]) -> list[Measured]:
    """The accuracies of fine-tuned, scratch and probe runs among files of results; suites and unknown runs have none.

    Raises:
        ResultsError: a file holds no results.
    """
    measured = []
    for path in paths:
        results = read_results(path)
        run = results["run"]
        of_another_kind = "suite" in results or "knn" in results
        if of_another_kind or run is None or "data" not in run or run["command"] not in COMMANDS:
            continue
        recipe = run["recipe"]
        protocol = PROBED if run["command"] == "linear_probe" else SCRATCH if recipe["from_scratch"] else TUNED
        encoder = {} if protocol == SCRATCH else pretraining(path, results)
        measured.append(
            Measured(
                protocol=protocol,
                num_labels=run["data"]["samples"],
                mask_ratio=encoder.get("mask_ratio"),
                trainable_blocks=recipe.get("trainable_blocks"),
                seed=recipe["seed"],
                accuracy=100 * results["accuracy"],
                about=_about(results, encoder),
            )
        )
    return measured


def pretraining(path: str | os.PathLike, results: dict) -> dict:
    """How the encoder behind the model was pre-trained, as the card says: steps, mask_ratio, ...; {}: it does not.

    Args:
        path: of the results, which are in the folder of the run where nothing else was asked for.
        results: its content.
    """
    for place in (results["model"], *pathlib.Path(path).resolve().parents[RUN_LEVELS : RUN_LEVELS + 1]):
        try:
            card = (read_card(place) or {}).get("began_with")
        except CardError:
            continue
        while card:  # another fine-tuning may come first, and behind pre-training what that went on from
            found = card.get("training") or {}
            if "mask_ratio" in found:
                return found
            card = card.get("began_with")
    return {}


def _about(results: dict, encoder: dict) -> str:
    # Data and model; and of the encoder what must not be mixed: its training, or else which one it is.
    structure, data = results["structure"], pathlib.Path(results["data"]).name
    size = "/".join(str(structure[name]) for name in ("embed_dim", "depth", "num_heads"))
    known = f"{data} {results['split']}, ViT {size}"
    if pathlib.Path(results["model"]).parts[-2:] == ("export", "best"):
        known += ", best epoch"
    if "mask_ratio" in encoder:
        return f"{known}, encoder of {encoder['steps']:,} steps of {encoder['batch_size']:,}"
    return f"{known}, encoder {results['run']['data'].get('encoder', 'unknown')[:8]}"


def transfer_pictures(measured: Sequence[Measured]) -> dict[str, bytes]:
    """PNG of each plot that there are two places for at least, by its name."""
    return {panel.name: draw_panels([panel], FOOT) for panel in make_panels(measured)}


def transfer_notes(measured: Sequence[Measured]) -> list[str]:
    """What the plots leave out."""
    unknown = sum(one.mask_ratio is None and one.protocol != SCRATCH for one in measured)
    if not unknown:
        return []
    return [
        f"Of {unknown} of {len(measured)} results, the masking ratio of the encoder's pre-training is not known: the "
        "model is gone, or its card does not say it. They are not in the plot against the masking ratio."
    ]


def pictures_html(pictures: dict[str, bytes], notes: Sequence[str]) -> str:
    """The plots as a part of a page that needs no other file."""
    lines = [
        f'<img alt="{html.escape(PANELS[name][1])}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        for name, png in pictures.items()
    ]
    return "\n".join([*lines, *(f"<p>{html.escape(note)}</p>" for note in notes)])
