"""Writes another SavedModel of a model: with tokens of inner blocks, taking images of any size, in bfloat16, ...

  python -m tools.export_saved_model --model=runs/base-finetuned --output=serving --resize --precision=bfloat16
  python -m tools.export_saved_model --model=runs/base/export --output=features --layers=5,11
  python -m tools.export_saved_model --model=converted/base --output=reconstruct --reconstruct

A run's export has a SavedModel already; this is for those who need a different one. The new folder is the SavedModel,
with card.json, recipe.json and the names of the classes inside; every command of ours takes it. docs/saved_models.md
says what its signatures give.
"""

import json
import os
import pathlib
import shutil

from absl import flags

from keras_mae import commandline

FLAGS = flags.FLAGS


def open_model(path, reconstruct):
    """The model that the SavedModel is to hold: encoder, classifier, or, to reconstruct, a whole masked autoencoder.

    Raises:
        ValueError: there is no such model.
    """
    from keras_mae.models import MaskedAutoencoder
    from keras_mae.training.saved_model import load_model

    if not reconstruct:
        model = load_model(path)
        return model.encoder if isinstance(model, MaskedAutoencoder) else model
    if is_pretraining(path):
        from keras_mae.pretrain import load_run  # brings the whole pipeline

        return with_random_masks(load_run(path))
    from tools.reconstruct import open_model as open_autoencoder

    return with_random_masks(open_autoencoder(path))


def is_pretraining(path):
    """Whether it is the folder of a pre-training run."""
    from keras_mae.training.run_dir import read_description

    return (read_description(path) or {}).get("command") == "pretrain"


def card_of_checkpoint(known, run, run_dir):
    """The card of a run's newest checkpoint, which may be of another step than the run's end and its export.

    Figures stay if they are of this step, and of weights that are no averages: a checkpoint's own are not.

    Args:
        known: card of the export.
        run: recipe.json of the run.
        run_dir: the run folder.
    """
    from keras_mae.training.checkpoints import Checkpoints
    from keras_mae.training.model_card import run_facts

    step = Checkpoints(run_dir / "checkpoints").newest()[0]["step"]
    if known.get("measured_in_training", {}).get("step") != step or run["recipe"].get("ema_decay"):
        known = {name: value for name, value in known.items() if name != "measured_in_training"}
    return {**known, **run_facts({**run, "total_steps": step})}


def with_random_masks(model):
    """The same masked autoencoder, whose mask is a function of one number a patch.

    Raises:
        ValueError: what it predicts cannot be shown as pixels.
    """
    from keras_mae.training.signatures import check_reconstructs

    copy = changed_copy(model, mask_kind="random")
    check_reconstructs(copy)
    return copy


def with_drop_path(model, rate):
    """The same encoder or classifier, whose residual branches are dropped in training.

    Args:
        model: a `VisionTransformer` or a `Classifier`.
        rate: share of the dropped branches in the last block; grows linearly from 0 in the first.

    Raises:
        ValueError: a rate out of its range, or a linear probe, whose encoder does not train.
    """
    from keras_mae.models import LinearProbe, VisionTransformer

    if isinstance(model, LinearProbe):
        raise ValueError("--drop_path_rate is for training, but the encoder of a linear probe is frozen.")
    if isinstance(model, VisionTransformer):
        return changed_copy(model, drop_path_rate=rate)
    encoder = model.get_config()["encoder"]
    return changed_copy(model, encoder={**encoder, "config": {**encoder["config"], "drop_path_rate": rate}})


def changed_copy(model, **changes):
    """A model with the same weights, and other arguments."""
    from keras_mae.training.saved_model import copy_weights

    copy = type(model).from_config({**model.get_config(), **changes})
    copy.build()
    copy_weights(model, copy)
    return copy


def make_resize(encoder, resize_size, image_dtype):
    """A function of images of any size, (batch, height, width, channels), to what evaluation sees of them.

    The short side is resized to `resize_size` pixels, and the centre is taken: the very pixels of `pipeline`'s views.

    Args:
        encoder: whose images they are to become.
        resize_size: short side in pixels; None: by the rule of 256/224.
        image_dtype: "uint8" or "uint16".

    Raises:
        ValueError: `resize_size` is smaller than the encoder's images.
    """
    import tensorflow as tf

    from pipeline.view_options import ViewOptions
    from pipeline.views import covering_size, resize_bicubic

    size, channels = encoder.image_size, encoder.channels
    resize_size = ViewOptions(view="eval", image_size=size, resize_size=resize_size).eval_resize_size
    spec = tf.TensorSpec((*size, channels), image_dtype)

    def view(image):
        shape = tf.shape(image)
        image = resize_bicubic(image, covering_size(shape[0], shape[1], size, resize_size))
        margin = tf.cast(tf.shape(image)[:2] - tf.constant(size), tf.float64)
        top, left = tf.unstack(tf.cast(tf.round(margin / 2), tf.int32))
        return tf.ensure_shape(tf.slice(image, [top, left, 0], spec.shape), spec.shape)

    return lambda images: tf.map_fn(view, images, fn_output_signature=spec)


def read_layers(words, depth):
    """The numbers of --layers, counted from the first block.

    Raises:
        ValueError: one is no number, or there is no such block.
    """
    from keras_mae.models.backbone import block_numbers

    try:
        numbers = [int(word) for word in words]
    except ValueError:
        raise ValueError(f"layers takes numbers of blocks such as 5,11. Received: {','.join(words)!r}") from None
    return tuple(block_numbers(numbers, depth)) if numbers else ()


def check_flags(values):
    """Raises ValueError where flags do not go together, or the output exists."""
    output = pathlib.Path(values.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} exists already; give another --output, or remove it.")
    if values.resize_size is not None and not values.resize:
        raise ValueError("--resize_size is about --resize, which is not given.")
    if values.reconstruct and values.drop_path_rate is not None:
        raise ValueError("--drop_path_rate is about encoders and classifiers, not about --reconstruct.")


def write(model, options, output, card, run):
    """Writes the SavedModel with all that is inside it; the folder appears under its name when all is written.

    Args:
        model: as `write_saved_model` takes it.
        options: of its signatures.
        output: folder that does not exist, or is empty.
        card: of the model.
        run: recipe.json of its run; None: unknown.
    """
    from keras_mae.training.class_names import write_class_names
    from keras_mae.training.model_assets import write_asset
    from keras_mae.training.model_card import write_card
    from keras_mae.training.run_dir import NAME
    from keras_mae.training.saved_model import write_saved_model

    output = output.resolve()  # "." has no name
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_saved_model(model, partial, options)
    if run is not None:
        write_asset(partial, NAME, json.dumps(run, indent=2) + "\n")
    if options.classes is not None:
        write_class_names(partial, options.classes)
    write_card(partial, card)
    os.replace(partial, output)


def main(argv):
    with commandline.user_mistakes():
        check_flags(FLAGS)
        from keras_mae.training.class_names import read_class_names
        from keras_mae.training.model_card import UNKNOWN, read_card, run_facts
        from keras_mae.training.run_dir import description_above
        from keras_mae.training.signatures import SignatureOptions, make_signatures, model_facts

        path, output = pathlib.Path(FLAGS.model), pathlib.Path(FLAGS.output)
        known, run = read_card(path) or {"source_license": UNKNOWN}, description_above(path)
        model = open_model(path, FLAGS.reconstruct)
        if FLAGS.drop_path_rate is not None:
            model = with_drop_path(model, FLAGS.drop_path_rate)
        encoder = getattr(model, "encoder", model)
        image_dtype = FLAGS.image_dtype or known.get("image", {}).get("dtype", "uint8")
        resize_size = FLAGS.resize_size
        if resize_size is None and run:
            resize_size = run["recipe"]["resize_size"]
        options = SignatureOptions(
            image_dtype,
            FLAGS.precision,
            read_layers(FLAGS.layers, encoder.depth),
            read_class_names(path) if hasattr(model, "num_classes") else None,
            make_resize(encoder, resize_size, image_dtype) if FLAGS.resize else None,
            FLAGS.drop_path_rate is not None,
        )
        make_signatures(model, options)  # checks that all fits
        if FLAGS.reconstruct and is_pretraining(path):
            known = card_of_checkpoint(known, run, path)
        elif run:
            known = {**known, **run_facts(run), **known}  # the run may have gone on since its export
    card = {**known, **model_facts(model, options)}
    write(model, options, output, card, run)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    print(
        f"{output}: {type(model).__name__} of {model.count_params():,} parameters in {options.precision}, {size:,} "
        f"bytes; signatures: {', '.join(card['signatures'])}"
    )
    return 0


def define_flags():
    flags.DEFINE_string(
        "model", None, "Encoder or classifier: run, export or SavedModel folder, or .keras file.", required=True
    )
    flags.DEFINE_string("output", None, "New folder for the SavedModel.", required=True)
    flags.DEFINE_list("layers", [], "Blocks whose tokens `features` gives, too, such as 5,11; -1 is the last.")
    flags.DEFINE_boolean("resize", False, "Take images of any size; they are resized and cropped as in evaluation.")
    flags.DEFINE_integer("resize_size", None, "Short side before the centre crop; unset: the run's, or 256/224 rule.")
    flags.DEFINE_enum("precision", "float32", ["float32", "bfloat16"], "Type of the variables and of the computation.")
    flags.DEFINE_boolean(
        "reconstruct", False, "Add `reconstruct`: of mae.keras, or of a pre-training run its newest checkpoint."
    )
    flags.DEFINE_float("drop_path_rate", None, "Add `features_training`, with so much drop path in the last block.")
    flags.DEFINE_enum(
        "image_dtype", None, ["uint8", "uint16"], "Type of the images; unset: what the model's card says, or uint8."
    )


def entry_point():
    commandline.run(main, define_flags)


if __name__ == "__main__":
    entry_point()
