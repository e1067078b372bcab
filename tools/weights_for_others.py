"""Writes a model of this project as safetensors for the official code, timm or Hugging Face (see convert_weights)."""

import json
import os
import shutil
import sys

import numpy as np

from keras_mae.training.foreign_weights import check_safetensors, write_safetensors
from keras_mae.training.model_card import write_card
from keras_mae.training.weight_names import HUGGING_FACE, OFFICIAL, name_map, to_theirs, without_vit

# What shapes do not tell of a model.
HINTS = ("image_size", "num_heads", "decoder_num_heads", "mask_ratio", "norm_pix_loss", "pixel_mean", "pixel_std")


def write_theirs(model, target, folder, card):
    """Writes `model.safetensors`, the card, and for Hugging Face `config.json`; the folder is whole or not there.

    Raises:
        ValueError: the model has no place in theirs.
    """
    from keras_mae.training.saved_model import named_weights

    kind = kind_of(model)
    encoder = model if kind == "encoder" else model.encoder
    if target == "huggingface":
        check_hugging_face(kind, encoder)
    naming = OFFICIAL if target != "huggingface" else HUGGING_FACE if kind == "mae" else without_vit(HUGGING_FACE)
    prefix = "encoder/" if kind == "encoder" else ""
    arrays = {prefix + name: np.asarray(v) for name, v in named_weights(model).items()}
    hints = hints_of(model, encoder)
    if target == "timm" and kind == "mae":
        say("timm has no masked autoencoder: only the encoder is written.")
        kind, arrays = "encoder", {name: a for name, a in arrays.items() if name.startswith("encoder/")}
    names = name_map(naming, kind, encoder.depth, getattr(model, "decoder_depth", 0))
    theirs = to_theirs(arrays, names, encoder.patch_size)
    check_safetensors()
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_safetensors(partial / "model.safetensors", theirs, hints)
    if target == "huggingface":
        config = hugging_face_config(model, encoder, kind)
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_card(partial, card)
    if folder.exists():
        folder.rmdir()  # empty: checked at the start
    os.replace(partial, folder)


def kind_of(model):
    """One of weight_names.KINDS."""
    from keras_mae.models import Classifier, VisionTransformer

    if isinstance(model, VisionTransformer):
        return "encoder"
    return "classifier" if isinstance(model, Classifier) else "mae"


def hints_of(model, encoder):
    """What shapes do not tell of a model, for the header of a safetensors file."""
    return {name: getattr(owner, name) for owner in (model, encoder) for name in HINTS if hasattr(owner, name)}


def check_hugging_face(kind, encoder):
    """Raises ValueError for what Hugging Face's ViTMAE cannot be."""
    if kind == "classifier":
        raise ValueError(
            "Hugging Face's ViT classifies by the class token and has no place for the mean of the patch tokens and "
            "its norm. Give --to=timm (global_pool='avg') or --to=official."
        )
    if encoder.image_size[0] != encoder.image_size[1]:
        raise ValueError(f"Hugging Face's ViTMAE takes square images. Received: {encoder.image_size}")


def hugging_face_config(model, encoder, kind):
    """The values of ViTMAEConfig. Their layer_norm_eps is ours, not their default of 1e-12."""
    config = {
        "architectures": ["ViTMAEForPreTraining" if kind == "mae" else "ViTMAEModel"],
        "model_type": "vit_mae",
        "hidden_size": encoder.embed_dim,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.num_heads,
        "intermediate_size": int(encoder.embed_dim * encoder.mlp_ratio),
        "hidden_act": "gelu",
        "layer_norm_eps": encoder.norm.epsilon,
        "image_size": encoder.image_size[0],
        "patch_size": encoder.patch_size,
        "num_channels": encoder.channels,
        "qkv_bias": True,
    }
    if kind == "mae":
        config |= {
            "decoder_hidden_size": model.decoder_embed_dim,
            "decoder_num_hidden_layers": model.decoder_depth,
            "decoder_num_attention_heads": model.decoder_num_heads,
            "decoder_intermediate_size": 4 * model.decoder_embed_dim,
            "mask_ratio": float(model.mask_ratio),
            "norm_pix_loss": model.norm_pix_loss,
        }
    return config


def say(text):
    """A note, on stderr."""
    print(f"NOTE: {text}", file=sys.stderr)
