"""Evaluates a classifier on a split of a shard set: top-1, top-5, loss.

python -m keras_mae.evaluate --run_dir=runs/base-finetuned --data=SHARDS --split=val [--output=results.json]

Instead of a run folder of finetune, `--model` takes an export folder, `classifier.keras` or a `saved_model` folder.
"""

import json
import pathlib

from absl import flags

import pipeline
from keras_mae import commandline

FLAGS = flags.FLAGS


def main(argv):
    from keras_mae.evaluation.classification import classification_results
    from keras_mae.models import Classifier
    from keras_mae.training.data_errors import DataError, named_data_errors
    from keras_mae.training.run_dir import description_above
    from keras_mae.training.saved_model import copy_with_dtype, load_model
    from keras_mae.training.strategy import dtype_policy, make_strategy

    with commandline.user_mistakes():
        if (FLAGS.model is None) == (FLAGS.run_dir is None):
            raise ValueError("Give either --run_dir=RUN of keras_mae.finetune or --model=PATH.")
        path = pathlib.Path(FLAGS.model or FLAGS.run_dir)
        strategy, policy = make_strategy(FLAGS.strategy), dtype_policy(FLAGS.precision)
        if FLAGS.batch_size % strategy.num_replicas_in_sync:
            raise ValueError(
                f"batch_size={FLAGS.batch_size} is not divisible by {strategy.num_replicas_in_sync} replicas."
            )
        shard_set = pipeline.load_manifest(FLAGS.data)
        with strategy.scope():
            model = load_model(path)
            if not isinstance(model, Classifier):
                raise ValueError(f"{path} holds no classifier but an encoder; fine-tune it first.")
            model = copy_with_dtype(model, policy.name)
        if model.num_classes != len(shard_set.classes or ()):
            raise ValueError(
                f"The classifier knows {model.num_classes} classes. Received: a shard set of "
                f"{len(shard_set.classes or ())} classes"
            )
        split = shard_set.split(FLAGS.split or ("val" if "val" in shard_set.splits else None))
        description = description_above(path)
        dataset = pipeline.load(
            shard_set,
            split=split.name,
            view="eval",
            batch_size=FLAGS.batch_size,
            image_size=model.encoder.image_size,
            channels=model.encoder.channels,
            resize_size=FLAGS.resize_size or (description["recipe"]["resize_size"] if description else None),
        )
    with commandline.user_mistakes(DataError), named_data_errors():
        results = {"model": str(path), "split": split.name, **classification_results(model, dataset, strategy)}
    print(
        f"{split.name}: top-1 {100 * results['accuracy']:.2f}%  top-5 {100 * results['top5_accuracy']:.2f}%  "
        f"loss {results['loss']:.4f}  ({results['samples']} images, {results['images_per_second']:.0f} images/s)"
    )
    if FLAGS.output:
        pathlib.Path(FLAGS.output).write_text(json.dumps(results, indent=2) + "\n")
    return 0


def define_flags():
    flags.DEFINE_string("run_dir", None, "Run folder of keras_mae.finetune.")
    flags.DEFINE_string("model", None, "Instead of --run_dir: export folder, .keras file or SavedModel folder.")
    flags.DEFINE_string("data", None, "Folder of a shard set, as tools.make_shards writes it.", required=True)
    flags.DEFINE_string("split", None, "Split to evaluate on; unset: val, or the only one.")
    flags.DEFINE_integer("batch_size", 128, "Images in a batch.", lower_bound=1)
    flags.DEFINE_integer("resize_size", None, "Short side before the centre crop; unset: the run's, or 256/224 rule.")
    flags.DEFINE_string("strategy", "auto", "auto, none or mirrored.")
    flags.DEFINE_string("precision", "auto", "auto, float32 or bfloat16.")
    flags.DEFINE_string("output", None, "JSON file for the results.")


def entry_point():
    commandline.run(main, define_flags)


if __name__ == "__main__":
    entry_point()
