"""SavedModels that transfer: written with their structure beside the weights, and read back in every way.

A SavedModel of plain TensorFlow keeps functions and variables but no layers. Ours carries the Keras configuration
and the order of its variables in `assets.extra/keras_mae.json`, so that `load_model` can rebuild the encoder with its
blocks (layer-wise decay needs them).
"""

import json
import os
import pathlib
import shutil
import zipfile
from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_mae.layers.position_resize import position_table_of_grid
from keras_mae.models import Classifier, MaskedAutoencoder, VisionTransformer
from keras_mae.training.class_names import write_class_names
from keras_mae.training.layer_decay import layer_numbers
from keras_mae.training.model_assets import write_asset
from keras_mae.training.model_card import measured_in_training, run_facts, write_card
from keras_mae.training.run_dir import NAME as RECIPE
from keras_mae.training.run_dir import read_description
from keras_mae.training.signatures import SignatureOptions, model_facts, save_signatures

# What the loaders of Keras and TensorFlow raise for files that are cut, mixed up, or of another kind.
LOAD_ERRORS = (ValueError, OSError, TypeError, LookupError, zipfile.BadZipFile, tf.errors.OpError)
STRUCTURE = pathlib.Path("assets.extra", "keras_mae.json")
NOT_DECAYED = ("class_token", "position_embedding/table")  # beside tensors of one dimension
BEST = "best"  # folder of the weights of a run's best epoch
DEFAULT = SignatureOptions()


class SavedModelError(ValueError):
    """Not a model this project can load, or one that does not fit."""


def export(
    model,
    folder: str | os.PathLike,
    card: dict | None = None,
    image_dtype: str = "uint8",
    classes: Sequence[str] | None = None,
    run_dir: str | os.PathLike | None = None,
) -> None:
    """Writes `NAME.keras` and `saved_model/` as a whole: the folder appears under its name when all is written.

    Weights are float32 whatever the precision of training. NAME is "encoder" or "classifier"; a masked autoencoder is
    written as its encoder with `mae.keras` beside it.

    Args:
        model: a `VisionTransformer`, a `Classifier` or a `MaskedAutoencoder`.
        folder: an older export there is replaced; no other folder is.
        card: where the weights came from, for `card.json` and README.md beside them (see `model_card`), which get what
            is known of model and run, too; None for none.
        image_dtype: of the images that it was trained on: what the SavedModel takes, whose signature has one type. The
            Keras models take either.
        classes: names of a classifier's classes, for `classes.json` (see `class_names`); None for none.
        run_dir: run folder that it comes from: its recipe.json goes into the SavedModel; None for none.

    Raises:
        ValueError: another type, names for another number of classes, or the folder holds something else.
    """
    options = SignatureOptions(image_dtype, classes=classes)
    folder = pathlib.Path(folder)
    _check_replaceable(folder)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model = copy_with_dtype(model, "float32")
    model.save(partial / f"{model.name}.keras")
    if isinstance(model, MaskedAutoencoder):
        model = model.encoder
        model.save(partial / f"{model.name}.keras")
    write_saved_model(model, partial / "saved_model", options)
    run = None if run_dir is None else read_description(pathlib.Path(run_dir))
    if run is not None:
        write_asset(partial / "saved_model", RECIPE, json.dumps(run, indent=2) + "\n")
    if card is not None:
        facts = model_facts(model, options)
        if run is not None:
            facts |= run_facts(run) | measured_in_training(pathlib.Path(run_dir), best=folder.name == BEST)
        write_card(partial, {**card, **facts})
    if classes is not None:
        write_class_names(partial, classes)
    _replace_folder(folder, partial)


def _check_replaceable(folder: pathlib.Path) -> None:
    # Not to remove a folder of the user's that was named by mistake.
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or any(folder.glob("*.keras")))):
        raise SavedModelError(f"{folder} exists and is no export of a model; name another folder, or remove it.")


def copy_with_dtype(model, dtype):
    """The same model with the same weights, of another dtype policy."""
    copy = type(model).from_config(_with_dtype(model.get_config(), dtype))
    copy.build()
    copy_weights(model, copy)
    return copy


def write_saved_model(model, folder: pathlib.Path, options: SignatureOptions = DEFAULT) -> None:
    """Writes a SavedModel with the signatures that `signatures.make_signatures` gives the model.

    Args:
        model: in float32, as `load_model` is to give it, whatever the precision of the SavedModel.
        folder: does not exist yet.
        options: of its signatures.
    """
    served = model if options.precision == "float32" else copy_with_dtype(model, options.precision)
    save_signatures(served, folder, options)
    structure = {
        "model": keras.saving.serialize_keras_object(model),
        "variables": [_relative_path(model, v) for v in model.variables],
        **variable_groups(model),
    }
    path = folder / STRUCTURE
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(structure, indent=1) + "\n")


def variable_groups(model) -> dict:
    """How fine-tuning treats each of `model.variables`, for those who have a SavedModel but not its layers.

    Returns:
        `layers`: as `layer_numbers` counts them. `decayed`: whether AdamW's weight decay acts on it (not on
        biases, norms, class token and positions). `head_layer`: depth + 1, the number of a new head.
    """
    encoder = model if isinstance(model, VisionTransformer) else model.encoder
    return {
        "layers": layer_numbers(model),
        "decayed": [len(v.shape) > 1 and not v.path.endswith(NOT_DECAYED) for v in model.variables],
        "head_layer": encoder.depth + 1,
    }


def load_model(path: str | os.PathLike):
    """A `VisionTransformer`, `MaskedAutoencoder` or `Classifier` from `.keras` or from our SavedModel folder.

    Args:
        path: a `.keras` file, a `saved_model` folder, or an `export` folder that holds them; of an export with
            `mae.keras` the encoder, which is what its SavedModel holds.

    Raises:
        SavedModelError: there is no such model, or it is not one of ours.
    """
    path = pathlib.Path(path)
    if path.is_dir() and not (path / "saved_model.pb").exists():
        found = sorted([*path.glob("*.keras"), *path.glob("export/*.keras")])
        found = [p for p in found if p.name != "mae.keras"] or found
        if len(found) != 1:
            raise SavedModelError(
                f"Expected a .keras file, a SavedModel folder, or a run's export folder. Received: {path}, which "
                f"holds {len(found)} .keras files."
            )
        path = found[0]
    if not path.exists():
        raise SavedModelError(f"There is no model at {path}.")
    model = _load_saved_model(path) if path.is_dir() else _load_keras(path)
    if not isinstance(model, VisionTransformer | MaskedAutoencoder | Classifier):
        raise SavedModelError(f"{path} holds a {type(model).__name__}, not a model of keras_mae.")
    return model


def load_classifier(path: str | os.PathLike, dtype: str) -> Classifier:
    """The classifier of a saved model.

    Args:
        path: as `load_model` takes it.
        dtype: name of the Keras policy to compute in.

    Raises:
        SavedModelError: there is none.
    """
    model = load_model(path)
    if not isinstance(model, Classifier):
        raise SavedModelError(f"{path} holds no classifier but an encoder; fine-tune it first.")
    return copy_with_dtype(model, dtype)


def load_encoder(path: str | os.PathLike, positions: str = "resize", **overrides) -> VisionTransformer:
    """The encoder of a saved model, with its weights.

    Args:
        path: as `load_model` takes it.
        positions: what becomes of the position table under another `image_size`: "resize" or "recompute" (see
            `position_table_of_grid`).
        **overrides: arguments of `VisionTransformer` to change (`image_size`, `drop_path_rate`, `dtype`,
            `final_norm=False` to drop the final norm).

    Raises:
        SavedModelError: there is no such model, or its weights do not fit the changed arguments.
    """
    model = load_model(path)
    encoder = model if isinstance(model, VisionTransformer) else model.encoder
    dtype = overrides.pop("dtype", "float32")
    copy = VisionTransformer.from_config(_with_dtype({**encoder.get_config(), **overrides}, dtype))
    copy.build()
    arrays = {name: np.asarray(v) for name, v in named_weights(encoder).items()}
    table = "position_embedding/table"
    arrays[table] = position_table_of_grid(arrays[table], encoder.grid_size, copy.grid_size, positions)
    assign_weights(arrays, copy, ignore=() if copy.final_norm else ("norm/gamma", "norm/beta"))
    return copy


def named_weights(model) -> dict:
    """Weights by path relative to the model: "block_0/norm1/gamma"."""
    return {_relative_path(model, v): v for v in model.weights}


def _relative_path(model, variable) -> str:
    """A path does without the model's own name if its inner model was built before it was put in."""
    return variable.path.split(f"{model.name}/", 1)[-1]


def copy_weights(source, target) -> None:
    """Copies all weights from one model to another of the same structure.

    Raises:
        SavedModelError: a weight is missing on either side, or has another shape.
    """
    assign_weights({name: np.asarray(v) for name, v in named_weights(source).items()}, target)


def assign_weights(arrays: Mapping[str, np.ndarray], target, ignore: Sequence[str] = ()) -> None:
    """Gives a model its weights by their relative paths (see `named_weights`).

    Args:
        arrays: by relative path.
        target: model to write.
        ignore: names of `arrays` that the target may do without.

    Raises:
        SavedModelError: a weight is missing on either side, or has another shape; nothing is assigned then.
    """
    wanted = named_weights(target)
    given = {name: array for name, array in arrays.items() if name in wanted or name not in ignore}
    if set(given) != set(wanted):
        raise SavedModelError(f"Weights on one side only: {sorted(set(given) ^ set(wanted))[:8]}")
    for name, variable in wanted.items():
        if tuple(variable.shape) != given[name].shape:
            raise SavedModelError(
                f"{name} has another shape. Expected: {tuple(variable.shape)}. Received: {given[name].shape}"
            )
    for name, variable in wanted.items():
        variable.assign(given[name])


def _load_keras(path: pathlib.Path):
    try:
        return keras.saving.load_model(path, compile=False)
    except LOAD_ERRORS as error:
        raise SavedModelError(f"{path} cannot be loaded as a Keras model: {error}") from error


def _load_saved_model(folder: pathlib.Path):
    if not (folder / STRUCTURE).exists():
        raise SavedModelError(
            f"{folder} is a SavedModel without {STRUCTURE}: it was not written by keras_mae, or it was copied in part."
        )
    try:
        structure = json.loads((folder / STRUCTURE).read_text())
        model = keras.saving.deserialize_keras_object(structure["model"])
        model.build()
        loaded = tf.saved_model.load(str(folder)).variables
        arrays = dict(zip(structure["variables"], loaded, strict=True))
        for name, variable in named_weights(model).items():
            variable.assign(tf.cast(arrays[name], variable.dtype))
    except LOAD_ERRORS as error:
        raise SavedModelError(f"{folder} is damaged: {error}") from error
    return model


def _replace_folder(folder: pathlib.Path, new: pathlib.Path) -> None:
    """Puts a whole folder in place of an old one, which is moved away first: a kill leaves no half of it there."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def _with_dtype(config: dict, dtype) -> dict:
    """The configuration with another dtype policy, in the model and in an encoder inside it."""
    config = {**config, "dtype": dtype}
    if "encoder" in config:
        inner = config["encoder"]
        config["encoder"] = {**inner, "config": _with_dtype(inner["config"], dtype)}
    return config
