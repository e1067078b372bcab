"""Recipes as data: frozen dataclasses of values, and the flags made from them."""

from keras_mae.recipes.durations import interval_steps, total_steps, warmup_steps
from keras_mae.recipes.fields import Recipe, from_json, peak_learning_rate, structure
from keras_mae.recipes.finetuning import FINETUNE_RECIPES, FinetuneRecipe
from keras_mae.recipes.flags import define_recipe_flags, recipe_from_flags
from keras_mae.recipes.pretraining import PRETRAIN_RECIPES, PretrainRecipe

__all__ = [
    "FINETUNE_RECIPES",
    "PRETRAIN_RECIPES",
    "FinetuneRecipe",
    "PretrainRecipe",
    "Recipe",
    "define_recipe_flags",
    "from_json",
    "interval_steps",
    "peak_learning_rate",
    "recipe_from_flags",
    "structure",
    "total_steps",
    "warmup_steps",
]
