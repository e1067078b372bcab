"""Trains a linear probe: a linear classifier on what a frozen pre-trained encoder makes of images.

python -m keras_mae.linear_probe --recipe=vit_base --encoder=runs/base/export --data=SHARDS --run_dir=runs/base-probe

`--encoder` takes `encoder.keras`, a `saved_model` folder, or the export folder that holds both. Every field of the
recipe is a flag. With `--cache_features` the encoder runs once over the images, without augmentation, and the epochs
after that take moments. The same command again goes on where the run stopped. Ends with RUN_DIR/export/classifier.keras
and RUN_DIR/export/saved_model, and with the weights of the best evaluation in RUN_DIR/export/best.
"""

import pathlib

from absl import flags

import pipeline
from keras_mae import commandline, recipes
from keras_mae.recipe_display import define_display_flags, display
from keras_mae.recipe_encoder import load_recipe_encoder
from keras_mae.recipes.probing import LINEAR_PROBE_NOTES, LINEAR_PROBE_RECIPES
from keras_mae.run_flags import define_encoder_flags, define_run_flags, run_options

FLAGS = flags.FLAGS


def open_encoder(path, recipe, policy="float32", positions="resize"):
    """The saved encoder as `load_recipe_encoder` gives it.

    Raises:
        ValueError: as there, or it has lost its final norm.
    """
    encoder = load_recipe_encoder(path, recipe, policy, positions)
    if not encoder.final_norm:
        raise ValueError(
            f"The encoder at {path} has no final norm, as those of fine-tuned classifiers: the probe needs a "
            "pre-trained encoder."
        )
    return encoder


def check_replicas(strategy, recipe):
    """Raises ValueError for accumulation on several replicas: between parts, BatchNorm cannot share its averages."""
    if strategy.num_replicas_in_sync > 1 and recipe.accumulation_steps > 1:
        raise ValueError(
            "The probe's BatchNorm shares its averages between replicas once a step: accumulation_steps must be 1 on "
            f"several. Received: accumulation_steps={recipe.accumulation_steps}, "
            f"replicas={strategy.num_replicas_in_sync}"
        )


def cached(data, values, recipe, devices):
    """The data with features of the encoder instead of images.

    Raises:
        ValueError: several processes, or images that may be skipped.
    """
    from keras_mae.cached_features import with_cached_features
    from keras_mae.training.workers import addresses

    if len(addresses(devices.strategy)) > 1:
        raise ValueError("cache_features is for one process: each would keep features of its own part only.")
    if values.max_corrupt:
        raise ValueError(
            "cache_features needs the features of all images: max_corrupt must be 0. "
            f"Received: max_corrupt={values.max_corrupt}"
        )
    path, positions = values.encoder, values.positions
    identity = {
        "encoder": data.identity["encoder"],
        "pool": recipe.pool,
        "resize_size": recipe.resize_size,
        "precision": devices.policy.name,
    }
    return with_cached_features(
        data,
        lambda: open_encoder(path, recipe, devices.policy, positions),
        pathlib.Path(values.run_dir, "features"),
        identity,
        batch_size=recipe.batch_size,
        pool=recipe.pool,
        strategy=devices.strategy,
    )


def build_optimizer(schedule, recipe):
    """LARS of the head."""
    from keras_mae.training.lars import LARS

    return LARS(
        schedule,
        weight_decay=recipe.weight_decay,
        momentum=recipe.momentum,
        trust_coefficient=recipe.trust_coefficient,
    )


def main(argv):
    if display(FLAGS, LINEAR_PROBE_RECIPES, LINEAR_PROBE_NOTES):
        return 0

    from keras_mae.models import LinearProbe
    from keras_mae.run_data import open_data
    from keras_mae.training.initial_weights import fingerprint
    from keras_mae.training.model_card import run_card
    from keras_mae.training.run import RUN_ERRORS, Task, run, start_devices
    from keras_mae.training.saved_model import export
    from keras_mae.training.workers import HostError, named_host_errors

    with commandline.user_mistakes(ValueError, HostError), named_host_errors():
        recipe = recipes.recipe_from_flags(LINEAR_PROBE_RECIPES, FLAGS)
        if FLAGS.encoder is None:
            raise ValueError("--encoder=PATH is missing: the probe is of a pre-trained encoder.")
        options = run_options(FLAGS)
        devices = start_devices(options, recipe)
        check_replicas(devices.strategy, recipe)
        path, positions = FLAGS.encoder, FLAGS.positions
        encoder = open_encoder(path, recipe, positions=positions)
        card = run_card("keras_mae.linear_probe", path, FLAGS.recipe, FLAGS.data)
        data = open_data(FLAGS, recipe, view="probe", noise={}, strategy=devices.strategy)
        data.identity["encoder"] = fingerprint(encoder)
        if recipe.cache_features:
            data = cached(data, FLAGS, recipe, devices)
        classes = pipeline.load_manifest(FLAGS.data).classes

    def build_model(policy):
        return LinearProbe(open_encoder(path, recipe, policy, positions), len(classes), recipe.pool)

    task = Task(
        command="linear_probe",
        build_model=build_model,
        build_optimizer=lambda model, schedule: build_optimizer(schedule, recipe),
        export=lambda model, folder: export(model, folder, card, data.image_dtype, classes, options.run_dir),
        best_metric="accuracy",
    )
    with commandline.user_mistakes(*RUN_ERRORS):
        run(task, recipe, data, options, devices)
    return 0


def define_flags():
    recipes.define_recipe_flags(LINEAR_PROBE_RECIPES)
    define_run_flags()
    define_display_flags()
    define_encoder_flags()


def entry_point():
    commandline.run(main, define_flags)


if __name__ == "__main__":
    entry_point()
