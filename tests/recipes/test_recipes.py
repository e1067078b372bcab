"""Recipes against the published values, and the arithmetic that follows from their fields."""

import dataclasses

import pytest
from absl import flags

from keras_mae.layers import MASKINGS
from keras_mae.models import VIT_SIZES
from keras_mae.recipes import (
    FINETUNE_RECIPES,
    PRETRAIN_RECIPES,
    define_recipe_flags,
    peak_learning_rate,
    recipe_from_flags,
    total_steps,
    warmup_steps,
)
from keras_mae.recipes.fields import override
from keras_mae.recipes.pretraining import CHOICES
from keras_mae.recipes.probing import LINEAR_PROBE_RECIPES


@pytest.mark.parametrize("recipes", [PRETRAIN_RECIPES, FINETUNE_RECIPES, LINEAR_PROBE_RECIPES])
@pytest.mark.parametrize("size", VIT_SIZES)
def test_recipes_have_the_usual_sizes(recipes, size):
    recipe = recipes[f"vit_{size}"]
    assert {name: getattr(recipe, name) for name in VIT_SIZES[size]} == VIT_SIZES[size]


@pytest.mark.parametrize("size", ["base", "large", "huge"])
def test_pretraining_is_as_published(size):
    recipe = PRETRAIN_RECIPES[f"vit_{size}"]
    assert peak_learning_rate(recipe) == pytest.approx(2.4e-3)  # 1.5e-4 x 4096 / 256
    assert (recipe.batch_size, recipe.epochs, recipe.warmup_epochs) == (4096, 800, 40)
    assert (recipe.weight_decay, recipe.beta_1, recipe.beta_2) == (0.05, 0.9, 0.95)
    assert (recipe.decoder_embed_dim, recipe.decoder_depth, recipe.decoder_num_heads) == (512, 8, 16)
    assert (recipe.mask_ratio, recipe.norm_pix_loss, recipe.min_area) == (0.75, True, 0.2)


@pytest.mark.parametrize("size", ["base", "large", "huge"])
def test_longer_pretraining_differs_in_length_alone(size):
    expected = dataclasses.replace(PRETRAIN_RECIPES[f"vit_{size}"], epochs=1600)
    assert PRETRAIN_RECIPES[f"vit_{size}_1600"] == expected


@pytest.mark.parametrize("recipe", PRETRAIN_RECIPES.values(), ids=PRETRAIN_RECIPES)
def test_the_choices_of_table_1_are_the_papers_own(recipe):
    assert (recipe.mask_kind, recipe.target, recipe.target_file) == ("random", "pixels", None)
    assert (recipe.encoder_mask_tokens, recipe.loss_on_all_patches) == (False, False)
    assert recipe.augmentation == "random_crop"


@pytest.mark.parametrize(
    ("size", "epochs", "rate", "layer_decay", "drop_path"),
    [("base", 100, 2e-3, 0.65, 0.1), ("large", 50, 4e-3, 0.75, 0.2), ("huge", 50, 4e-3, 0.75, 0.3)],
)
def test_fine_tuning_is_as_published(size, epochs, rate, layer_decay, drop_path):
    recipe = FINETUNE_RECIPES[f"vit_{size}"]
    assert peak_learning_rate(recipe) == pytest.approx(rate)
    assert (recipe.batch_size, recipe.epochs, recipe.warmup_epochs) == (1024, epochs, 5)
    assert (recipe.layer_decay, recipe.drop_path_rate, recipe.label_smoothing) == (layer_decay, drop_path, 0.1)
    assert (recipe.weight_decay, recipe.beta_2, recipe.min_learning_rate) == (0.05, 0.999, 1e-6)


@pytest.mark.parametrize(("size", "epochs", "drop_path"), [("base", 100, 0.1), ("large", 50, 0.1), ("huge", 50, 0.2)])
def test_the_papers_fine_tuning_is_as_table_9_prints_it(size, epochs, drop_path):
    recipe = FINETUNE_RECIPES[f"vit_{size}_paper"]
    assert (recipe.base_learning_rate, recipe.layer_decay, recipe.drop_path_rate) == (1e-3, 0.75, drop_path)
    assert (recipe.weight_decay, recipe.beta_1, recipe.beta_2) == (0.05, 0.9, 0.999)
    assert (recipe.batch_size, recipe.epochs, recipe.warmup_epochs) == (1024, epochs, 5)
    assert (recipe.rand_augment, recipe.label_smoothing) == ("rand-m9-mstd0.5-inc1", 0.1)
    assert (recipe.mixup, recipe.cutmix, recipe.erasing, recipe.from_scratch) == (0.8, 1.0, 0.0, False)


@pytest.mark.parametrize(("size", "epochs", "drop_path"), [("base", 300, 0.1), ("large", 200, 0.2), ("huge", 200, 0.2)])
def test_supervised_training_is_as_table_11_prints_it(size, epochs, drop_path):
    recipe = FINETUNE_RECIPES[f"vit_{size}_scratch"]
    assert peak_learning_rate(recipe) == pytest.approx(1.6e-3)  # 1e-4 x 4096 / 256
    assert (recipe.weight_decay, recipe.beta_1, recipe.beta_2, recipe.ema_decay) == (0.3, 0.9, 0.95, 0.9999)
    assert (recipe.epochs, recipe.warmup_epochs, recipe.drop_path_rate) == (epochs, 20, drop_path)
    assert (recipe.rand_augment, recipe.label_smoothing) == ("rand-m9-mstd0.5-inc1", 0.1)
    assert (recipe.mixup, recipe.cutmix, recipe.layer_decay, recipe.from_scratch) == (0.8, 1.0, 1.0, True)


def test_at_448_pixels_only_the_sizes_differ():
    expected = dataclasses.replace(FINETUNE_RECIPES["vit_huge"], image_size=448, resize_size=512)
    assert FINETUNE_RECIPES["vit_huge_448"] == expected


@pytest.mark.parametrize(
    ("name", "epochs"),
    [("vit_base", 90), ("vit_large", 50), ("vit_huge", 50), ("vit_large_paper", 90), ("vit_huge_paper", 90)],
)
def test_the_linear_probe_is_as_published(name, epochs):
    recipe = LINEAR_PROBE_RECIPES[name]
    assert peak_learning_rate(recipe) == pytest.approx(6.4)  # .1 x 16384 / 256
    assert (recipe.batch_size, recipe.epochs, recipe.warmup_epochs) == (16384, epochs, 10)
    assert (recipe.momentum, recipe.weight_decay, recipe.min_learning_rate) == (0.9, 0, 0)
    assert (recipe.min_area, recipe.flip) == (0.08, True)


def test_lars_has_no_fields_of_adamw():
    assert not {field.name for field in dataclasses.fields(LINEAR_PROBE_RECIPES["vit_base"])} & {"beta_1", "beta_2"}


@pytest.mark.parametrize(("name", "value"), [("momentum", 1.0), ("trust_coefficient", 0.0)])
def test_lars_refuses(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .* Received: {value}"):
        override(LINEAR_PROBE_RECIPES["vit_base"], {name: value})


def test_scratch_on_digits_differs_only_in_rate_and_layer_decay():
    a, b = (dataclasses.asdict(FINETUNE_RECIPES[name]) for name in ("digits", "digits_scratch"))
    assert {name for name in a if a[name] != b[name]} <= {"base_learning_rate", "layer_decay", "from_scratch"}


def test_steps_round_up_and_warmup_is_fractional():
    recipe = override(PRETRAIN_RECIPES["vit_base"], {"epochs": 1.5, "batch_size": 8, "warmup_epochs": 0.5})
    assert total_steps(recipe, samples=10) == 2  # ceil(1.5 x 10 / 8)
    assert warmup_steps(recipe, samples=10) == pytest.approx(0.625)


def test_steps_override_epochs_and_share_scales_with_them():
    recipe = override(PRETRAIN_RECIPES["vit_tiny"], {"steps": 60})
    assert total_steps(recipe, samples=10**6) == 60
    assert warmup_steps(recipe, samples=10**6) == pytest.approx(3.0)


def test_one_kind_of_warmup_clears_the_other():
    recipe = override(PRETRAIN_RECIPES["vit_base"], {"warmup_share": 0.1})
    assert (recipe.warmup_share, recipe.warmup_epochs) == (0.1, None)


def parse(*arguments):
    values = flags.FlagValues()
    define_recipe_flags(PRETRAIN_RECIPES, flag_values=values)
    values(["command", *arguments])
    return values


def test_every_field_is_a_flag_with_a_text():
    values = parse()
    for field in dataclasses.fields(PRETRAIN_RECIPES["vit_base"]):
        assert values[field.name].value is None
        assert len(values[field.name].help) > 10


def test_flags_override_fields_by_type():
    values = parse(
        "--recipe=vit_tiny",
        "--image_size=32,64",
        "--pixel_mean=.1,.2,.3",
        "--nonorm_pix_loss",
        "--epochs=2.5",
        "--steps=7",
    )
    recipe = recipe_from_flags(PRETRAIN_RECIPES, values)
    assert (recipe.image_size, recipe.pixel_mean) == ((32, 64), (0.1, 0.2, 0.3))
    assert (recipe.norm_pix_loss, recipe.epochs, recipe.steps) == (False, 2.5, 7)
    assert recipe.embed_dim == 192


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("--recipe=vit", "Unknown recipe"),
        ("--image_size=1,2,3", "image_size takes a side or height,width"),
        ("--steps=-1", "steps must be above 0"),
        ("--min_area=2", "min_area must be above 0 and at most 1"),
        ("--warmup_share=7", "warmup_share must be at least 0 and at most 1"),
        ("--resize_size=100", "resize_size must be at least the image size"),
        ("--mask_kind=stripes", "mask_kind must be one of random, block, grid. Received: 'stripes'"),
        ("--target=hog", "target must be one of pixels, pca, tokens. Received: 'hog'"),
        ("--augmentation=all", "augmentation must be one of none, fixed_crop, random_crop, color_jitter"),
        ("--target=pca", "need a target_file, .* Received: target=pca, target_file=None"),
        ("--target_file=pca.npz", "target=pixels takes none. Received: target=pixels, target_file=pca.npz"),
    ],
)
def test_values_that_no_recipe_can_have(argument, sentence):
    with pytest.raises(ValueError, match=sentence):
        recipe_from_flags(PRETRAIN_RECIPES, parse(argument))


def test_the_choices_of_table_1_are_flags():
    values = parse("--mask_kind=block", "--encoder_mask_tokens", "--target=pca", "--target_file=a.npz")
    recipe = recipe_from_flags(PRETRAIN_RECIPES, values)
    assert (recipe.mask_kind, recipe.encoder_mask_tokens) == ("block", True)
    assert (recipe.target, recipe.target_file) == ("pca", "a.npz")


def test_the_recipe_and_the_layers_know_the_same_masks():
    assert CHOICES["mask_kind"] == MASKINGS


def test_a_recipe_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRETRAIN_RECIPES["vit_base"].epochs = 1
