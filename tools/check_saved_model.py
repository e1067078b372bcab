"""Checks that an exported SavedModel says the same as the Keras model beside it.

  python -m tools.check_saved_model --export=runs/demo/finetune/export --data=SHARDS

Loads the SavedModel with plain TensorFlow and compares its features (and logits) with the `.keras` file's on images
of a shard set. Exit code 1 if they differ by more than float32 rounding.
"""

import pathlib

import numpy as np
from absl import flags

from keras_mae import commandline
from tools.reconstruct import read_split

FLAGS = flags.FLAGS

TOLERANCE = 1e-5  # of the largest value: float32 rounding in another order


def relative_difference(a, b) -> float:
    """max|a - b| / max|b|."""
    a, b = np.asarray(a), np.asarray(b)
    return float(np.abs(a - b).max() / np.abs(b).max())


def compare(export: pathlib.Path, images: np.ndarray) -> dict[str, float]:
    """Relative difference of each output of the SavedModel from the Keras model."""
    import tensorflow as tf

    from keras_mae.models import Classifier
    from keras_mae.training.saved_model import load_model

    model = load_model(export)
    loaded = tf.saved_model.load(str(export / "saved_model"))
    encoder = model.encoder if isinstance(model, Classifier) else model
    expected = {"tokens": encoder(images)}
    received = loaded.signatures["features"](image=tf.constant(images))
    if isinstance(model, Classifier):
        expected["logits"] = model(images)
        received = {**received, **loaded.signatures["classify"](image=tf.constant(images))}
    return {name: relative_difference(received[name], value) for name, value in expected.items()}


def main(argv):
    from keras_mae.training.data_errors import DataError, named_data_errors
    from keras_mae.training.run_dir import description_above
    from keras_mae.training.saved_model import LOAD_ERRORS, load_model

    export = pathlib.Path(FLAGS.export)
    with commandline.user_mistakes(ValueError, DataError), named_data_errors():
        model = load_model(export)
        encoder = getattr(model, "encoder", model)
        description = description_above(export)
        images = read_split(
            FLAGS.data,
            FLAGS.split,
            FLAGS.count,
            encoder.image_size,
            encoder.channels,
            description["recipe"]["resize_size"] if description else None,
        )
    try:
        differences = compare(export, images)
    except LOAD_ERRORS as error:
        raise commandline.CommandError(f"{export / 'saved_model'} cannot be compared: {error}") from error
    shown = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    equal = max(differences.values()) <= TOLERANCE
    print(
        f"{export / 'saved_model'}: {'equal to' if equal else 'DIFFERS from'} the Keras model on {len(images)} images, "
        f"relative difference: {shown}"
    )
    return 0 if equal else 1


def define_flags():
    flags.DEFINE_string("export", None, "Export folder of a run: a .keras file and saved_model/.", required=True)
    flags.DEFINE_string("data", None, "Folder of a shard set.", required=True)
    flags.DEFINE_string("split", None, "Split of the shard set; unset: val, or the only one.")
    flags.DEFINE_integer("count", 64, "Images to compare on.", lower_bound=1)


def entry_point():
    commandline.run(main, define_flags)


if __name__ == "__main__":
    entry_point()
