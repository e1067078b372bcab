"""What the training commands share on their command line: where the data is, where the run goes, on what it runs."""

from absl import flags

import pipeline
from keras_mae.recipes import Recipe
from keras_mae.training.run import Data, RunOptions
from keras_mae.training.strategy import DETERMINISTIC, PRECISIONS, STRATEGIES


def define_run_flags() -> None:
    """Defines --data, --split, --val_split, --run_dir, --strategy, --precision, --deterministic, --virtual_cpus."""
    flags.DEFINE_string("data", None, "Folder of a shard set, as tools.make_shards writes it.", required=True)
    flags.DEFINE_string("split", None, "Split to train on; unset: train, or the only one.")
    flags.DEFINE_string("val_split", None, "Split to evaluate on; unset: val, where there is one; none: no evaluation.")
    flags.DEFINE_string("run_dir", None, "Folder for recipe, logs, checkpoints and the exported model.", required=True)
    flags.DEFINE_string("strategy", "auto", f"Devices: {', '.join(STRATEGIES)}. mirrored: all GPUs of this machine.")
    flags.DEFINE_string("precision", "auto", f"{', '.join(PRECISIONS)}. auto: bfloat16 on GPUs, float32 on CPUs.")
    flags.DEFINE_string("deterministic", "auto", f"Bit-exact repetition: {', '.join(DETERMINISTIC)}. auto: on CPUs.")
    flags.DEFINE_integer("virtual_cpus", 1, "Split the CPU into so many devices, to try --strategy=mirrored.")


def run_options(values: flags.FlagValues) -> RunOptions:
    """The flags that say where and on what to run."""
    return RunOptions(
        run_dir=values.run_dir,
        strategy=values.strategy,
        precision=values.precision,
        deterministic=values.deterministic,
        virtual_cpus=values.virtual_cpus,
    )


def open_data(values: flags.FlagValues, recipe: Recipe, view: str, noise: dict[str, int]) -> Data:
    """Checks the shard set and describes how to read it.

    Args:
        values: the flags of `define_run_flags`.
        recipe: sizes, batch and seed.
        view: of the training split, "pretrain" or "train".
        noise: uniform draws per sample by feature name.

    Raises:
        ValueError: the shard set, a split of it, or what a view needs is missing or damaged.
    """
    shard_set = pipeline.load_manifest(values.data)
    default = "train" if "train" in shard_set.splits else None
    split = shard_set.split(values.split or default)
    val_split = values.val_split or ("val" if "val" in shard_set.splits and split.name != "val" else "none")
    shared = {"image_size": recipe.image_size, "channels": recipe.channels, "seed": recipe.seed, "noise": noise}

    def train(start_step):
        return pipeline.load(
            shard_set,
            split=split.name,
            view=view,
            batch_size=recipe.batch_size,
            start_step=start_step,
            min_area=recipe.min_area,
            flip=recipe.flip,
            **shared,
        )

    def evaluation(name, batch_size):
        return pipeline.load(
            shard_set, split=name, view="eval", batch_size=batch_size, resize_size=recipe.resize_size, **shared
        )

    def preview(count):
        name = split.name if val_split == "none" else val_split
        return next(iter(evaluation(name, min(count, shard_set.split(name).samples))))[0]

    def state(step):
        place = pipeline.ReadingState.from_step(
            step, batch_size=recipe.batch_size, samples=split.samples, seed=recipe.seed
        )
        return place.to_dict()

    def validation():
        return evaluation(val_split, recipe.batch_size)

    identity = {"split": split.name, "samples": split.samples, "fingerprint": shard_set.fingerprint(split.name)}
    train(0)  # builds the dataset without reading it: wrong options show now
    if val_split == "none":
        return Data(split.samples, identity, train, state, preview)
    validation()
    identity.update({"val_split": val_split, "val_fingerprint": shard_set.fingerprint(val_split)})
    return Data(split.samples, identity, train, state, preview, validation)
