"""What the training commands share on their command line: where the data is, where the run goes, on what it runs."""

import functools
import itertools

import tensorflow as tf
from absl import flags

import pipeline
from keras_mae.recipes import Recipe
from keras_mae.training.cluster import WorkerFlags
from keras_mae.training.experiment_tracker import check_wandb
from keras_mae.training.profiling import parse_profile_steps
from keras_mae.training.run import Data, RunOptions
from keras_mae.training.strategy import DETERMINISTIC, PRECISIONS, STRATEGIES
from pipeline.augment import ColorJitter
from pipeline.load_options import ENGINES
from pipeline.order import ShuffledOrder

# The paper names no strengths for its row "+ color jit" (Table 1e); these are BEiT's.
COLOR_JITTER = ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4)


def define_run_flags() -> None:
    """Defines --data, --split, --val_split, --run_dir, what to run on, and how to read."""
    flags.DEFINE_string("data", None, "Folder of a shard set, as tools.make_shards writes it.")
    flags.DEFINE_string("split", None, "Split to train on; unset: train, or the only one.")
    flags.DEFINE_string("val_split", None, "Split to evaluate on; unset: val, where there is one; none: no evaluation.")
    flags.DEFINE_string("run_dir", None, "Folder for recipe, logs, checkpoints and the exported model.")
    define_strategy_flags()
    flags.DEFINE_string("precision", "auto", f"{', '.join(PRECISIONS)}. auto: bfloat16 on GPUs, float32 on CPUs.")
    flags.DEFINE_string("deterministic", "auto", f"Bit-exact repetition: {', '.join(DETERMINISTIC)}. auto: on CPUs.")
    flags.DEFINE_integer("virtual_cpus", 1, "Split the CPU into so many devices, to try --strategy=mirrored.")
    flags.DEFINE_list("profile_steps", None, "First and last step to trace for TensorBoard's profiler: 100,110.")
    flags.DEFINE_string("wandb_project", None, "Log to this project of Weights & Biases, too (extra wandb).")
    flags.DEFINE_integer("max_corrupt", 0, "Images that may be skipped because they cannot be decoded; each is named.")
    define_reading_flags()


def define_strategy_flags() -> None:
    """Defines --strategy, and who the workers of strategy=multi_worker are."""
    flags.DEFINE_string("strategy", "auto", f"Devices: {', '.join(STRATEGIES)}. mirrored: all GPUs of this machine.")
    flags.DEFINE_string("coordinator", None, "multi_worker without Slurm: HOST:PORT where all can reach process 0.")
    flags.DEFINE_integer("num_processes", None, "multi_worker without Slurm: number of processes.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "multi_worker without Slurm: number of this process, from 0.")
    flags.DEFINE_float("wait_seconds", WorkerFlags.wait_seconds, "multi_worker: for all processes to start.")
    flags.DEFINE_string("tpu", None, "strategy=tpu: unset on a TPU VM, or the name or grpc:// address of a TPU.")


def worker_flags(values: flags.FlagValues) -> WorkerFlags:
    """The flags of `define_strategy_flags` that name workers."""
    return WorkerFlags(values.coordinator, values.num_processes, values.process_id, values.wait_seconds)


def define_reading_flags() -> None:
    """Defines how shards are read, which changes nothing of what is read: --num_threads, --engine, --cache_dir, ..."""
    flags.DEFINE_integer("num_threads", None, "Threads that decode images; unset: one for each processor.")
    flags.DEFINE_enum(
        "engine", "auto", ENGINES, "host: Python threads with native decoders; graph: TensorFlow alone. auto: host."
    )
    flags.DEFINE_string("cache_dir", None, "Local folder for copies of shards that lie behind a URL.")
    flags.DEFINE_float("cache_gb", 100, "Upper bound of all copies in --cache_dir, in GB.")
    flags.DEFINE_string(
        "data_service", None, "tf.data service that decodes images on other machines: grpc://HOST:PORT."
    )


def reading_options(values: flags.FlagValues) -> dict:
    """The flags of `define_reading_flags` as arguments of `pipeline.load`, but for the data service."""
    return {
        "num_threads": values.num_threads,
        "engine": values.engine,
        "cache_dir": values.cache_dir,
        "cache_bytes": round(values.cache_gb * 1e9),
    }


def run_options(values: flags.FlagValues) -> RunOptions:
    """The flags that say where and on what to run, and who watches.

    Raises:
        ValueError: profile_steps are no steps, or wandb_project needs a package that is missing.
    """
    check_wandb(values.wandb_project)
    return RunOptions(
        run_dir=values.run_dir,
        strategy=values.strategy,
        precision=values.precision,
        deterministic=values.deterministic,
        virtual_cpus=values.virtual_cpus,
        profile_steps=parse_profile_steps(values.profile_steps),
        wandb_project=values.wandb_project,
        workers=worker_flags(values),
        tpu=values.tpu,
    )


def open_data(
    values: flags.FlagValues, recipe: Recipe, view: str, noise: dict[str, int], strategy: tf.distribute.Strategy
) -> Data:
    """Checks the shard set and describes how to read it.

    Args:
        values: the flags of `define_run_flags`.
        recipe: sizes, batch and seed.
        view: of the training split, "pretrain" or "train".
        noise: uniform draws per sample by feature name.
        strategy: whose replicas share the batches.

    Raises:
        ValueError: the shard set, a split of it, or what a view needs is missing or damaged.
    """
    shard_set = pipeline.load_manifest(values.data)
    default = "train" if "train" in shard_set.splits else None
    split = shard_set.split(values.split or default)
    val_split = values.val_split or ("val" if "val" in shard_set.splits and split.name != "val" else "none")
    stats = pipeline.ReadingStats(values.max_corrupt)
    shared = {
        "image_size": recipe.image_size,
        "channels": recipe.channels,
        "seed": recipe.seed,
        "noise": noise,
        "stats": stats,
        **reading_options(values),
    }

    def train(start_step):
        load = functools.partial(
            pipeline.load,
            shard_set,
            split=split.name,
            view=view,
            batch_size=recipe.batch_size,
            start_step=start_step,
            **_augmentation(recipe),
            shuffle_block_shards=recipe.shuffle_block_shards,
            max_streams=recipe.max_streams,
            data_service=values.data_service,
            **shared,
        )
        return pipeline.distribute(strategy, load)

    evaluate = functools.partial(pipeline.load, shard_set, view="eval", resize_size=recipe.resize_size, **shared)

    def preview(count):
        name = split.name if val_split == "none" else val_split
        return next(iter(evaluate(split=name, batch_size=min(count, shard_set.split(name).samples))))[0]

    def state(step):
        place = pipeline.ReadingState.from_step(
            step, batch_size=recipe.batch_size, samples=split.samples, seed=recipe.seed
        )
        return place.to_dict()

    def in_order():
        return pipeline.distribute(
            strategy, functools.partial(evaluate, split=split.name, batch_size=recipe.batch_size)
        )

    def validation():
        return pipeline.distribute(strategy, functools.partial(evaluate, split=val_split, batch_size=recipe.batch_size))

    identity = {"split": split.name, "samples": split.samples, "fingerprint": shard_set.fingerprint(split.name)}
    train(0)  # builds the dataset without reading it: wrong options show now
    if val_split != "none":
        validation()
        identity.update({"val_split": val_split, "val_fingerprint": shard_set.fingerprint(val_split)})
    return Data(
        samples=split.samples,
        identity=identity,
        train=train,
        state=state,
        preview=preview,
        validation=None if val_split == "none" else validation,
        reading=lambda: figures(stats.reading()),
        in_order=in_order,
        batch_samples=functools.partial(batch_samples, split, recipe),
        image_dtype=split.arrays.dtype if split.arrays else "uint8",
    )


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
