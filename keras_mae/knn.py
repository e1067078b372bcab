"""Classifies a split by the nearest neighbours among another split's features: a frozen encoder, nothing trained.

python -m keras_mae.knn --encoder=runs/base/export --data=SHARDS --split=train --val_split=val --k=10,20,100,200

Prints the accuracy for each k, and writes results.json; every image counts once, whatever the batch size. For a masked
autoencoder it is low, and rightly so (docs/watching.md); it compares encoders of one kind.
"""

import functools
import pathlib
import sys
import time

from absl import flags

import pipeline
from keras_mae import commandline
from keras_mae.evaluation.results_file import results_path, write_results
from keras_mae.run_flags import define_one_process_flags, define_reading_flags, reading_options

FLAGS = flags.FLAGS


def parse_ks(words):
    """The values of `--k`, ascending.

    Raises:
        ValueError: one is no whole number above 0, or there is none.
    """
    if not words or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ValueError(f"k takes numbers of neighbours, such as 10,20,100,200. Received: {','.join(words)!r}")
    return sorted({int(word) for word in words})


def check_splits(shard_set, split, val_split, k):
    """Raises ValueError if there are no classes, or fewer training images than neighbours."""
    if not shard_set.classes:
        raise ValueError("kNN needs a shard set with classes; this one has none.")
    if split.name == val_split.name:
        raise ValueError(
            "split and val_split must differ, or each image is its own nearest neighbour. Received for both: "
            f"{split.name}"
        )
    if k > split.samples:
        raise ValueError(f"k must be at most the {split.samples} images of split {split.name!r}. Received: {k}")


def main(argv):
    from keras_mae.evaluation.features import make_encode, pooled, read_features
    from keras_mae.evaluation.knn import KnnError, check_classes, knn_accuracies
    from keras_mae.evaluation.results import describe_model
    from keras_mae.training.data_errors import DataError, named_data_errors
    from keras_mae.training.run_dir import description_above
    from keras_mae.training.saved_model import load_encoder
    from keras_mae.training.strategy import dtype_policy, make_one_process_strategy

    with commandline.user_mistakes():
        ks = parse_ks(FLAGS.k)
        shard_set = pipeline.load_manifest(FLAGS.data)
        split, val_split = shard_set.split(FLAGS.split), shard_set.split(FLAGS.val_split)
        check_splits(shard_set, split, val_split, max(ks))
        strategy = make_one_process_strategy(FLAGS.strategy)
        with strategy.scope():
            encoder = load_encoder(FLAGS.encoder, dtype=dtype_policy(FLAGS.precision).name)
        encode = make_encode(pooled(encoder, FLAGS.pool), strategy)
        run = description_above(pathlib.Path(FLAGS.encoder))
        resize_size = FLAGS.resize_size or (run["recipe"]["resize_size"] if run else None)
        output = results_path(FLAGS.output, FLAGS.encoder, f"knn-{val_split.name}")
        description = {"command": "knn", **describe_model(FLAGS.encoder, encoder, shard_set.classes, run)}
        output.parent.mkdir(parents=True, exist_ok=True)
        load = functools.partial(
            pipeline.load,
            shard_set,
            view="eval",
            batch_size=FLAGS.batch_size,
            image_size=encoder.image_size,
            channels=encoder.channels,
            resize_size=resize_size,
            data_service=FLAGS.data_service,
            **reading_options(FLAGS),
        )
        passes = [pipeline.distribute(strategy, functools.partial(load, split=s.name)) for s in (split, val_split)]
    with commandline.user_mistakes(DataError, KnnError), named_data_errors():
        for dataset in passes:
            check_classes(dataset, strategy)
        begin = time.monotonic()
        bank, queries = (read_features(encode, dataset) for dataset in passes)
        accuracies = knn_accuracies(bank, queries, ks, FLAGS.temperature)
    seconds, images = time.monotonic() - begin, len(bank.labels) + len(queries.labels)
    results = {
        "knn": {str(k): accuracy for k, accuracy in accuracies.items()},
        "samples": len(queries.labels),
        "train_samples": len(bank.labels),
        "pool": FLAGS.pool,
        "temperature": FLAGS.temperature,
        "data": shard_set.root,
        "split": val_split.name,
        "train_split": split.name,
        "data_fingerprint": shard_set.fingerprint(val_split.name),
        "train_fingerprint": shard_set.fingerprint(split.name),
        "resize_size": resize_size,
        "seconds": round(seconds, 3),
        "images_per_second": round(images / seconds, 1),
    }
    write_results(output, {**description, **results})
    print(as_text(results))
    print(f"results: {output}", file=sys.stderr)
    return 0


def as_text(results):
    """The accuracies, a line for each k."""
    lines = [f"  k={k:<4} top-1 {100 * accuracy:.2f}%" for k, accuracy in results["knn"].items()]
    head = (
        f"{results['samples']} images of {results['split']}, by their neighbours among the "
        f"{results['train_samples']} of {results['train_split']} ({results['seconds']:.0f} s):"
    )
    return "\n".join([head, *lines])


def define_flags():
    flags.DEFINE_string(
        "encoder", None, "Encoder or classifier: .keras, SavedModel, export or run folder.", required=True
    )
    flags.DEFINE_string("data", None, "Folder of a shard set with classes.", required=True)
    flags.DEFINE_string("split", "train", "Split to look for neighbours in.")
    flags.DEFINE_string("val_split", "val", "Split to classify.")
    flags.DEFINE_list("k", "10,20,100,200", "Numbers of neighbours that vote; one search serves all.")
    flags.DEFINE_float("temperature", 0.07, "A neighbour's vote is exp(similarity / temperature).", lower_bound=1e-6)
    flags.DEFINE_enum("pool", "class_token", ("class_token", "patch_mean"), "Which feature of an image.")
    flags.DEFINE_integer("batch_size", 128, "Images in a batch, over all replicas.", lower_bound=1)
    flags.DEFINE_integer("resize_size", None, "Short side before the centre crop; unset: the run's, or 256/224 rule.")
    define_one_process_flags()
    flags.DEFINE_string(
        "output", None, "File for the results; unset: evaluation/knn-SPLIT/results.json by the encoder."
    )
    define_reading_flags()


def entry_point():
    commandline.run(main, define_flags)


if __name__ == "__main__":
    entry_point()
