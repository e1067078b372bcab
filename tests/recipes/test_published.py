"""Published rows: all figures that are known, each with a command whose recipe and flags exist."""

import dataclasses
import importlib
import shlex

import pytest
from absl import flags

from keras_mae.recipes import FINETUNE_RECIPES
from keras_mae.recipes.probing import LINEAR_PROBE_RECIPES
from keras_mae.recipes.published import IMAGENET, MODELS, PUBLISHED

B, L, H, H448 = MODELS.values()


def values(data=IMAGENET, figure="top-1", **wanted):
    wanted |= {"data": data, "figure": figure}
    return {row.value for row in PUBLISHED if all(getattr(row, name) == value for name, value in wanted.items())}


def test_the_figures_of_the_paper_are_there():
    tuned = [
        values(protocol="fine-tuned", method="MAE", model=model, source="paper, Table 3") for model in (B, L, H, H448)
    ]
    assert tuned == [{83.6}, {85.9}, {86.9}, {87.8}]
    assert values(method="scratch", protocol="from scratch") == {82.3, 82.6, 83.1}
    assert [values(method=name) for name in ("DINO", "MoCo v3", "BEiT")] == [{82.8}, {83.2, 84.1}, {83.2, 85.2}]
    assert values(protocol="linear probe", method="MAE") == {68.0, 75.8, 76.6, 67.8, 76.0, 77.2}
    assert values(source="paper, Section 4.3") == {73.5, 79.1, 81.0}
    assert values("iNaturalist 2018") == {75.4, 80.1, 83.0, 86.8}
    assert values("Places365") == {57.9, 59.4, 59.8, 60.3}
    assert values("ImageNet-C", "mCE", method="MAE") == {51.7, 41.8, 33.8, 36.8}
    assert values("ImageNet-A", method="MAE") == {35.9, 57.1, 68.2, 76.7}
    assert values(figure="loss") == {0.731, 0.646, 0.584}


def test_no_row_is_there_twice():
    keys = [(row.data, row.protocol, row.method, row.model, row.figure, row.source) for row in PUBLISHED]
    assert len(keys) == len(set(keys))


def test_a_row_without_a_command_says_what_is_missing():
    assert [row for row in PUBLISHED if not row.command and not row.missing] == []
    assert all(row.source and not row.note.startswith("RUN: {") for row in PUBLISHED)
    assert all(isinstance(value, (str, float)) for row in PUBLISHED for value in dataclasses.astuple(row))


@pytest.mark.parametrize("command", sorted({word for row in PUBLISHED for word in row.command.split(" && ") if word}))
def test_commands_have_recipes_and_flags_that_exist(command):
    python, minus, module, *words = shlex.split(command)
    assert (python, minus) == ("python", "-m")
    given = dict(word.removeprefix("--").split("=", 1) for word in words)
    if module == "keras_mae.linear_probe":
        assert given["recipe"] in LINEAR_PROBE_RECIPES
    if module == "keras_mae.finetune":
        recipe = FINETUNE_RECIPES[given["recipe"]]
        assert recipe.from_scratch != ("encoder" in given)
    before = set(flags.FLAGS)
    importlib.import_module(module).define_flags()
    try:
        flags.FLAGS(["command", *words])  # raises for a flag that does not exist
    finally:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
