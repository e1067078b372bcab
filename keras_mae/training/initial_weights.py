"""Weights to go on from: a whole masked autoencoder's, ours or converted, put into the model of a new run."""

import hashlib
import math
import os
import pathlib

import numpy as np

from keras_mae.layers.position_resize import position_table_of_grid
from keras_mae.models import MaskedAutoencoder
from keras_mae.training.checkpoints import Checkpoints
from keras_mae.training.foreign_weights import TORCH_SUFFIXES, find_weights, read_hints, read_weights
from keras_mae.training.run_dir import read_description
from keras_mae.training.saved_model import SavedModelError, assign_weights, load_model, named_weights
from keras_mae.training.weight_names import check_names, count_blocks, find_naming, name_map, to_ours
from keras_mae.training.weight_sizes import infer_sizes

TABLES = ("encoder/position_embedding/table", "decoder/position_embedding/table")
HEADS = ("num_heads", "decoder_num_heads")


def load_initial_weights(model: MaskedAutoencoder, path: str | os.PathLike, positions: str = "resize") -> None:
    """Gives a masked autoencoder the weights of another: encoder and decoder.

    Args:
        model: to be filled; built if it is not.
        path: `mae.keras` or a folder with it, a run folder of pre-training (its newest checkpoint), or a
            `.safetensors` file with names of ours, of the official code or of Hugging Face.
        positions: what becomes of the position tables if the model's grid of patches is another: "resize" or
            "recompute" (see `position_table_of_grid`).

    Raises:
        ValueError: there is no masked autoencoder at `path`, or it does not fit; names what differs.
    """
    model.build()
    path = pathlib.Path(path)
    arrays, grid_size, heads = _read(path, model)
    own_heads = (model.encoder.num_heads, model.decoder_num_heads)
    if heads != own_heads:
        differences = [
            f"{n} is {a}, the model has {b}" for n, a, b in zip(HEADS, heads, own_heads, strict=True) if a != b
        ]
        raise SavedModelError(f"The weights at {path} do not fit: {'; '.join(differences)}.")
    for name in set(TABLES) & set(arrays):
        arrays[name] = position_table_of_grid(arrays[name], grid_size, model.encoder.grid_size, positions)
    try:
        assign_weights({**arrays, **_split_weights(model)[1]}, model)
    except SavedModelError as error:
        raise SavedModelError(f"The weights at {path} do not fit the model. {error}") from error


def _split_weights(model):
    """Arrays by our names: of encoder and decoder, and of the target, which each model keeps as it is."""
    target = {id(weight) for weight in model.target.weights}
    parts: tuple[dict, dict] = ({}, {})
    for name, weight in named_weights(model).items():
        parts[id(weight) in target][name] = np.asarray(weight)
    return parts


def fingerprint(model) -> str:
    """sha256 over all weights: tells a run folder what the run began with."""
    digest = hashlib.sha256()
    for weight in model.weights:
        digest.update(np.asarray(weight).tobytes())
    return digest.hexdigest()


def _read(path, model):
    """Arrays by our names, the grid of their position tables, and the numbers of heads."""
    weights = find_weights(path)
    if weights is not None and weights.suffix in TORCH_SUFFIXES:
        raise SavedModelError(
            f"{weights} is PyTorch's: convert it with tools.convert_weights, and give what that writes."
        )
    if weights is not None:
        return _read_safetensors(weights, model)
    return _read_run(path, model) if (path / "checkpoints").is_dir() else _read_keras(path)


def _read_run(path, model):
    """The newest checkpoint of a run folder."""
    recipe = (read_description(path) or {}).get("recipe", {})
    newest = Checkpoints(path / "checkpoints").newest()
    if newest is None or "decoder_num_heads" not in recipe:
        raise SavedModelError(f"{path} is no run folder of keras_mae.pretrain with a checkpoint.")
    prefix = f"{model.name}/"
    arrays = {name.removeprefix(prefix): array for name, array in newest[1].items()}
    arrays = {name: array for name, array in arrays.items() if name.startswith(("encoder/", "decoder/", "mask_token"))}
    sides = np.broadcast_to(recipe["image_size"], 2)
    return arrays, tuple(int(side) // recipe["patch_size"] for side in sides), tuple(recipe[name] for name in HEADS)


def _read_safetensors(path, model):
    """By our names, or by theirs."""
    arrays, hints = read_weights(path), read_hints(path)
    own = dict(zip(HEADS, (model.encoder.num_heads, model.decoder_num_heads), strict=True))
    if TABLES[0] in arrays:
        patches, grid_size = len(arrays[TABLES[0]]) - 1, model.encoder.grid_size
        square = (math.isqrt(patches),) * 2
        return arrays, grid_size if math.prod(grid_size) == patches else square, tuple(own.values())
    naming, kind = find_naming(arrays)
    names = name_map(naming, kind, *count_blocks(naming, arrays))
    check_names(arrays, names)
    if kind != "mae":
        raise SavedModelError(f"{path} holds no masked autoencoder: there is no decoder in it.")
    sizes = infer_sizes(arrays, naming, kind, {**own, **hints})
    grid_size = tuple(side // sizes["patch_size"] for side in sizes["image_size"])
    return to_ours(arrays, names), grid_size, tuple(sizes[name] for name in HEADS)


def _read_keras(path):
    """`mae.keras`, or what else `load_model` takes."""
    inside = [folder / "mae.keras" for folder in (path, path / "export") if (folder / "mae.keras").is_file()]
    source = load_model(inside[0] if inside else path)
    if not isinstance(source, MaskedAutoencoder):
        raise SavedModelError(f"{path} holds no masked autoencoder but a {type(source).__name__}.")
    return _split_weights(source)[0], source.encoder.grid_size, (source.encoder.num_heads, source.decoder_num_heads)
