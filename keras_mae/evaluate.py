"""Evaluates a classifier on a split of a shard set: top-1, top-5, loss.

python -m keras_mae.evaluate --model=runs/base-finetuned --data=SHARDS --split=val [--output=results.json]

`--model` takes a run folder of finetune, its export folder, `classifier.keras` or a `saved_model` folder.
"""

import json
import pathlib

from absl import flags

import pipeline
from keras_mae import commandline

FLAGS = flags.FLAGS


def recipe_resize_size(model_path):
    """The short side that the run's own evaluation resized to; None where the path is no run folder."""
    recipe = pathlib.Path(model_path, "recipe.json")
    return json.loads(recipe.read_text())["recipe"]["resize_size"] if recipe.exists() else None


def main(argv):
    from keras_mae.evaluation.classification import classification_results
    from keras_mae.models import Classifier
    from keras_mae.training.saved_model import load_model

    with commandline.user_mistakes():
        shard_set = pipeline.load_manifest(FLAGS.data)
        model = load_model(FLAGS.model)
        if not isinstance(model, Classifier):
            raise ValueError(f"{FLAGS.model} holds no classifier but an encoder; fine-tune it first.")
        if model.num_classes != len(shard_set.classes or ()):
            raise ValueError(
                f"The classifier knows {model.num_classes} classes. Received: a shard set of "
                f"{len(shard_set.classes or ())} classes"
            )
        default = "val" if "val" in shard_set.splits else None
        split = shard_set.split(FLAGS.split or default)
        dataset = pipeline.load(
            shard_set,
            split=split.name,
            view="eval",
            batch_size=FLAGS.batch_size,
            image_size=model.encoder.image_size,
            channels=model.encoder.channels,
            resize_size=FLAGS.resize_size or recipe_resize_size(FLAGS.model),
        )
    results = {"model": FLAGS.model, "split": split.name, **classification_results(model, dataset)}
    print(
        f"{split.name}: top-1 {100 * results['accuracy']:.2f}%  top-5 {100 * results['top5_accuracy']:.2f}%  "
        f"loss {results['loss']:.4f}  ({results['samples']} images, {results['images_per_second']:.0f} images/s)"
    )
    if FLAGS.output:
        pathlib.Path(FLAGS.output).write_text(json.dumps(results, indent=2) + "\n")
    return 0


def define_flags():
    flags.DEFINE_string(
        "model", None, "Run folder of finetune, export folder, .keras file or SavedModel.", required=True
    )
    flags.DEFINE_string("data", None, "Folder of a shard set, as tools.make_shards writes it.", required=True)
    flags.DEFINE_string("split", None, "Split to evaluate on; unset: val, or the only one.")
    flags.DEFINE_integer("batch_size", 128, "Images in a batch.", lower_bound=1)
    flags.DEFINE_integer("resize_size", None, "Short side before the centre crop; unset: the run's, or 256/224 rule.")
    flags.DEFINE_string("output", None, "JSON file for the results.")


def entry_point():
    commandline.run(main, define_flags)


if __name__ == "__main__":
    entry_point()
