"""The card beside a model: where its weights came from and under which licence. It travels to what is made of them.

A card is a dict of JSON values with at least `source_license`: `card.json`, written and found by `model_assets`, with a
README.md made from it beside it.
"""

import json
import os
import pathlib

from keras_mae.training.atomic import write_text
from keras_mae.training.model_assets import find_asset, write_asset

NAME = "card.json"
UNKNOWN = "unknown"
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


def derived_card(card: dict | None, made_by: str) -> dict | None:
    """The card of a model that began with another's weights: under the same licence. None where that has no card.

    Args:
        card: of the model that it began with.
        made_by: command that trained it.
    """
    return card and {"source_license": card["source_license"], "made_by": made_by, "began_with": card}


def _readme(card: dict) -> str:
    facts = [f"- {name}: {value}" for name, value in card.items() if not isinstance(value, dict)]
    began_with = card.get("began_with")
    while began_with:
        facts.append("- began with: " + ", ".join(f"{k} {v}" for k, v in began_with.items() if not isinstance(v, dict)))
        began_with = began_with.get("began_with")
    return "# Model card\n\n" + "\n".join(facts) + "\n\n" + NOTE
