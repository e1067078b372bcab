"""Turns published weights into models of this project, and models of this project into files for others.

  python -m tools.convert_weights --input=mae_pretrain_vit_base.pth --output=converted/base \\
      --source_license="CC BY-NC 4.0"
  python -m tools.convert_weights --input=runs/base --output=for_transformers --to=huggingface

Reads `.pth` of the official code (with PyTorch) and safetensors (extra `convert`) by the names of the official code,
timm and Hugging Face's ViTMAE: encoders, whole autoencoders, fine-tuned classifiers. The output folder is what a run
exports: `encoder.keras` (and `mae.keras`) or `classifier.keras`, and `saved_model/`. --to=official, timm or huggingface
writes `model.safetensors` instead, from these or from our own models and runs. A card with the licence of the source
lies beside.
"""

import hashlib
import pathlib

import numpy as np
from absl import flags

import keras_mae
from keras_mae import commandline
from keras_mae.training.foreign_weights import find_weights, read_hints, read_weights
from keras_mae.training.model_card import UNKNOWN, read_card
from keras_mae.training.weight_names import (
    check_names,
    check_shapes,
    count_blocks,
    find_naming,
    name_map,
    to_ours,
    to_theirs,
)
from keras_mae.training.weight_sizes import infer_sizes
from tools.weights_for_others import HINTS, kind_of, say, write_theirs

FLAGS = flags.FLAGS

TARGETS = ("keras_mae", "official", "timm", "huggingface")
MAE_HINTS = ("decoder_num_heads", "mask_ratio", "norm_pix_loss")
NORMALIZED_NOTE = (
    "the weights do not tell whether the decoder predicts normalised pixels: yes is assumed. That of the official "
    "mae_visualize files predicts plain ones: --nonorm_pix_loss."
)
SINCOS_TOLERANCE = 1e-4


def read_foreign(path, given):
    """Our model with the weights of a file of others.

    Args:
        path: as `find_weights` gives it.
        given: the user's values for HINTS, where there are any.

    Returns:
        The model, and the name of the naming.

    Raises:
        ValueError: weights are missing, left over or of another shape, or something must be given.
    """
    arrays = read_weights(path)  # before Keras is imported: PyTorch must come before TensorFlow
    naming, kind = find_naming(arrays)
    names = name_map(naming, kind, *count_blocks(naming, arrays))
    check_names(arrays, names)
    hints = {**read_hints(path), **given}
    sizes = infer_sizes(arrays, naming, kind, hints)
    if kind != "mae" and set(given) & set(MAE_HINTS):
        raise ValueError(f"{path} holds no decoder: leave out {', '.join(n for n in MAE_HINTS if n in given)}.")
    if kind == "mae" and "norm_pix_loss" not in hints:
        say(NORMALIZED_NOTE)
    model = build_model(kind, sizes, {name: hints[name] for name in HINTS[3:] if name in hints})

    from keras_mae.training.saved_model import assign_weights, named_weights

    prefix = "encoder/" if kind == "encoder" else ""
    shapes = {prefix + name: np.broadcast_to(np.float32(0), v.shape) for name, v in named_weights(model).items()}
    check_shapes(arrays, to_theirs(shapes, names, sizes["patch_size"]))
    assign_weights({name.removeprefix(prefix): array for name, array in to_ours(arrays, names).items()}, model)
    return model, naming.name


def build_model(kind, sizes, options):
    """A new model of one of weight_names.KINDS.

    Args:
        kind: which.
        sizes: as `infer_sizes` gives them.
        options: of HINTS, those that no shape shows.
    """
    from keras_mae.models import Classifier, MaskedAutoencoder, VisionTransformer

    decoder = {name: size for name, size in sizes.items() if name.startswith("decoder_")}
    pixels = {name: value for name, value in options.items() if name.startswith("pixel_")}
    encoder = {name: size for name, size in sizes.items() if name != "num_classes" and name not in decoder}
    model = VisionTransformer(**encoder, **pixels, final_norm=kind != "classifier")
    if kind == "mae":
        masking = {name: value for name, value in options.items() if name not in pixels}
        model = MaskedAutoencoder(model, **decoder, **masking)
    elif kind == "classifier":
        model = Classifier(model, sizes["num_classes"])
    model.build()
    return model


def read_ours(path):
    """A model of this project: of a run of pre-training the newest checkpoint, of an export the whole model."""
    from keras_mae.training.run_dir import read_description
    from keras_mae.training.saved_model import load_model

    if (read_description(path) or {}).get("command") == "pretrain":
        from keras_mae.pretrain import load_run  # brings the whole pipeline

        return load_run(path)
    return load_model(path / "mae.keras" if (path / "mae.keras").is_file() else path)


def sincos_difference(encoder):
    """Largest difference of the encoder's position table from the fixed one."""
    from keras_mae.layers.positions import sincos_position_table

    table = np.asarray(encoder.position_embedding.table)
    return float(np.abs(table - sincos_position_table(encoder.grid_size, encoder.embed_dim)).max())


def make_card(path, naming, source_license):
    """The card of what is made from `path`; the card that lies there, if one does, is its beginning."""
    known = read_card(path) or {}
    card = {
        "source": path.name,
        "source_license": source_license or known.get("source_license", UNKNOWN),
        "source_names": naming,
        "made_by": f"tools.convert_weights of keras_mae {keras_mae.__version__}",
    }
    if path.is_file():
        with open(path, "rb") as file:
            card["source_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return {**card, "began_with": known} if known else card


def given_hints(values):
    """The user's values of HINTS.

    Raises:
        ValueError: not numbers.
    """
    given = {}
    for name in HINTS:
        value = values[name].value
        if isinstance(value, list):
            try:
                value = tuple((int if name == "image_size" else float)(part) for part in value)
            except ValueError:
                raise ValueError(f"{name} takes numbers separated by commas. Received: {','.join(value)!r}") from None
        if value is not None:
            given[name] = value
    if len(given.get("image_size", (0, 0))) == 1:
        given["image_size"] *= 2
    return given


def main(argv):
    output = pathlib.Path(FLAGS.output)
    with commandline.user_mistakes():
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise ValueError(f"{output} exists already; give another --output, or remove it.")
        given, path = given_hints(FLAGS), pathlib.Path(FLAGS.input)
        weights = find_weights(path)
        if weights is None and given:
            raise ValueError(f"{path} is a model of ours, which knows its {', '.join(given)}: leave out these flags.")
        model, naming = read_foreign(weights, given) if weights else (read_ours(path), "keras_mae")
        encoder = getattr(model, "encoder", model)
        card = make_card(weights or path, naming, FLAGS.source_license)

        from keras_mae.training.saved_model import export

        if FLAGS.to == "keras_mae":
            export(model, output, card)
        else:
            write_theirs(model, FLAGS.to, output, card)
    difference = sincos_difference(encoder)
    if difference > SINCOS_TOLERANCE:
        say(f"the position table is not the sin-cos table (differs by up to {difference:.2g}) and was kept as it is.")
    if card["source_license"] == UNKNOWN:
        say('the licence of the source is not known; give it with --source_license, such as "CC BY-NC 4.0".')
    height, width = encoder.image_size
    print(
        f"{output}: {kind_of(model)} of {model.count_params():,} parameters, from {naming} names: "
        f"{height}x{width} pixels, patch {encoder.patch_size}, width {encoder.embed_dim}, {encoder.depth} blocks"
    )
    return 0


def define_flags():
    flags.DEFINE_string("input", None, "Weight file, folder with one, or a model or run folder of ours.", required=True)
    flags.DEFINE_string("output", None, "New folder for the models or weights.", required=True)
    flags.DEFINE_enum("to", "keras_mae", TARGETS, "Whose model to write.")
    flags.DEFINE_string("source_license", None, "Licence of the input's weights, for the card; unset: its card's.")
    flags.DEFINE_list("image_size", None, "Side or height,width in pixels; unset: a square, from the position table.")
    flags.DEFINE_integer(
        "num_heads", None, "Attention heads of the encoder; unset: known for the usual widths.", lower_bound=1
    )
    flags.DEFINE_integer(
        "decoder_num_heads", None, "Attention heads of the decoder; unset: 16 for width 512.", lower_bound=1
    )
    flags.DEFINE_float("mask_ratio", None, "Of a whole autoencoder; unset: .75.")
    flags.DEFINE_boolean("norm_pix_loss", None, "Whether a whole autoencoder predicts normalised pixels; unset: yes.")
    flags.DEFINE_list("pixel_mean", None, "Per channel on the scale 0..1; unset: ImageNet's.")
    flags.DEFINE_list("pixel_std", None, "Per channel on the scale 0..1; unset: ImageNet's.")


def entry_point():
    commandline.run(main, define_flags)


if __name__ == "__main__":
    entry_point()
