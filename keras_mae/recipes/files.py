"""Recipes in files: `recipe.json` of a run folder, or one of a user's own (`--print` writes its form)."""

import dataclasses
import json
import os
import pathlib
import types
import typing

from keras_mae.recipes.fields import Recipe, cleared, from_json


def read_recipe(path: str | os.PathLike, recipe_class: type[Recipe]) -> Recipe:
    """The recipe of a file {"command": ..., "recipe": {field: value}}; whatever else the file holds is no part of it.

    A field that the file does not name has the value of the class.

    Raises:
        ValueError: there is no such file, it is of another command, or a field is unknown or has no such value.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"There is no recipe file {path}.")
    try:
        description = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from None
    if not isinstance(description, dict) or not isinstance(description.get("recipe"), dict):
        raise ValueError(f'{path} is no recipe: expected {{"command": ..., "recipe": {{field: value, ...}}, ...}}.')
    if description.get("command") != recipe_class.command:
        raise ValueError(
            f"{path} is a recipe of another command. Expected: {recipe_class.command}. "
            f"Received: {description.get('command')}"
        )
    values = from_json(description["recipe"])
    _check_fields(values, recipe_class, path)
    try:
        return recipe_class(**cleared(values))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _check_fields(values: dict, recipe_class: type[Recipe], path: pathlib.Path) -> None:
    known = [field.name for field in dataclasses.fields(recipe_class)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"{path} has fields that a recipe of {recipe_class.command} does not: {', '.join(unknown)}.")
    hints = typing.get_type_hints(recipe_class)
    for name, value in values.items():
        if not _fits(value, hints[name]):
            raise ValueError(f"{path}: {name} must be {_in_words(hints[name])}. Received: {value!r}")


def _fits(value, hint) -> bool:
    """Whether a value of JSON, lists made tuples, is one of the type; a whole number serves as a float."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        parts = typing.get_args(hint)
        if not isinstance(value, tuple):
            return False
        parts = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return len(parts) == len(value) and all(map(_fits, value, parts))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _in_words(hint) -> str:
    return str(hint).removeprefix("<class '").removesuffix("'>").replace("NoneType", "null").replace("None", "null")
