"""Converts the weights of DALL-E's discrete VAE (arXiv 2102.12092) into a tokenizer for the dVAE token target.

  python -m tools.convert_tokenizer --encoder=encoder.pkl --output=converted/dall_e --source_license="modified MIT"
  python -m tools.convert_tokenizer --encoder=encoder.pkl --decoder=decoder.pkl --output=converted/dall_e

Takes the published files (pickled PyTorch modules, of which no code is run), their state dicts (.pt, .pth), or the
same names in .safetensors, which needs no torch. The target needs the encoder only; with the decoder too the result
can draw its codes. Sizes are inferred from the shapes. The output folder gets `tokenizer.keras`, and a card with the
licence of the source.
"""

import hashlib
import os
import pathlib
import pickle
import re
import shutil

import numpy as np
from absl import flags

import keras_mae
from keras_mae import commandline
from keras_mae.training.model_card import UNKNOWN, read_card, write_card
from tools.weights_for_others import say

FLAGS = flags.FLAGS

# Our layers' names -> theirs, first match first.
NAMES = (
    (r"group_(\d)_block_(\d+)/shortcut", r"blocks.group_\1.block_\2.id_path"),
    (r"group_(\d)_block_(\d+)/(conv_\d)", r"blocks.group_\1.block_\2.res_path.\3"),
    (r"input", "blocks.input"),
    (r"output", "blocks.output.conv"),
)
SUFFIXES = {"kernel": "w", "bias": "b"}
PICKLED_CLASSES = (
    *("dall_e.encoder.Encoder", "dall_e.encoder.EncoderBlock"),
    *("dall_e.decoder.Decoder", "dall_e.decoder.DecoderBlock"),
    "dall_e.utils.Conv2d",
)
TORCH_MODULES = ("Sequential", "ReLU", "Identity", "MaxPool2d", "Upsample")


def published_name(name):
    """Name of a weight in DALL-E's state dict: "group_1_block_2/conv_3/kernel" -> "blocks.group_1.block_2...."."""
    layer, kind = name.rsplit("/", 1)
    for pattern, theirs in NAMES:
        match = re.fullmatch(pattern, layer)
        if match:
            return f"{match.expand(theirs)}.{SUFFIXES[kind]}"
    raise KeyError(name)


def read_state_dict(path):
    """Arrays by name, of a published file, a state dict or a .safetensors file.

    Raises:
        ValueError: there is no such file, it holds something else, or the package that reads it is missing.
    """
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            return load_file(path)
        return _read_torch(path)
    except ImportError as error:
        raise ValueError(f"Reading {path.name} needs the package {error.name}: pip install {error.name}") from None


def _read_torch(path):
    """Reads with `weights_only`: empty modules stand in for the published file's classes, so no code of it is run."""
    import torch

    stand_ins = [(type(name.rsplit(".", 1)[1], (torch.nn.Module,), {}), name) for name in PICKLED_CLASSES]
    modules = [getattr(torch.nn, name) for name in TORCH_MODULES]
    try:
        with torch.serialization.safe_globals([*stand_ins, *modules]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError, KeyError) as error:
        sentence = str(error).strip().splitlines()[0]
        raise ValueError(f"{path} is no file of DALL-E's discrete VAE that can be read: {sentence}") from error
    state = content.state_dict() if isinstance(content, torch.nn.Module) else content
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict (name -> tensor) and no module.")
    return {name: value.float().numpy() for name, value in state.items()}


def encoder_sizes(state):
    """Arguments of `TokenEncoder`, from the shapes of DALL-E's encoder."""
    hidden_dim, channels, _, _ = _shape(state, "blocks.input.w", 4)
    return {
        "channels": channels,
        "num_codes": _shape(state, "blocks.output.conv.w", 4)[0],
        "hidden_dim": hidden_dim,
        "blocks_per_group": _blocks_per_group(state),
    }


def decoder_sizes(state):
    """Arguments of `DiscreteVAE`, from the shapes of DALL-E's decoder."""
    code_dim, num_codes, _, _ = _shape(state, "blocks.input.w", 4)
    pixel_values, hidden_dim, _, _ = _shape(state, "blocks.output.conv.w", 4)
    return {
        "channels": pixel_values // 2,
        "num_codes": num_codes,
        "hidden_dim": hidden_dim,
        "blocks_per_group": _blocks_per_group(state),
        "code_dim": code_dim,
    }


def _shape(state, name, rank):
    if name not in state:
        raise ValueError(f"Not the layout of DALL-E's discrete VAE: there is no {name} among {sorted(state)[:4]}...")
    if state[name].ndim != rank:
        raise ValueError(f"{name} must have {rank} dimensions. Received: shape {state[name].shape}")
    return state[name].shape


def _blocks_per_group(state):
    return len({match[0] for name in state if (match := re.match(r"blocks\.group_1\.block_\d+\.", name))})


def build(encoder_state, decoder_state=None):
    """The tokenizer with the published weights.

    Args:
        encoder_state: arrays of DALL-E's encoder by name.
        decoder_state: arrays of its decoder; optional.

    Returns:
        A `TokenEncoder`, or with the decoder a `DiscreteVAE`.

    Raises:
        ValueError: another layout: a weight is missing, left over, or of another shape; names it.
    """
    from keras_mae.models.discrete_vae import DiscreteVAE
    from keras_mae.models.token_networks import TokenEncoder

    sizes = encoder_sizes(encoder_state)
    if decoder_state is None:
        encoder = TokenEncoder(**sizes)
        encoder.build()
        assign(encoder, encoder_state, "encoder")
        return encoder
    all_sizes = decoder_sizes(decoder_state)
    differing = [name for name, size in sizes.items() if all_sizes[name] != size]
    if differing:
        raise ValueError(
            "Encoder and decoder are not of one model: "
            + "; ".join(f"{name} is {sizes[name]} there, {all_sizes[name]} here" for name in differing)
        )
    tokenizer = DiscreteVAE(**all_sizes)
    tokenizer.build()
    assign(tokenizer.encoder, encoder_state, "encoder")
    assign(tokenizer.decoder, decoder_state, "decoder")
    return tokenizer


def assign(layer, state, half):
    """Assigns published arrays to all weights of encoder or decoder; kernels turn from OIHW to HWIO."""
    weights = {published_name(weight.path.split(f"{layer.name}/", 1)[-1]): weight for weight in layer.weights}
    if set(weights) != set(state):
        missing, left = sorted(set(weights) - set(state)), sorted(set(state) - set(weights))
        raise ValueError(f"The {half} does not fit. Missing: {missing[:8]}. Left over: {left[:8]}")
    arrays = {name: array.transpose(2, 3, 1, 0) if array.ndim == 4 else array for name, array in state.items()}
    for name, weight in weights.items():
        if tuple(weight.shape) != arrays[name].shape:
            raise ValueError(
                f"{name} of the {half} has another shape. Expected (height, width, in, out): {tuple(weight.shape)}. "
                f"Received: {arrays[name].shape}"
            )
    for name, weight in weights.items():
        weight.assign(np.asarray(arrays[name], "float32"))


def make_card(paths, source_license):
    """The card of what is made from these files; that which lies beside the first, if one does, is its beginning."""
    known = read_card(paths[0]) or {}
    card = {
        "source": ", ".join(path.name for path in paths),
        "source_license": source_license or known.get("source_license", UNKNOWN),
        "source_names": "dall_e",
        "source_sha256": ", ".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths),
        "made_by": f"tools.convert_tokenizer of keras_mae {keras_mae.__version__}",
    }
    return {**card, "began_with": known} if known else card


def write(tokenizer, folder, card):
    """Writes FOLDER/tokenizer.keras and its card; the folder appears under its name when all is written."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tokenizer.save(partial / "tokenizer.keras")
    write_card(partial, card)
    os.replace(partial, folder)


def main(argv):
    with commandline.user_mistakes():
        output = pathlib.Path(FLAGS.output)
        if output.suffix == ".keras":
            raise ValueError(f"--output names a new folder, which gets tokenizer.keras. Received: {output}")
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise ValueError(f"{output} exists already; give another --output, or remove it.")
        paths = [pathlib.Path(path) for path in (FLAGS.encoder, FLAGS.decoder) if path is not None]
        states = [read_state_dict(path) for path in paths]
        card = make_card(paths, FLAGS.source_license)
        tokenizer = build(*states)
        write(tokenizer, output, card)
    if card["source_license"] == UNKNOWN:
        say('the licence of the source is not known; give it with --source_license, such as "modified MIT".')
    print(f"{output}: {type(tokenizer).__name__} of {tokenizer.num_codes} codes, {tokenizer.count_params():,} weights")
    return 0


def define_flags():
    flags.DEFINE_string("encoder", None, "DALL-E's encoder: encoder.pkl, a state dict, or .safetensors.", required=True)
    flags.DEFINE_string("decoder", None, "DALL-E's decoder, in the same forms; unset: the result has none.")
    flags.DEFINE_string("output", None, "New folder for tokenizer.keras and its card.", required=True)
    flags.DEFINE_string("source_license", None, "Licence of the weights, for the card; unset: that of their own card.")


def entry_point():
    commandline.run(main, define_flags)


if __name__ == "__main__":
    entry_point()
