"""Evaluates a classifier on a split of a shard set: top-1, top-5, loss, single classes, which is taken for which.

python -m keras_mae.evaluate --run_dir=runs/base-finetuned --data=SHARDS --split=val
python -m keras_mae.evaluate --run_dir=runs/base-finetuned --suite=robustness --data_root=DIR

Writes RUN/evaluation/SPLIT/results.json, or --output. The suite measures an ImageNet classifier on ImageNet-A, -R,
-Sketch, -V2 and -C. docs/evaluation.md says more.

Instead of a run folder of finetune, `--model` takes an export folder, `classifier.keras` or a `saved_model` folder.
With `--strategy=multi_worker` the same command in several processes shares the work (docs/launching.md); the first one
prints and writes the results.
"""

import functools
import json
import pathlib
import sys

from absl import flags

import pipeline
from keras_mae import commandline
from keras_mae.evaluation.results_file import earlier_results, results_path, write_results
from keras_mae.robustness_suite import Part, find_parts, measure_suite, parse_places, suite_text
from keras_mae.run_flags import (
    define_precision_flag,
    define_reading_flags,
    define_strategy_flags,
    reading_options,
    worker_flags,
)
from pipeline.manifest import read_manifest

FLAGS = flags.FLAGS

REPLICA_IMAGES = 128


def open_classifier(path, policy, num_classes):
    """The saved classifier, of another dtype policy.

    Raises:
        ValueError: there is none, or it knows another number of classes.
    """
    from keras_mae.training.saved_model import load_classifier

    model = load_classifier(path, policy.name)
    if model.num_classes != num_classes:
        raise ValueError(
            f"The classifier knows {model.num_classes} classes. Received: a shard set of {num_classes} classes"
        )
    return model


def known_classes(path, given):
    """The names of the classifier's classes in its order, of --data, or where that is not given of its own list.

    Args:
        path: of the classifier.
        given: classes of the shard set of --data; None: there is none.

    Raises:
        ValueError: neither says them, or they say different things.
    """
    from keras_mae.training.class_names import read_class_names

    own = read_class_names(path)
    if given is None and own is None:
        raise ValueError(f"{path} has no classes.json. Give the shard set that it was trained on: --data=SHARDS.")
    if given is None or own is None:
        return tuple(own if given is None else given)
    places = {name: place for place, name in enumerate(own)}
    moved = [name for place, name in enumerate(given) if places.get(name, place) != place]
    if moved:
        raise ValueError(
            f"The shard set has the classifier's classes in another order: class {moved[0]!r} is number "
            f"{given.index(moved[0])} there, and {places[moved[0]]} in its classes.json. Make the shards again with "
            "the same classes."
        )
    return tuple(given)


def choose_parts(values, shard_set, classes, encoder, run):
    """What is to be measured, as `Part`s, and the names of parts of the suite that are not there.

    Args:
        values: of the flags.
        shard_set: of --data; a suite has no use for it.
        classes: names of the classifier's classes.
        encoder: of the classifier.
        run: recipe.json of the run that it comes from; None: unknown.

    Raises:
        ValueError: there is no such split, or nothing to measure.
    """
    resize_size = values.resize_size or (run["recipe"]["resize_size"] if run else None)
    if values.suite:
        places = parse_places(values.data_root, values.suite_data)
        return find_parts(places, classes, encoder.image_size, resize_size)
    split = shard_set.split(values.split or ("val" if "val" in shard_set.splits else None))
    return [Part(split.name, shard_set, split, None, resize_size)], []


def open_datasets(values, parts, encoder, strategy, batch_size):
    """The batches of each part, by its name; nothing is read yet, but wrong options show."""
    load = functools.partial(
        pipeline.load,
        view="eval",
        batch_size=batch_size,
        image_size=encoder.image_size,
        channels=encoder.channels,
        data_service=values.data_service,
        **reading_options(values),
    )
    return {part.name: pipeline.distribute(strategy, functools.partial(load, **part.reads())) for part in parts}


def main(argv):
    from keras_mae.evaluation.class_map import EvaluationError
    from keras_mae.evaluation.classification import classification_results, make_predict
    from keras_mae.evaluation.results import describe_classes, describe_model
    from keras_mae.training.data_errors import DataError, named_data_errors
    from keras_mae.training.run_dir import description_above
    from keras_mae.training.strategy import dtype_policy, make_strategy
    from keras_mae.training.workers import HostError, exchange, is_chief, named_host_errors

    with commandline.user_mistakes(ValueError, HostError), named_host_errors():
        check_flags(FLAGS)
        path = pathlib.Path(FLAGS.model or FLAGS.run_dir)
        if FLAGS.which == "best":
            path = path / "export" / "best"
        strategy = make_strategy(FLAGS.strategy, worker_flags(FLAGS), FLAGS.tpu)
        policy = dtype_policy(FLAGS.precision)
        # Of a suite, --data is but a list of classes: its shards may be elsewhere.
        open_set = read_manifest if FLAGS.suite else pipeline.load_manifest
        shard_set = None if FLAGS.data is None else open_set(FLAGS.data)
        classes = known_classes(path, None if shard_set is None else shard_set.classes or ())
        with strategy.scope():
            model = open_classifier(path, policy, len(classes))
        run = description_above(path)
        parts, missing = choose_parts(FLAGS, shard_set, classes, model.encoder, run)
        batch_size = FLAGS.batch_size or REPLICA_IMAGES * strategy.num_replicas_in_sync
        datasets = open_datasets(FLAGS, parts, model.encoder, strategy, batch_size)
        name = (FLAGS.suite or parts[0].name) + ("-best" if FLAGS.which == "best" else "")
        output = results_path(FLAGS.output, FLAGS.run_dir or FLAGS.model, name)
        description = {"command": "evaluate", **describe_model(path, model, classes, run)}
        description |= {"replicas": strategy.num_replicas_in_sync, "batch_size": batch_size}
        if is_chief(strategy):
            output.parent.mkdir(parents=True, exist_ok=True)
    predict = make_predict(model, strategy)

    def measure(part):
        return classification_results(predict, datasets[part.name], strategy, part.split.samples, part.class_map)

    def save(results, rows=None):
        if is_chief(strategy):
            write_results(output, {**description, **results}, rows)

    mistakes = commandline.user_mistakes(DataError, HostError, EvaluationError)
    with mistakes, named_data_errors(), named_host_errors():
        if FLAGS.suite:
            # What the chief has on its disk, all hosts leave out.
            earlier = json.loads(exchange(strategy, json.dumps(earlier_results(output, description)))[0])
            results = measure_suite(parts, missing, earlier, lambda part: measure(part)[0], save)
        else:
            figures, answers = measure(parts[0])
            single, rows = describe_classes(answers, classes)
            results = {**figures, "data": shard_set.root, **parts[0].identity(), **single}
            save(results, rows)
    if is_chief(strategy):
        print(suite_text(results) if FLAGS.suite else figures_text(results))
        print(f"results: {output}", file=sys.stderr)
    return 0


def check_flags(values):
    """Raises ValueError where flags do not go together."""
    if (values.model is None) == (values.run_dir is None):
        raise ValueError("Give either --run_dir=RUN of keras_mae.finetune or --model=PATH.")
    if values.model and values["which"].present:
        raise ValueError("--which is about the models of --run_dir.")
    if values.suite is None and (values.data_root is not None or values.suite_data):
        raise ValueError("--data_root and --suite_data are about the sets of --suite=robustness.")
    if values.suite is None and values.data is None:
        raise ValueError("--data=SHARDS is needed: the shard set to evaluate on.")
    if values.suite is not None and values.split is not None:
        raise ValueError("--split is about --data, whose images --suite does not read.")
    if values.suite is not None:
        parse_places(values.data_root, values.suite_data)


def figures_text(results):
    """The results of a split in one line."""
    return (
        f"{results['split']}: top-1 {100 * results['accuracy']:.2f}%  top-5 {100 * results['top5_accuracy']:.2f}%  "
        f"loss {results['loss']:.4f}  ({results['samples']} images, {results['images_per_second']:.0f} images/s)"
    )


def define_flags():
    flags.DEFINE_string("run_dir", None, "Run folder of keras_mae.finetune.")
    flags.DEFINE_enum("which", "last", ["last", "best"], "Of a run folder: weights of the last step or best epoch.")
    flags.DEFINE_string("model", None, "Instead of --run_dir: export folder, .keras file or SavedModel folder.")
    flags.DEFINE_string(
        "data",
        None,
        "Folder of a shard set, as tools.make_shards writes it. For a suite, where the model has no classes.json: the "
        "one that it was trained on.",
    )
    flags.DEFINE_string("split", None, "Split to evaluate on; unset: val, or the only one.")
    flags.DEFINE_enum("suite", None, ["robustness"], "Measure a suite of data sets instead of a split of --data.")
    flags.DEFINE_string("data_root", None, "Of a suite: folder with a shard set under the name of each of its sets.")
    flags.DEFINE_list("suite_data", [], "Of a suite: places of single sets: imagenet-a=SHARDS,imagenet-c=DIR.")
    flags.DEFINE_integer(
        "batch_size",
        None,
        f"Images in a batch, over all hosts and replicas; unset: {REPLICA_IMAGES} for each replica.",
        lower_bound=1,
    )
    flags.DEFINE_integer("resize_size", None, "Short side before the centre crop; unset: the run's, or 256/224 rule.")
    define_strategy_flags()
    define_precision_flag()
    flags.DEFINE_string("output", None, "File for the results; unset: evaluation/SPLIT/results.json in the run folder.")
    define_reading_flags()


def entry_point():
    commandline.run(main, define_flags)


if __name__ == "__main__":
    entry_point()
