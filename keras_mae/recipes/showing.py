"""What `--recipe=list` and `--print` show."""

import dataclasses
from collections.abc import Mapping

from keras_mae.recipes.durations import INTERVALS, interval_steps, total_steps, warmup_steps
from keras_mae.recipes.fields import Recipe, peak_learning_rate
from keras_mae.recipes.provenance import Provenance

COLUMNS = ("recipe", "model", "pixels", "batch", "length", "result [source]")


def recipe_table(recipes: Mapping[str, Recipe], notes: Mapping[str, Provenance]) -> str:
    """A table for the terminal, one row a recipe.

    Args:
        recipes: by name.
        notes: by the same names.
    """
    rows = [COLUMNS, *(_row(name, recipe, notes[name]) for name, recipe in recipes.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def describe(recipe: Recipe, samples: int | None = None) -> dict:
    """All values of a recipe in the form of a recipe file, and what follows from them.

    Args:
        recipe: the recipe.
        samples: of the training split; None: unknown, as long as no data is named.

    Returns:
        {"command", "recipe": {field: value}, "derived": {name: value}}, JSON values.
    """
    derived: dict = {"peak_learning_rate": peak_learning_rate(recipe)}
    if samples is None:
        derived["missing"] = "--data, for the number of images and what follows from it: steps of run and warmup"
    else:
        derived |= {
            "images": samples,
            "total_steps": total_steps(recipe, samples),
            "warmup_steps": warmup_steps(recipe, samples),
            **{f"{what}_steps": interval_steps(recipe, what, samples) for what in INTERVALS},
        }
    return {"command": recipe.command, "recipe": dataclasses.asdict(recipe), "derived": derived}


def _row(name: str, recipe: Recipe, note: Provenance) -> tuple[str, ...]:
    sizes = (_model(recipe), _pixels(recipe), str(recipe.batch_size), _length(recipe))
    return (name, *sizes, f"{note.result} [{note.source}]")


def _model(recipe: Recipe) -> str:
    """Width/depth/heads of the ViT, and the side of its patches; of a tokenizer width and codes."""
    if recipe.embed_dim is None:
        return f"{recipe.hidden_dim} wide, {recipe.num_codes} codes"
    return f"{recipe.embed_dim}/{recipe.depth}/{recipe.num_heads} patch {recipe.patch_size}"


def _pixels(recipe: Recipe) -> str:
    size = recipe.image_size
    return str(size) if isinstance(size, int) else "x".join(map(str, size))


def _length(recipe: Recipe) -> str:
    if recipe.steps is not None:
        return f"{recipe.steps} steps"
    if recipe.images is not None:
        return f"{recipe.images:g} images"
    return f"{recipe.epochs:g} epochs"
