"""What the flags of tools.transfer_study ask for, checked before anything runs."""

import math
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from keras_mae.commandline import CommandError
from keras_mae.recipes import FINETUNE_RECIPES, PRETRAIN_RECIPES, Recipe
from keras_mae.recipes.probing import LINEAR_PROBE_RECIPES
from pipeline.locations import is_url
from pipeline.manifest import ShardSet
from tools.study_flags import choose_splits, parse_flags
from tools.transfer_plan import PARTS, Recipes, Study, rows_of, scratch_words

# Recipe flags that this command sets itself.
OWN_FLAGS = ("recipe", "seed", "from_scratch", "trainable_blocks")
LENGTHS = ("epochs", "steps", "images")
# What fine-tuning and probes must share with the encoder that they are given.
ENCODER_FIELDS = ("patch_size", "channels", "embed_dim", "depth", "num_heads")


def parse_numbers(
    name: str, words: Sequence[str], number: Callable, is_good: Callable[[Any], bool], expected: str
) -> tuple:
    """The numbers of a flag, sorted, each once.

    Raises:
        CommandError: there is none, or one is not as expected.
    """
    try:
        values = [number(word) for word in words]
    except ValueError:
        values = []
    if not values or not all(map(is_good, values)):
        raise CommandError(f"--{name} takes {expected}, separated by commas; received {','.join(words)!r}")
    return tuple(sorted(set(values)))


def make_study(values: flags.FlagValues, shard_set: ShardSet) -> tuple[Study, Recipes]:
    """The study that flags ask for, and what they make of its recipes.

    Raises:
        ValueError: it could not run like this.
    """
    for part in values.parts:
        if part not in PARTS:
            raise CommandError(f"--parts takes some of {', '.join(PARTS)}; received {part!r}")
    if not values.parts:
        raise CommandError(f"--parts names no part; expected some of {', '.join(PARTS)}")
    texts = (values.shared_flags, values.pretrain_flags, values.finetune_flags, values.scratch_flags)
    shared, pretrain, finetune, scratch, probe = map(shlex.split, (*texts, values.probe_flags))
    shares = float, lambda share: 0 < share <= 1, "shares above 0 and up to 1"
    fractions = parse_numbers("fractions", values.fractions, *shares)
    blocks_fraction = fractions[len(fractions) // 2]
    if values.blocks_fraction is not None:
        (blocks_fraction,) = parse_numbers("blocks_fraction", [values.blocks_fraction], *shares)
    ratios = parse_numbers("mask_ratios", values.mask_ratios, float, lambda r: 0 < r < 1, "shares between 0 and 1")
    recipe, _ = parse_flags(PRETRAIN_RECIPES, values.recipe, (*shared, *pretrain), "--pretrain_flags")
    split = values.split or ("train" if "train" in shard_set.splits else None)
    splits = choose_splits(shard_set, split, split, values.val_split)
    del splits["labels"]  # they are those of the split
    study = Study(
        data=values.data,
        recipe=values.recipe,
        seeds=parse_numbers("seeds", values.seeds, int, lambda seed: seed >= 0, "whole numbers from 0"),
        fractions=fractions,
        blocks_fraction=blocks_fraction,
        trainable_blocks=parse_numbers(
            "trainable_blocks", values.trainable_blocks, float, lambda blocks: blocks >= 0, "numbers of blocks"
        ),
        mask_ratio=recipe.mask_ratio,
        mask_ratios=tuple(sorted({*ratios, recipe.mask_ratio})),
        parts=tuple(part for part in PARTS if part in values.parts),
        **splits,
        least_epochs=values.least_epochs,
        scratch_length=values.scratch_length,
        pretrain_flags=(*shared, *pretrain),
        finetune_flags=(*shared, *finetune),
        scratch_flags=tuple(scratch),
        probe_flags=(*shared, *probe),
    )
    recipes = check_flags(study)
    check_amounts(study, shard_set)
    return study, recipes


def check_flags(study: Study) -> Recipes:
    """The recipes of a study.

    Raises:
        CommandError: a training could not run like this.
    """
    pretrain, given = parse_flags(PRETRAIN_RECIPES, study.recipe, study.pretrain_flags, "--pretrain_flags")
    finetune, of_finetune = parse_flags(FINETUNE_RECIPES, study.recipe, study.finetune_flags, "--finetune_flags")
    probe, of_probe = parse_flags(LINEAR_PROBE_RECIPES, study.recipe, study.probe_flags, "--probe_flags")
    recipe, own = scratch_words(study)
    _, of_scratch = parse_flags(FINETUNE_RECIPES, recipe, study.scratch_flags, "--scratch_flags")
    for name in sorted((given | of_finetune | of_probe | of_scratch) & set(OWN_FLAGS)):
        raise CommandError(f"--{name} cannot be given to every training; the study has --recipe, --seeds and --parts")
    for name in sorted(of_scratch & set(LENGTHS)):
        raise CommandError(f"--{name} is not for --scratch_flags: --scratch_length says how long these trainings are")
    words = (*study.finetune_flags, *own, *study.scratch_flags)
    scratch, _ = parse_flags(FINETUNE_RECIPES, recipe, words, "--scratch_flags")
    check_encoder(pretrain, finetune, "--finetune_flags")
    if "ratios" in study.parts:
        check_encoder(pretrain, probe, "--probe_flags")
    if "blocks" in study.parts:
        for blocks in study.trainable_blocks:
            words = (*study.finetune_flags, f"--trainable_blocks={blocks:g}")
            parse_flags(FINETUNE_RECIPES, study.recipe, words, "--finetune_flags")
    return Recipes(pretrain, finetune, scratch, probe)


def check_encoder(pretrain: Recipe, other: Recipe, source: str) -> None:
    """Raises CommandError unless another recipe is for encoders of pre-training's structure.

    Args:
        pretrain: recipe of pre-training.
        other: recipe of what starts from its encoder.
        source: flags that `other` is of, for the message.
    """
    for name in ENCODER_FIELDS:
        ours, theirs = getattr(other, name), getattr(pretrain, name)
        if ours != theirs:
            raise CommandError(
                f"{name} is {theirs} in pre-training and {ours} with {source}; give --{name} in --shared_flags"
            )


def check_amounts(study: Study, shard_set: ShardSet) -> None:
    """Raises CommandError if a length has no end, or a share of the labels cannot be chosen."""
    for name in ("least_epochs", "scratch_length"):
        if not math.isfinite(getattr(study, name)):
            raise CommandError(f"--{name} takes a finite number; received {getattr(study, name)}")
    fraction = min(row.fraction for row in rows_of(study))
    images, classes = shard_set.splits[study.split].samples, len(shard_set.classes)
    if fraction < 1 and is_url(study.data):
        raise CommandError(
            f"--data={study.data} is a URL, and shares of the labels are copied from a local folder; copy the shard "
            "set first, or measure with all labels: --fractions=1"
        )
    if fraction < 1 and round(fraction * images) < classes:
        raise CommandError(
            f"{fraction:g} of {images:,} labels is less than one for each of {classes:,} classes; give larger "
            "--fractions and --blocks_fraction"
        )
