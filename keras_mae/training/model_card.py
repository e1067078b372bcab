"""The card beside a model: what it is, how it was trained, where its weights came from and under which licence.

A card is a dict of JSON values with at least `source_license`: `card.json`, written and found by `model_assets`, with a
README.md made from it beside it. It travels to what is made of the weights, as `began_with`. Imports neither Keras nor
TensorFlow.
"""

import json
import os
import pathlib

from keras_mae.training.atomic import write_text
from keras_mae.training.model_assets import find_asset, write_asset
from keras_mae.training.run_dir import read_description

NAME = "card.json"
UNKNOWN = "unknown"
FROM_SCRATCH = "none: trained from scratch"
BEGAN_WITH = "began_with"
NOTE = """\
The licence of the software that wrote these files does not cover the weights: they stay under the licence of their
source, and so does what is trained from them. Where it says "unknown", nobody has said; ask the source before use.
"""


class CardError(ValueError):
    """A card that is damaged."""


def write_card(folder: pathlib.Path, card: dict) -> None:
    """Writes `card.json` and README.md, and the card into a `saved_model` in the folder, if there is one."""
    write_asset(folder, NAME, json.dumps(card, indent=2) + "\n")
    write_text(folder / "README.md", _readme(card))


def read_card(path: str | os.PathLike) -> dict | None:
    """The card of the model at `path`: a file, an export folder, a run folder or a SavedModel. None: it has none.

    Raises:
        CardError: the card is damaged.
    """
    card = find_asset(path, NAME)
    if card is None:
        return None
    try:
        content = json.loads(card.read_text())
        content["source_license"]
    except (ValueError, TypeError, LookupError) as error:
        raise CardError(f"{card} is no card of a model: {error!r}.") from error
    return content


def derived_card(card: dict | None, made_by: str) -> dict:
    """The card of a model that began with another's weights: under the same licence, as far as it is known.

    Args:
        card: of the model that it began with; None: that has none.
        made_by: command that trained it.
    """
    if card is None:
        return {"source_license": UNKNOWN, "made_by": made_by}
    return {"source_license": card["source_license"], "made_by": made_by, BEGAN_WITH: card}


def run_card(
    made_by: str,
    path: str | os.PathLike | None,
    recipe: str,
    data: str | os.PathLike,
    target_file: str | os.PathLike | None = None,
) -> dict:
    """What a run's card says before anything is trained.

    What learns to predict the output of a published tokenizer stays under the tokenizer's licence.

    Args:
        made_by: command that trains.
        path: of the model that it begins with; None: none, it trains from scratch.
        recipe: name of the recipe, or its file.
        data: folder of the shard set. Of both the names are kept, without the folders that they lie in.
        target_file: what makes the target of pre-training, such as a tokenizer; None for none.

    Raises:
        CardError: the card of the model at `path`, or the one beside `target_file`, is damaged.
    """
    scratch = {"source_license": FROM_SCRATCH, "made_by": made_by}
    card = scratch if path is None else derived_card(read_card(path), made_by)
    card |= {"recipe": pathlib.Path(recipe).name, "shard_set": pathlib.Path(data).resolve().name}
    target = None if target_file is None else read_card(target_file)
    if target is not None:
        card["target"] = target
        if path is None:
            card["source_license"] = target["source_license"]
    return card


def run_facts(run: dict) -> dict:
    """What a card says of how long and on what a model was trained.

    Args:
        run: recipe.json of its run.
    """
    steps, batch_size, data = run["total_steps"], run["recipe"]["batch_size"], run["data"]
    epochs = steps * batch_size / data["samples"]
    trained = {"steps": steps, "batch_size": batch_size, "epochs": round(epochs, 3), "seed": run["recipe"]["seed"]}
    if "mask_ratio" in run["recipe"]:
        trained["mask_ratio"] = run["recipe"]["mask_ratio"]
    return {"training": trained, "data": data}


def measured_in_training(run_dir: pathlib.Path, best: bool) -> dict:
    """What the run itself measured on its validation split with the exported weights; {} for nothing.

    Args:
        run_dir: run folder.
        best: whether the weights are those of its highest validation accuracy, and not those of the last step.
    """
    figures: dict[int, dict] = {}
    log = run_dir / "metrics.jsonl"
    for line in log.read_text().splitlines() if log.is_file() else ():
        row = json.loads(line)
        measured = {name: value for name, value in row.items() if name.startswith("val_")}
        if measured:
            figures.setdefault(row["step"], {"step": row["step"]}).update(measured)
    run = read_description(run_dir) or {}
    step = run.get("total_steps")
    if best and figures:
        step = max(figures, key=lambda step: (figures[step].get("val_accuracy", -1), -step))
    return {"measured_in_training": figures[step]} if step in figures else {}


def _readme(card: dict) -> str:
    parts = ["# Model card", _as_list({name: value for name, value in card.items() if not isinstance(value, dict)})]
    for name, section in card.items():
        if isinstance(section, dict) and name != BEGAN_WITH:
            parts += [f"## {name}", _as_list(section)]
    began_with, chain = card.get(BEGAN_WITH), []
    while began_with:
        chain.append("- began with: " + ", ".join(f"{k} {v}" for k, v in began_with.items() if not isinstance(v, dict)))
        began_with = began_with.get(BEGAN_WITH)
    if chain:
        parts.append("\n".join(chain))
    if card["source_license"] != FROM_SCRATCH:
        parts.append(NOTE.strip())
    text = "\n\n".join(parts) + "\n"
    return text.encode(errors="backslashreplace").decode()  # a folder's name need not be valid text


def _as_list(values):
    shown = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    return "\n".join(f"- {name}: {value}" for name, value in shown.items())
