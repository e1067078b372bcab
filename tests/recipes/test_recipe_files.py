"""A recipe comes back from its file as it was, and a wrong file is refused by field."""

import dataclasses
import json

import pytest
from absl import flags

from keras_mae.recipes import (
    FINETUNE_RECIPES,
    PRETRAIN_RECIPES,
    FinetuneRecipe,
    PretrainRecipe,
    define_recipe_flags,
    recipe_from_flags,
)
from keras_mae.recipes.fields import override
from keras_mae.recipes.files import read_recipe
from keras_mae.recipes.probing import LINEAR_PROBE_RECIPES
from keras_mae.recipes.tokenizer import TOKENIZER_RECIPES

BOOKS = (PRETRAIN_RECIPES, FINETUNE_RECIPES, LINEAR_PROBE_RECIPES, TOKENIZER_RECIPES)
ALL = [recipe for book in BOOKS for recipe in book.values()]


def write(path, **description):
    path.write_text(json.dumps(description))
    return path


@pytest.mark.parametrize(
    "recipe", ALL, ids=[f"{recipe.command}.{name}" for book in BOOKS for name, recipe in book.items()]
)
def test_every_recipe_comes_back_from_its_file(tmp_path, recipe):
    recipe = override(recipe, {"image_size": (16, 32), "resize_size": 64, "eval_every_steps": 3, "images": 2.5e6})
    file = write(tmp_path / "recipe.json", command=recipe.command, recipe=dataclasses.asdict(recipe), total_steps=5)
    assert read_recipe(file, type(recipe)) == recipe


def test_a_short_file_names_only_what_is_its_own(tmp_path):
    file = write(tmp_path / "mine.json", command="pretrain", recipe={"warmup_share": 0.1, "log_every_epochs": 1})
    expected = PretrainRecipe(warmup_share=0.1, log_every_epochs=1, log_every_steps=None)
    assert read_recipe(file, PretrainRecipe) == expected


def test_flags_override_a_file(tmp_path):
    recipe = override(PRETRAIN_RECIPES["vit_tiny"], {"mask_ratio": 0.5, "seed": 3})
    file = write(tmp_path / "recipe.json", command="pretrain", recipe=dataclasses.asdict(recipe))
    values = flags.FlagValues()
    define_recipe_flags(PRETRAIN_RECIPES, flag_values=values)
    values(["command", f"--recipe={file}", "--seed=4"])
    assert recipe_from_flags(PRETRAIN_RECIPES, values) == dataclasses.replace(recipe, seed=4)


@pytest.mark.parametrize(
    ("description", "sentence"),
    [
        ({"command": "pretrain", "recipe": {}}, "another command. Expected: finetune. Received: pretrain"),
        ({"recipe": {}}, "another command. Expected: finetune. Received: None"),
        ({"command": "finetune"}, "is no recipe: expected"),
        (
            {"command": "finetune", "recipe": {"mask_ratio": 1, "warmup_epochs": 1, "batchsize": 2}},
            "fields that a recipe of finetune does not: batchsize, mask_ratio",
        ),
        ({"command": "finetune", "recipe": {"epochs": "ten"}}, "epochs must be float. Received: 'ten'"),
        ({"command": "finetune", "recipe": {"batch_size": 2.5}}, "batch_size must be int. Received: 2.5"),
        ({"command": "finetune", "recipe": {"batch_size": True}}, "batch_size must be int. Received: True"),
        ({"command": "finetune", "recipe": {"flip": 1}}, "flip must be bool. Received: 1"),
        ({"command": "finetune", "recipe": {"seed": None}}, "seed must be int. Received: None"),
        ({"command": "finetune", "recipe": {"image_size": [1, 2, 3]}}, "image_size must be int .*Received: .1, 2, 3"),
        ({"command": "finetune", "recipe": {"pixel_mean": 0.5}}, "pixel_mean must be tuple.*Received: 0.5"),
        ({"command": "finetune", "recipe": {}}, "mine.json: A recipe needs one of warmup_epochs"),
        ({"command": "finetune", "recipe": {"warmup_steps": 1, "mixup": -1}}, "mixup must be at least 0"),
    ],
)
def test_what_is_no_recipe_of_the_command(tmp_path, description, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_recipe(write(tmp_path / "mine.json", **description), FinetuneRecipe)


def test_a_file_that_is_missing_or_no_json_is_named(tmp_path):
    with pytest.raises(ValueError, match="There is no recipe file .*gone.json"):
        read_recipe(tmp_path / "gone.json", FinetuneRecipe)
    (tmp_path / "torn.json").write_text('{"command": "fine')
    with pytest.raises(ValueError, match="torn.json is no JSON file"):
        read_recipe(tmp_path / "torn.json", FinetuneRecipe)
