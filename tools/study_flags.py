"""What studies of many trainings check before any starts: the flags for all of them, and the splits they use."""

from collections.abc import Mapping, Sequence

from absl import flags

from keras_mae import commandline, recipes
from keras_mae.commandline import CommandError
from keras_mae.recipes import Recipe
from pipeline.manifest import ShardSet

# Of keras_mae.run_flags, which imports TensorFlow: all but those that name data and folders.
RUN_FLAGS = ("strategy", "precision", "deterministic", "virtual_cpus", "max_corrupt")
RUN_FLAGS += ("num_threads", "engine", "cache_dir", "cache_gb", "data_service", "profile_steps", "wandb_project")
RUN_FLAGS += ("coordinator", "num_processes", "process_id", "wait_seconds", "tpu")
HELD_OUT_SPLITS = ("val", "held_out")
LABELLED_SPLIT = "labelled"


def parse_flags(
    known: Mapping[str, Recipe], name: str, words: Sequence[str], source: str
) -> tuple[Recipe, frozenset[str]]:
    """The recipe that words of a command line make of a named one, and the names of the flags among them.

    Args:
        known: recipes by name.
        name: of the recipe to start from.
        words: of the command line.
        source: where the words come from, for the message.

    Raises:
        CommandError: there is no such recipe or flag, or a value is out of its range.
    """
    values = flags.FlagValues()
    recipes.define_recipe_flags(known, default=name, flag_values=values)
    for flag in RUN_FLAGS:
        flags.DEFINE_string(flag, None, "", flag_values=values)
    with commandline.user_mistakes(flags.Error):
        rest = values(["", *words])[1:]
    if rest:
        raise CommandError(f"{source} has a word that is no flag: {rest[0]!r}; expected --name=value")
    given = frozenset(flag for flag in values if values[flag].present)
    with commandline.user_mistakes():
        return recipes.recipe_from_flags(known, values), given


def choose_splits(shard_set: ShardSet, split: str | None, labels: str | None, val_split: str | None) -> dict[str, str]:
    """The splits to pre-train on, to fine-tune on and to measure accuracy on: `split`, `labels` and `val_split`.

    Args:
        shard_set: must have classes.
        split: None: train, or the only one.
        labels: None: labelled where there is one, else `split`.
        val_split: None: val or held_out, whichever there is.

    Raises:
        ValueError: there is no such split, or accuracy would be measured on images that are trained on.
    """
    if not shard_set.classes or len(shard_set.classes) < 2:
        raise CommandError(f"{shard_set.root} has no classes, and fine-tuning needs two at least")
    split = shard_set.split(split or ("train" if "train" in shard_set.splits else None)).name
    labels = shard_set.split(labels or (LABELLED_SPLIT if LABELLED_SPLIT in shard_set.splits else split)).name
    held_out = [name for name in HELD_OUT_SPLITS if name in shard_set.splits]
    if val_split is None and not held_out:
        raise CommandError(
            f"{shard_set.root} has no split {' or '.join(HELD_OUT_SPLITS)} to measure accuracy on; give --val_split. "
            f"Its splits are: {', '.join(shard_set.splits)}"
        )
    val_split = shard_set.split(val_split or held_out[0]).name
    if val_split in (split, labels):
        raise CommandError(f"--val_split={val_split} is trained on; accuracy must be measured on other images")
    return {"split": split, "labels": labels, "val_split": val_split}
