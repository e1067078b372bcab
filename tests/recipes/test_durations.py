"""Lengths in each unit become the same steps; one of several units holds."""

import dataclasses

import pytest

from keras_mae.recipes import PRETRAIN_RECIPES, interval_steps, peak_learning_rate, total_steps, warmup_steps
from keras_mae.recipes.durations import INTERVALS
from keras_mae.recipes.fields import Recipe, override

SAMPLES = 1000
RECIPE = override(PRETRAIN_RECIPES["vit_base"], {"batch_size": 50, "epochs": 8})  # 20 steps an epoch, 160 in all


@pytest.mark.parametrize("length", [{"epochs": 2.5}, {"steps": 50}, {"images": 2500}])
def test_the_run_is_as_long_in_each_unit(length):
    assert total_steps(override(RECIPE, length), SAMPLES) == 50


@pytest.mark.parametrize("unit", [{"epochs": 0.41}, {"images": 401}])
def test_a_batch_that_was_begun_is_trained_on(unit):
    assert total_steps(override(RECIPE, unit), SAMPLES) == 9  # 410 or 401 images


@pytest.mark.parametrize("length", [{"epochs": 0.5}, {"steps": 10}, {"images": 500}, {"share": 0.0625}])
@pytest.mark.parametrize("what", ["warmup", *INTERVALS])
def test_warmup_and_intervals_are_as_long_in_each_unit(what, length):
    recipe = override(RECIPE, {f"{what}_{unit}": value for unit, value in length.items()})
    steps = warmup_steps(recipe, SAMPLES) if what == "warmup" else interval_steps(recipe, what, SAMPLES)
    assert steps == 10


def test_the_warmup_may_be_a_fraction_of_a_step_and_an_interval_is_a_step_at_least():
    recipe = override(RECIPE, {"warmup_images": 20, "log_every_images": 20, "eval_every_share": 1e-9})
    assert warmup_steps(recipe, SAMPLES) == pytest.approx(0.4)
    assert [interval_steps(recipe, what, SAMPLES) for what in ("log_every", "eval_every")] == [1, 1]


def test_a_share_follows_the_run():
    recipe = override(RECIPE, {"checkpoint_every_share": 0.05})
    assert interval_steps(recipe, "checkpoint_every", SAMPLES) == 8
    assert interval_steps(override(recipe, {"steps": 1000}), "checkpoint_every", SAMPLES) == 50


def test_naming_one_unit_clears_the_others():
    recipe = override(RECIPE, {"eval_every_steps": 7, "images": 9})
    assert (recipe.eval_every_steps, recipe.eval_every_epochs, recipe.images) == (7, None, 9)
    recipe = override(recipe, {"steps": 3})
    assert (recipe.steps, recipe.images, recipe.epochs) == (3, None, 8)
    assert override(recipe, {"epochs": 4}).steps is None


@pytest.mark.parametrize("unit", ["steps", "images"])
def test_the_run_has_the_length_that_overrides_epochs(unit):
    recipe = override(RECIPE, {"epochs": 4, unit: 50})
    assert (recipe.epochs, total_steps(recipe, SAMPLES)) == (4, 50 if unit == "steps" else 1)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"steps": 1, "images": 1}, "Give steps or images, not both"),
        ({"log_every_steps": 1, "log_every_share": 0.1}, "Give log_every_steps or log_every_share, not both"),
        ({"images": 0}, "images must be above 0. Received: 0"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0. Received: -1"),
        ({"warmup_share": 1.5}, "warmup_share must be at least 0 and at most 1. Received: 1.5"),
        ({"eval_every_share": 0}, "eval_every_share must be above 0 and at most 1. Received: 0"),
        ({"checkpoint_every_epochs": float("inf")}, "checkpoint_every_epochs must be above 0. Received: inf"),
    ],
)
def test_lengths_that_no_recipe_can_have(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        override(RECIPE, values)


@pytest.mark.parametrize("values", [{}, {"warmup_epochs": 1, "warmup_steps": 1}])
def test_a_recipe_has_one_warmup(values):
    with pytest.raises(ValueError, match="one of warmup_epochs or warmup_steps or .*, and no other"):
        Recipe(**values)


def test_a_learning_rate_holds_as_it_is():
    assert peak_learning_rate(override(RECIPE, {"base_learning_rate": 1e-3})) == pytest.approx(1e-3 * 50 / 256)
    fixed = override(RECIPE, {"learning_rate": 3e-4})
    assert peak_learning_rate(dataclasses.replace(fixed, batch_size=8)) == 3e-4
    assert override(fixed, {"base_learning_rate": 1e-3}).learning_rate is None
