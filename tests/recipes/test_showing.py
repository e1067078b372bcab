"""What is said about recipes: each has its record, and the table and the description hold the recipe's own values."""

import dataclasses
import json
import shlex
from pathlib import Path

import pytest

from keras_mae.recipes import FINETUNE_RECIPES, PRETRAIN_RECIPES
from keras_mae.recipes.fields import override
from keras_mae.recipes.finetuning import FINETUNE_NOTES
from keras_mae.recipes.pretraining import PRETRAIN_NOTES
from keras_mae.recipes.probing import LINEAR_PROBE_NOTES, LINEAR_PROBE_RECIPES
from keras_mae.recipes.provenance import Provenance
from keras_mae.recipes.showing import describe, recipe_table
from keras_mae.recipes.tokenizer import TOKENIZER_NOTES, TOKENIZER_RECIPES

BOOKS = {
    "pretrain": (PRETRAIN_RECIPES, PRETRAIN_NOTES),
    "finetune": (FINETUNE_RECIPES, FINETUNE_NOTES),
    "linear_probe": (LINEAR_PROBE_RECIPES, LINEAR_PROBE_NOTES),
    "pretrain_tokenizer": (TOKENIZER_RECIPES, TOKENIZER_NOTES),
}
RUN_FLAGS = {"recipe", "data", "run_dir", "encoder", "split", "val_split"}


@pytest.mark.parametrize("command", BOOKS)
def test_every_recipe_has_its_record_with_the_command_that_runs_it(command):
    recipes, notes = BOOKS[command]
    assert list(recipes) == list(notes)
    for name, note in notes.items():
        python, _, module, *given = shlex.split(note.command)
        values = dict(word.removeprefix("--").split("=") for word in given)
        assert (python, module, values["recipe"]) == ("python", f"keras_mae.{recipes[name].command}", name)
        assert recipes[name].command == command
        assert values.keys() <= RUN_FLAGS | {field.name for field in dataclasses.fields(recipes[name])}
        needs_encoder = command in ("finetune", "linear_probe") and not getattr(recipes[name], "from_scratch", False)
        assert ("encoder" in values) == needs_encoder


@pytest.mark.parametrize("command", BOOKS)
def test_a_result_has_a_source_and_none_has_none(command):
    for note in BOOKS[command][1].values():
        assert (note.result == "-") == (note.source == "not measured")


def test_a_source_is_one_of_a_few():
    with pytest.raises(ValueError, match="source must be one of published, .*Received: 'hearsay'"):
        Provenance("python", "-", "99.9", "hearsay")


@pytest.mark.parametrize("command", BOOKS)
def test_the_table_has_a_row_for_each_recipe(command):
    recipes, notes = BOOKS[command]
    head, *rows = recipe_table(recipes, notes).splitlines()
    assert head.split()[:4] == ["recipe", "model", "pixels", "batch"]
    assert [row.split()[0] for row in rows] == list(recipes)
    assert all(f"{notes[row.split()[0]].result} [{notes[row.split()[0]].source}]" in row for row in rows)


def test_a_row_has_the_sizes():
    table = recipe_table(FINETUNE_RECIPES, FINETUNE_NOTES)
    row = next(row for row in table.splitlines() if row.startswith("vit_huge_448 "))
    assert row.split()[1:9] == ["1280/32/16", "patch", "14", "448", "1024", "50", "epochs", "87.3"]


def test_the_description_is_the_recipe_and_what_follows():
    recipe = override(PRETRAIN_RECIPES["vit_base"], {"batch_size": 64, "epochs": 100, "log_every_images": 640})
    text = json.loads(json.dumps(describe(recipe, samples=640)))
    assert text["command"] == "pretrain"
    assert text["recipe"] == json.loads(json.dumps(dataclasses.asdict(recipe)))
    assert text["derived"] == {
        "peak_learning_rate": pytest.approx(1.5e-4 / 4),
        "images": 640,
        "total_steps": 1000,
        "warmup_steps": 400,  # 40 epochs of 10 steps
        "eval_every_steps": 10,
        "checkpoint_every_steps": 100,
        "log_every_steps": 10,
    }


def test_without_data_the_description_says_what_is_missing():
    derived = describe(PRETRAIN_RECIPES["vit_base"])["derived"]
    assert derived.keys() == {"peak_learning_rate", "missing"}
    assert derived["missing"].startswith("--data")


@pytest.mark.parametrize("command", BOOKS)
def test_the_guide_has_the_table(command):
    guide = Path(__file__).parents[2] / "docs" / "recipes.md"
    assert f"```\n{recipe_table(*BOOKS[command])}\n```" in guide.read_text()
