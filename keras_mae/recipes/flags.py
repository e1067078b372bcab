"""Command-line flags made from the fields of a recipe."""

import dataclasses
import re
import typing
from collections.abc import Callable, Mapping

from absl import flags

from keras_mae.recipes.fields import Recipe, override
from keras_mae.recipes.files import read_recipe


def define_recipe_flags(
    recipes: Mapping[str, Recipe], default: str = "vit_base", flag_values: flags.FlagValues | None = None
) -> None:
    """Defines `--recipe` and one flag for each field of the recipes.

    A field's flag is unset by default: the recipe's value holds unless the user gives another.

    Args:
        recipes: name -> recipe, all of one class.
        default: the recipe where the user names none.
        flag_values: where to define them; None: the global ones.
    """
    where = {} if flag_values is None else {"flag_values": flag_values}
    text = f"Recipe to start from: {', '.join(recipes)}; a recipe.json; or list, to show them."
    flags.DEFINE_string("recipe", default, text, **where)
    recipe_class = type(next(iter(recipes.values())))
    texts = _field_texts(recipe_class)
    for field in dataclasses.fields(recipe_class):
        define = _definer(field.name, typing.get_type_hints(recipe_class)[field.name])
        define(field.name, None, texts[field.name], **where)


def recipe_from_flags(recipes: Mapping[str, Recipe], values: flags.FlagValues) -> Recipe:
    """The named recipe, or that of a file, with the fields that the user gave.

    Raises:
        ValueError: unknown recipe, a file that is none, or a value that no recipe can have.
    """
    recipe = _named_recipe(recipes, values.recipe)
    given = {
        field.name: _convert(field.name, values[field.name].value)
        for field in dataclasses.fields(recipe)
        if values[field.name].value is not None
    }
    return override(recipe, given)


def _named_recipe(recipes: Mapping[str, Recipe], name: str) -> Recipe:
    if name in recipes:
        return recipes[name]
    if name.endswith(".json"):
        return read_recipe(name, type(next(iter(recipes.values()))))
    raise ValueError(
        f"Unknown recipe. Expected one of: {', '.join(recipes)}; or the path of a recipe.json. Received: {name!r}"
    )


def _definer(name: str, hint: type) -> Callable:
    if name == "image_size" or typing.get_origin(hint) is tuple:
        return flags.DEFINE_list
    if hint is bool:
        return flags.DEFINE_boolean
    if str in (hint, *typing.get_args(hint)):
        return flags.DEFINE_string
    return flags.DEFINE_integer if int in (hint, *typing.get_args(hint)) else flags.DEFINE_float


def _convert(name: str, value):
    if not isinstance(value, list):
        return value
    number = int if name == "image_size" else float
    try:
        numbers = tuple(number(part) for part in value)
    except ValueError:
        raise ValueError(f"{name} takes numbers separated by commas. Received: {','.join(value)!r}") from None
    if name != "image_size":
        return numbers
    if len(numbers) not in (1, 2):
        raise ValueError(f"image_size takes a side or height,width. Received: {','.join(value)!r}")
    return numbers[0] if len(numbers) == 1 else numbers


def _field_texts(recipe_class: type) -> dict[str, str]:
    """The `Attributes:` of the class and its bases, field by field."""
    texts = {}
    for base in reversed(recipe_class.__mro__):
        for name, text in re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", base.__doc__ or "", flags=re.MULTILINE):
            texts[name] = " ".join(text.split())
    return texts
