"""Weight files of others as NumPy arrays: safetensors, and PyTorch's `.pth` where PyTorch is installed.

Imports neither Keras nor TensorFlow: PyTorch on Linux must be loaded before TensorFlow.
"""

import argparse
import json
import os
import pathlib
import pickle
import zipfile
from collections.abc import Mapping

import numpy as np

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
FILE_NAMES = ("model.safetensors", "pytorch_model.bin")
METADATA = "keras_mae"  # key in the header of a safetensors file that we wrote
EXTRA = 'pip install "keras-mae[convert]"'
# Hugging Face's config.json -> ours
CONFIG_NAMES = {
    "num_attention_heads": "num_heads",
    "decoder_num_attention_heads": "decoder_num_heads",
    "image_size": "image_size",
    "mask_ratio": "mask_ratio",
    "norm_pix_loss": "norm_pix_loss",
}


class ForeignWeightsError(ValueError):
    """A file that cannot be read as weights."""


def find_weights(path: str | os.PathLike) -> pathlib.Path | None:
    """The weight file of others at `path`, or in that folder; None where it is nothing of theirs.

    Raises:
        ForeignWeightsError: the file is named, but does not exist.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        return next((path / name for name in FILE_NAMES if (path / name).is_file()), None)
    if path.suffix not in (".safetensors", *TORCH_SUFFIXES):
        return None
    if not path.is_file():
        raise ForeignWeightsError(f"There is no file {path}.")
    return path


def read_weights(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays of a file by name, as float32.

    Raises:
        ForeignWeightsError: the package that reads it is missing, it is damaged, or holds other things than weights.
    """
    arrays = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    return {name: np.asarray(array, "float32") for name, array in arrays.items()}


def read_hints(path: pathlib.Path) -> dict:
    """What is said beside the weights and shapes do not tell: numbers of heads, mask_ratio, pixel_mean, ...

    Comes from the header of a safetensors file that we wrote, or from Hugging Face's config.json beside the file.

    Raises:
        ForeignWeightsError: the header or config.json is damaged.
    """
    hints = _config_hints(path.with_name("config.json"))
    if path.suffix == ".safetensors":
        hints |= _header_hints(path)
    return {name: tuple(value) if isinstance(value, list) else value for name, value in hints.items()}


def write_safetensors(path: pathlib.Path, arrays: Mapping[str, np.ndarray], hints: Mapping) -> None:
    """Writes a safetensors file as PyTorch's world expects it, `hints` in its header.

    Raises:
        ForeignWeightsError: the package that writes it is missing.
    """
    check_safetensors()
    from safetensors.numpy import save_file

    arrays = {name: np.ascontiguousarray(array, "float32") for name, array in arrays.items()}
    # "pt" is what Hugging Face's loader asks for.
    save_file(arrays, path, metadata={"format": "pt", METADATA: json.dumps(dict(hints))})


def check_safetensors():
    """The package safetensors, or ForeignWeightsError where it is missing."""
    try:
        import safetensors
    except ImportError:
        raise ForeignWeightsError(f"safetensors files need the extra `convert`: {EXTRA}") from None
    return safetensors


def _config_hints(config):
    try:
        content = json.loads(config.read_text()) if config.is_file() else {}
        return {ours: content[theirs] for theirs, ours in CONFIG_NAMES.items() if theirs in content}
    except (ValueError, TypeError, LookupError) as error:
        raise ForeignWeightsError(f"{config} is damaged: {error}") from error


def _header_hints(path):
    safetensors = check_safetensors()
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return json.loads((file.metadata() or {}).get(METADATA, "{}"))
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ForeignWeightsError(f"{path} cannot be read as safetensors: {error}") from error


def _read_safetensors(path):
    import ml_dtypes  # noqa: F401  teaches NumPy bfloat16

    safetensors = check_safetensors()
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (safetensors.SafetensorError, OSError, TypeError) as error:
        raise ForeignWeightsError(f"{path} cannot be read as safetensors: {error}") from error


def _read_torch(path):
    """The tensors of a checkpoint, under "model" or bare; nothing in it is executed."""
    try:
        import torch
    except ImportError:
        raise ForeignWeightsError(f"{path.name} needs PyTorch to be read: pip install torch") from None
    try:
        # The official code stores its parsed flags beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ForeignWeightsError(
            f"{path} holds Python objects other than weights, or is damaged, and is not read: they could run code. "
            f'Where you trust it, save its "model" alone with PyTorch. ({str(error).splitlines()[0]})'
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, zipfile.BadZipFile) as error:
        raise ForeignWeightsError(f"{path} cannot be read by PyTorch: {error}") from error
    tensors = content.get("model", content) if isinstance(content, dict) else content
    others = [] if not isinstance(tensors, dict) else [k for k, v in tensors.items() if not isinstance(v, torch.Tensor)]
    if not isinstance(tensors, dict) or others:
        raise ForeignWeightsError(
            f'{path} must hold tensors by name, under "model" or bare. Received: {type(tensors).__name__}'
            + (f" with others: {', '.join(map(repr, others[:8]))}" if others else "")
        )
    return {name: tensor.float().numpy() for name, tensor in tensors.items()}
