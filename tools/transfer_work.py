"""How long the steps of a study will take: their floating-point operations, and how fast those that are done went.

Rough on purpose: matrix products only, and one speed for each command.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from keras_mae.recipes import FinetuneRecipe, PretrainRecipe, Recipe
from keras_mae.recipes.probing import LinearProbeRecipe
from pipeline.argument_checks import sides

if TYPE_CHECKING:
    from tools.transfer_plan import Step

BACKWARD = 2  # forward passes that a backward pass costs
# As found with the recipe `digits` on two CPU cores: before and after the work, seconds; and work in a second.
START = {
    "tools.label_subset": 2.0,
    "keras_mae.pretrain": 20.0,
    "keras_mae.finetune": 15.0,
    "keras_mae.linear_probe": 15.0,
    "keras_mae.evaluate": 9.0,
}
SPEED = 60.0
LEAST_SHARE = 0.2  # of a step's time that is work, however short it was: a speed must come out


def blocks_work(tokens: float, dim: int, depth: float) -> float:
    """Of Transformer blocks for one image, forward: 24 dim^2 for a token's own products, 4 dim for each pair."""
    return 1e-9 * depth * tokens * (24 * dim**2 + 4 * tokens * dim)


def num_patches(recipe: Recipe) -> int:
    """Of an image."""
    height, width = sides(recipe.image_size)
    return height * width // recipe.patch_size**2


def pretrain_work(recipe: PretrainRecipe, mask_ratio: float, steps: int) -> float:
    """Of pre-training, in 1e9 operations."""
    patches = num_patches(recipe)
    image = blocks_work((1 - mask_ratio) * patches + 1, recipe.embed_dim, recipe.depth)
    image += blocks_work(patches + 1, recipe.decoder_embed_dim, recipe.decoder_depth)
    return (1 + BACKWARD) * steps * recipe.batch_size * image


def finetune_work(recipe: FinetuneRecipe, trainable_blocks: float | None, steps: int) -> float:
    """Of fine-tuning, where the blocks that stay as they are have no backward pass."""
    trained = recipe.depth if trainable_blocks is None else trainable_blocks
    forward, backward = (
        blocks_work(num_patches(recipe) + 1, recipe.embed_dim, depth) for depth in (recipe.depth, trained)
    )
    return steps * recipe.batch_size * (forward + BACKWARD * backward)


def probe_work(recipe: LinearProbeRecipe, train: int, held_out: int) -> float:
    """Of the one pass of the encoder over all images; the head is nothing beside it."""
    return evaluation_work(recipe, train + held_out)


def evaluation_work(recipe: Recipe, images: int) -> float:
    """Of a forward pass over images."""
    return images * blocks_work(num_patches(recipe) + 1, recipe.embed_dim, recipe.depth)


def seconds_left(steps: Iterable["Step"], records: Mapping[str, Mapping[str, Any]]) -> float:
    """Of the steps without a record, at the speed of those that have one, command by command.

    Args:
        steps: all of a study.
        records: of `tools.transfer_study.run_steps`, by the step's name.
    """
    steps = list(steps)
    work, busy = {}, {}
    for step in steps:
        seconds = records.get(step.name, {}).get("seconds")
        if seconds is not None:
            work[step.module] = work.get(step.module, 0) + step.work
            own = max(seconds - START[step.module], LEAST_SHARE * seconds)
            busy[step.module] = busy.get(step.module, 0) + own
    speeds = {module: work[module] / busy[module] for module in work if work[module] and busy[module]}
    usual = sum(work.values()) / sum(busy.values()) if speeds else SPEED
    return sum(
        START[step.module] + step.work / speeds.get(step.module, usual) for step in steps if step.name not in records
    )
