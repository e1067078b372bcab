"""The data of a training run: the shard set of --data, as `training.run` wants it described."""

import dataclasses
import functools
import itertools

import tensorflow as tf
from absl import flags

import pipeline
from keras_mae.recipes import Recipe
from keras_mae.run_flags import reading_options
from keras_mae.training.run import Data
from pipeline.augment import ColorJitter
from pipeline.manifest import ShardSet, Split
from pipeline.order import ShuffledOrder

# The paper names no strengths for its row "+ color jit" (Table 1e); these are BEiT's.
COLOR_JITTER = ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4)


@dataclasses.dataclass(frozen=True)
class ShardReading:
    """How a run reads its shard set.

    Attributes:
        shard_set: with all splits.
        split: to train on.
        val_split: name of the one to evaluate on; None: there is none.
        recipe: sizes, batch, augmentation and seed.
        strategy: whose replicas share the batches.
        shared: arguments of `pipeline.load` for every view.
        training: those of the training view alone.
    """

    shard_set: ShardSet
    split: Split
    val_split: str | None
    recipe: Recipe
    strategy: tf.distribute.Strategy
    shared: dict
    training: dict

    def train(self, start_step: int):
        """Endless batches from a step's on, over the replicas."""
        return self._distributed(split=self.split.name, start_step=start_step, **self.training)

    def in_order(self):
        """One pass over the training split, as `validation` reads its own."""
        return self._distributed(split=self.split.name, **self._evaluation())

    def validation(self):
        """One pass of padded batches over the validation split, over the replicas."""
        return self._distributed(split=self.val_split, **self._evaluation())

    def preview(self, count: int) -> dict:
        """Features of the first images of the validation split, or of the training split where there is none."""
        name = self.val_split or self.split.name
        batch_size = min(count, self.shard_set.split(name).samples)
        options = {**self._evaluation(), **self.shared, "split": name, "batch_size": batch_size}
        return next(iter(pipeline.load(self.shard_set, **options)))[0]

    def state(self, step: int) -> dict:
        """Place in the data after so many batches."""
        recipe = self.recipe
        place = pipeline.ReadingState.from_step(
            step, batch_size=recipe.batch_size, samples=self.split.samples, seed=recipe.seed
        )
        return place.to_dict()

    def identity(self) -> dict:
        """What tells this data from other data."""
        found = {
            "split": self.split.name,
            "samples": self.split.samples,
            "fingerprint": self.shard_set.fingerprint(self.split.name),
        }
        if self.val_split is not None:
            found |= {"val_split": self.val_split, "val_fingerprint": self.shard_set.fingerprint(self.val_split)}
        return found

    def _evaluation(self) -> dict:
        return {"view": "eval", "resize_size": self.recipe.resize_size}

    def _distributed(self, **options):
        load = functools.partial(
            pipeline.load, self.shard_set, batch_size=self.recipe.batch_size, **options, **self.shared
        )
        return pipeline.distribute(self.strategy, load)


def open_data(
    values: flags.FlagValues, recipe: Recipe, view: str, noise: dict[str, int], strategy: tf.distribute.Strategy
) -> Data:
    """Checks the shard set and describes how to read it.

    Args:
        values: the flags of `define_run_flags`.
        recipe: sizes, batch and seed.
        view: of the training split, "pretrain", "train" or "probe".
        noise: uniform draws per sample by feature name.
        strategy: whose replicas share the batches.

    Raises:
        ValueError: the shard set, a split of it, or what a view needs is missing or damaged.
    """
    stats = pipeline.ReadingStats(values.max_corrupt)
    shard_set, split, val_split = _choose_splits(values)
    reading = ShardReading(
        shard_set,
        split,
        val_split,
        recipe,
        strategy,
        shared={
            "image_size": recipe.image_size,
            "channels": recipe.channels,
            "seed": recipe.seed,
            "noise": noise,
            "stats": stats,
            **reading_options(values),
        },
        training={
            "view": view,
            "shuffle_block_shards": recipe.shuffle_block_shards,
            "max_streams": recipe.max_streams,
            "data_service": values.data_service,
            **_augmentation(recipe),
        },
    )
    reading.train(0)  # builds the dataset without reading it: wrong options show now
    if val_split is not None:
        reading.validation()
    return Data(
        samples=split.samples,
        identity=reading.identity(),
        train=reading.train,
        state=reading.state,
        preview=reading.preview,
        validation=None if val_split is None else reading.validation,
        reading=lambda: figures(stats.reading()),
        in_order=reading.in_order,
        batch_samples=functools.partial(batch_samples, split, recipe),
        image_dtype=split.arrays.dtype if split.arrays else "uint8",
    )


def _choose_splits(values: flags.FlagValues) -> tuple[ShardSet, Split, str | None]:
    # The shard set, the split to train on, and the name of the one to evaluate on.
    shard_set = pipeline.load_manifest(values.data)
    split = shard_set.split(values.split or ("train" if "train" in shard_set.splits else None))
    val_split = values.val_split or ("val" if "val" in shard_set.splits and split.name != "val" else "none")
    return shard_set, split, None if val_split == "none" else val_split


def batch_samples(split, recipe: Recipe, batch: int) -> list[int]:
    """The samples of a training batch, in its order, from the order alone: nothing is read."""
    order = ShuffledOrder(
        [shard.samples for shard in split.shards],
        recipe.seed,
        shuffle_block_shards=recipe.shuffle_block_shards,
        max_streams=recipe.max_streams,
    )
    samples: list[int] = []
    for stream, (place, count) in enumerate(zip(*order.rows(batch, recipe.batch_size), strict=True)):
        rows = (int(index) for block in order.blocks(stream, int(place)) for index in block.index)
        samples += itertools.islice(rows, int(count))
    return samples


def _augmentation(recipe: Recipe) -> dict:
    """How training images are cropped and changed, as arguments of `pipeline.load`."""
    kind = getattr(recipe, "augmentation", "random_crop")
    if kind == "none":
        return {"crop": "central", "flip": False, "resize_size": recipe.resize_size}
    if kind == "fixed_crop":
        return {"crop": "fixed", "flip": recipe.flip, "resize_size": recipe.resize_size}
    return {
        "flip": recipe.flip,
        "min_area": recipe.min_area,
        "rand_augment": getattr(recipe, "rand_augment", None) or None,
        "color_jitter": COLOR_JITTER if kind == "color_jitter" else None,
    }


def figures(reading: pipeline.Reading) -> dict[str, float]:
    """What a row of metrics.jsonl says of the input pipeline."""
    row = {"corrupt": reading.corrupt}
    if reading.samples:
        row["decode_ms"] = round(1000 * reading.decode_seconds / reading.samples, 3)
    if reading.capacity:
        row["queue"] = round(reading.ready / reading.capacity, 3)
    return row
