"""Writes what an encoder makes of every image: a row of numbers each, with the image's name and class.

python -m keras_mae.features --encoder=runs/base/export --data=SHARDS --split=val --output=features.npy
python -m keras_mae.features --encoder=runs/base/export --images=FOLDER --pool=patch_mean --output=features.parquet

Nothing is masked, and every image is seen once, as in evaluation: in the order of the split, or of the sorted paths of
a folder. `features.npy` has features.jsonl beside it, a line an image; a Parquet file holds both (extra `parquet`). The
same command again goes on where it was interrupted (docs/transfer.md).
"""

import bisect
import functools
import itertools
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from absl import flags

import pipeline
from keras_mae import commandline
from keras_mae.run_flags import define_one_process_flags, define_reading_flags, reading_options
from pipeline.locations import join, read_location
from pipeline.shard_index import read_index
from pipeline.sources import FolderSource

FLAGS = flags.FLAGS

POOLS = ("class_token", "patch_mean", "tokens")
OF_SHARDS = ("split", "engine", "cache_dir", "cache_gb", "data_service")
BLOCK_BYTES, BLOCK_BATCHES = 64_000_000, 16  # of rows that are written at once, and that an interruption may cost


class Images(NamedTuple):
    """The images to make features of.

    Attributes:
        samples: how many there are.
        identity: tells them from others, as JSON values.
        classes: names, or None.
        load: function of `host` and `num_hosts` to their batches, in order.
        name: function of an image's number to what to call it: JSON values by name.
    """

    samples: int
    identity: dict
    classes: tuple[str, ...] | None
    load: Callable
    name: Callable[[int], dict]


def open_shards(data, split, encoder, resize_size, **options):
    """The images of a split, in the order of its shards.

    Args:
        data: folder of the shard set.
        split: name, or None for the only one.
        encoder: whose images they are to be.
        resize_size: short side in pixels before the centre is taken; None: by the rule of 256/224.
        **options: of `pipeline.load`: how to read.

    Raises:
        ValueError: the shard set or the split is missing or damaged, or has other channels.
    """
    shard_set = pipeline.load_manifest(data)
    split = shard_set.split(split)
    view = {"image_size": encoder.image_size, "channels": encoder.channels, "resize_size": resize_size}
    load = functools.partial(pipeline.load, shard_set, split=split.name, view="eval", **view, **options)
    ends = list(itertools.accumulate(shard.samples for shard in split.shards))

    @functools.lru_cache(maxsize=2)
    def keys(number):
        shard = split.shards[number]
        return read_index(join(shard_set.root, shard.index), shard.samples).keys

    def name(index):
        number = bisect.bisect(ends, index)
        shard = split.shards[number]
        return {"file": shard.file, "key": keys(number)[index - ends[number] + shard.samples]}

    identity = {"split": split.name, "data": shard_set.fingerprint(split.name)}
    return Images(split.samples, identity, shard_set.classes, load, name)


def open_folder(folder, encoder, resize_size, batch_size, stats, num_threads):
    """The images of a folder by their sorted paths; class folders give classes, as for tools.make_shards.

    Raises:
        ValueError: there are none, or they have other channels.
    """
    from keras_mae.loose_images import array_kind, folder_dataset, view_of

    source = FolderSource(folder)
    listing = source.scan()
    (first,) = source.items([0])
    try:
        kind = array_kind(read_location(first.image))
    except ValueError as error:
        raise ValueError(f"{first.name} cannot be used: {error}") from None
    view = view_of(encoder, kind, resize_size)

    def load(host, num_hosts):
        return folder_dataset(source, len(listing), view, batch_size, stats, num_threads)

    def name(index):
        return {"file": source.items([index])[0].name}

    return Images(len(listing), {"data": listing.stamp}, listing.classes, load, name)


def check_input(values):
    """Raises ValueError unless the flags name one set of images, and nothing that it has no use for."""
    if (values.data is None) == (values.images is None):
        raise ValueError("Give either --data=SHARDS or --images=FOLDER.")
    for name in OF_SHARDS:
        if values.images is not None and values[name].present:
            raise ValueError(f"--{name} is about a shard set, not about the folder of --images.")


def open_images(values, encoder, resize_size, stats):
    """The images that the flags name; `stats` counts what is skipped.

    Raises:
        ValueError: they are missing or damaged, or have other channels than the encoder takes.
    """
    if values.images is not None:
        return open_folder(values.images, encoder, resize_size, values.batch_size, stats, values.num_threads)
    options = {**reading_options(values), "data_service": values.data_service, "stats": stats}
    return open_shards(values.data, values.split, encoder, resize_size, batch_size=values.batch_size, **options)


def read_layers(words, depth):
    """Numbers of blocks from the words of --layers.

    Raises:
        ValueError: they are none.
    """
    from keras_mae.models.backbone import block_numbers

    try:
        numbers = [int(word) for word in words]
    except ValueError:
        raise ValueError(f"layers takes numbers of blocks, such as -1 or 5,11. Received: {','.join(words)!r}") from None
    return block_numbers(numbers, depth)


def make_rows(encoder, pool, layers):
    """Function of images to a row of numbers each, for `make_encode`."""
    from keras import ops

    from keras_mae.models.backbone import pool_tokens, tokens_after_blocks

    def rows(images):
        tokens = tokens_after_blocks(encoder, images, layers)
        features = [pool_tokens(ops.cast(x, "float32"), pool, encoder.grid_size) for x in tokens.values()]
        features = ops.concatenate(features, axis=-1)  # (B, layers * D) or (B, N+1, layers * D)
        return ops.reshape(features, (-1, math.prod(features.shape[1:])))

    return rows


def row_shape(encoder, pool, layers):
    """Shape of the features of an image."""
    width = len(layers) * encoder.embed_dim
    return (1 + encoder.num_patches, width) if pool == "tokens" else (width,)


def write_features(writer, encode, batches, images, batch_size):
    """Appends to `writer` what is missing, block by block.

    Args:
        writer: a `FeatureWriter`.
        encode: of `make_encode`.
        batches: of `images`, all of them, distributed as `encode` needs them.
        images: their names and classes.
        batch_size: images in a batch, over all replicas.
    """
    from keras_mae.evaluation.features import read_features
    from keras_mae.training.progress import Progress

    total = -(-images.samples // batch_size)
    block = max(1, min(BLOCK_BATCHES, BLOCK_BYTES // (4 * batch_size * math.prod(writer.row_shape))))
    progress = Progress(total)
    # What is written already is decoded again, but not computed.
    batches = shown(itertools.islice(batches, writer.batches, None), progress, writer.batches, batch_size)
    for start in range(writer.batches, total, block):
        features = read_features(encode, itertools.islice(batches, block))
        ids = [row_id(images, *pair) for pair in zip(features.index.tolist(), features.labels.tolist(), strict=True)]
        writer.append(features.vectors, ids, min(block, total - start))
    progress.close()


def shown(batches: Iterable, progress, start: int, batch_size: int) -> Iterator:
    """The batches, with a line of progress after each."""
    for number, batch in enumerate(batches, start + 1):
        yield batch
        progress.update(number, lambda: f"{progress.rate * batch_size:.1f} images/s")


def row_id(images, index, label):
    """What is written of an image beside its features."""
    is_known = images.classes is not None and label >= 0
    return {"index": index, **images.name(index), "label": label, "class": images.classes[label] if is_known else None}


def main(argv):
    from keras_mae.evaluation.feature_files import FeatureFileError, FeatureWriter, check_output, is_finished
    from keras_mae.evaluation.features import make_encode
    from keras_mae.training.data_errors import DataError, named_data_errors
    from keras_mae.training.initial_weights import fingerprint
    from keras_mae.training.run_dir import description_above
    from keras_mae.training.saved_model import load_encoder
    from keras_mae.training.strategy import dtype_policy, make_one_process_strategy

    with commandline.user_mistakes():
        check_input(FLAGS)
        output = pathlib.Path(FLAGS.output)
        check_output(output)
        strategy, policy = make_one_process_strategy(FLAGS.strategy), dtype_policy(FLAGS.precision)
        norm = {} if FLAGS.final_norm else {"final_norm": False}
        with strategy.scope():
            encoder = load_encoder(FLAGS.encoder, dtype=policy.name, **norm)
        layers = read_layers(FLAGS.layers, encoder.depth)
        description = description_above(pathlib.Path(FLAGS.encoder))
        resize_size = FLAGS.resize_size or (description["recipe"]["resize_size"] if description else None)
        stats = pipeline.ReadingStats(FLAGS.max_corrupt)
        images = open_images(FLAGS, encoder, resize_size, stats)
        plan = {
            "encoder": fingerprint(encoder),
            "pool": FLAGS.pool,
            "layers": layers,
            "final_norm": encoder.final_norm,
            "image_size": encoder.image_size,
            "resize_size": resize_size,
            "precision": policy.name,
            "batch_size": FLAGS.batch_size,
            **images.identity,
        }
        if is_finished(output, plan):
            print(f"{output} is finished already.")
            return 0
        dataset = pipeline.distribute(strategy, images.load)
        writer = FeatureWriter(output, row_shape(encoder, FLAGS.pool, layers), plan)
    encode = make_encode(make_rows(encoder, FLAGS.pool, layers), strategy)
    with commandline.user_mistakes(DataError, FeatureFileError), named_data_errors(), writer:
        write_features(writer, encode, dataset, images, FLAGS.batch_size)
        writer.finish()
    skipped = f", {len(stats.corrupt)} skipped" if stats.corrupt else ""
    print(f"{output}: features of {writer.rows} images, {' x '.join(map(str, writer.row_shape))} numbers each{skipped}")
    return 0


def define_flags():
    flags.DEFINE_string(
        "encoder", None, "Encoder or classifier: .keras, SavedModel, export or run folder.", required=True
    )
    flags.DEFINE_string("data", None, "Folder of a shard set.")
    flags.DEFINE_string("split", None, "Split of the shard set; unset: the only one.")
    flags.DEFINE_string("images", None, "Instead of --data: a folder of images, or of class folders.")
    flags.DEFINE_string("output", None, "File for the features, .npy or .parquet.", required=True)
    flags.DEFINE_enum("pool", "class_token", POOLS, "Which features of an image; tokens: all of them.")
    flags.DEFINE_list("layers", "-1", "Blocks whose features follow each other in a row; -1 is the last.")
    flags.DEFINE_boolean("final_norm", True, "Whether tokens go through the encoder's final norm, if it has one.")
    flags.DEFINE_integer("batch_size", 128, "Images in a batch, over all replicas.", lower_bound=1)
    flags.DEFINE_integer("resize_size", None, "Short side before the centre crop; unset: the run's, or 256/224 rule.")
    flags.DEFINE_integer("max_corrupt", 0, "Images that may be skipped because they cannot be decoded; each is named.")
    define_one_process_flags()
    define_reading_flags()


def entry_point():
    commandline.run(main, define_flags)


if __name__ == "__main__":
    entry_point()
