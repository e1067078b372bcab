"""What a training command shows instead of training: all its recipes, or every value of one."""

import dataclasses
import functools
import json
from collections.abc import Mapping

from absl import flags

import pipeline
from keras_mae import commandline
from keras_mae.recipes.fields import Recipe
from keras_mae.recipes.flags import recipe_from_flags
from keras_mae.recipes.provenance import Provenance
from keras_mae.recipes.showing import describe, recipe_table

LIST = "list"
NEEDED_TO_TRAIN = ("data", "run_dir")


def define_display_flags() -> None:
    """Defines --print, and asks for the flags that training needs, unless the command only shows something.

    --recipe and those flags are defined before.
    """
    flags.DEFINE_boolean("print", False, "Print every value of the recipe as JSON, and what follows from them; no run.")
    for name in NEEDED_TO_TRAIN:
        flags.register_multi_flags_validator(
            (name, "recipe", "print"), functools.partial(_is_given, name), message=f"--{name} is missing"
        )


def display(values: flags.FlagValues, recipes: Mapping[str, Recipe], notes: Mapping[str, Provenance]) -> bool:
    """Carries out --recipe=list and --print.

    Args:
        values: the command's flags.
        recipes: of the command, by name.
        notes: by the same names.

    Returns:
        True if one of them was given: then there is nothing left to do.

    Raises:
        CommandError: unknown recipe, or no such data.
    """
    if values.recipe == LIST:
        print(recipe_table(recipes, notes))
        return True
    if not values.print:
        return False
    with commandline.user_mistakes():
        recipe = recipe_from_flags(recipes, values)
        text = describe(recipe, _samples(values) if values.data else None)
        if values.recipe in notes:
            text["provenance"] = {"recipe": values.recipe, **dataclasses.asdict(notes[values.recipe])}
    print(json.dumps(text, indent=2))
    return True


def _is_given(name: str, values: Mapping) -> bool:
    return values[name] is not None or values["print"] or values["recipe"] == LIST


def _samples(values: flags.FlagValues) -> int:
    shard_set = pipeline.load_manifest(values.data)
    return shard_set.split(values.split or ("train" if "train" in shard_set.splits else None)).samples
