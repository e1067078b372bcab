"""How others name and lay out the weights of a masked autoencoder: maps as data, applied in both directions.

Our names, on the left, are those of `MaskedAutoencoder`, `Classifier`, and `VisionTransformer` below `encoder/`. The
official code's names are timm's as well. Hugging Face's drifted: what is published, what transformers 5 calls its
parameters, and what transformers 5 writes. All of theirs are PyTorch's: matrices (out, in), the patch embedding a
convolution (out, in, row, column).
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping

import numpy as np

KINDS = {"encoder": ("encoder/",), "mae": ("encoder/", "decoder/"), "classifier": ("encoder/", "norm/", "head/")}


@dataclasses.dataclass(frozen=True)
class Naming:
    """What one project calls the weights.

    Attributes:
        name: for messages and cards.
        names: ours -> theirs, outside the blocks.
        block_names: ours -> theirs in a block; several of theirs are one of ours, stacked.
        encoder_block: what stands before the names in block {} of the encoder.
        decoder_block: the same for the decoder.
    """

    name: str
    names: Mapping[str, str]
    block_names: Mapping[str, tuple[str, ...]]
    encoder_block: str
    decoder_block: str


OFFICIAL = Naming(
    name="official",
    names={
        "encoder/class_token": "cls_token",
        "encoder/position_embedding/table": "pos_embed",
        "encoder/patch_embedding/kernel": "patch_embed.proj.weight",
        "encoder/patch_embedding/bias": "patch_embed.proj.bias",
        "encoder/norm/gamma": "norm.weight",
        "encoder/norm/beta": "norm.bias",
        "decoder/mask_token": "mask_token",
        "decoder/position_embedding/table": "decoder_pos_embed",
        "decoder/embedding/kernel": "decoder_embed.weight",
        "decoder/embedding/bias": "decoder_embed.bias",
        "decoder/norm/gamma": "decoder_norm.weight",
        "decoder/norm/beta": "decoder_norm.bias",
        "decoder/prediction/kernel": "decoder_pred.weight",
        "decoder/prediction/bias": "decoder_pred.bias",
        "norm/gamma": "fc_norm.weight",
        "norm/beta": "fc_norm.bias",
        "head/kernel": "head.weight",
        "head/bias": "head.bias",
    },
    block_names={
        "norm1/gamma": ("norm1.weight",),
        "norm1/beta": ("norm1.bias",),
        "attention/qkv/kernel": ("attn.qkv.weight",),
        "attention/qkv/bias": ("attn.qkv.bias",),
        "attention/projection/kernel": ("attn.proj.weight",),
        "attention/projection/bias": ("attn.proj.bias",),
        "norm2/gamma": ("norm2.weight",),
        "norm2/beta": ("norm2.bias",),
        "mlp_hidden/kernel": ("mlp.fc1.weight",),
        "mlp_hidden/bias": ("mlp.fc1.bias",),
        "mlp_output/kernel": ("mlp.fc2.weight",),
        "mlp_output/bias": ("mlp.fc2.bias",),
    },
    encoder_block="blocks.{}.",
    decoder_block="decoder_blocks.{}.",
)

# As the published checkpoints have it (transformers 4); every version of transformers reads these.
HUGGING_FACE = Naming(
    name="Hugging Face",
    names={
        "encoder/class_token": "vit.embeddings.cls_token",
        "encoder/position_embedding/table": "vit.embeddings.position_embeddings",
        "encoder/patch_embedding/kernel": "vit.embeddings.patch_embeddings.projection.weight",
        "encoder/patch_embedding/bias": "vit.embeddings.patch_embeddings.projection.bias",
        "encoder/norm/gamma": "vit.layernorm.weight",
        "encoder/norm/beta": "vit.layernorm.bias",
        "decoder/mask_token": "decoder.mask_token",
        "decoder/position_embedding/table": "decoder.decoder_pos_embed",
        "decoder/embedding/kernel": "decoder.decoder_embed.weight",
        "decoder/embedding/bias": "decoder.decoder_embed.bias",
        "decoder/norm/gamma": "decoder.decoder_norm.weight",
        "decoder/norm/beta": "decoder.decoder_norm.bias",
        "decoder/prediction/kernel": "decoder.decoder_pred.weight",
        "decoder/prediction/bias": "decoder.decoder_pred.bias",
    },
    block_names={
        "norm1/gamma": ("layernorm_before.weight",),
        "norm1/beta": ("layernorm_before.bias",),
        "attention/qkv/kernel": tuple(f"attention.attention.{part}.weight" for part in ("query", "key", "value")),
        "attention/qkv/bias": tuple(f"attention.attention.{part}.bias" for part in ("query", "key", "value")),
        "attention/projection/kernel": ("attention.output.dense.weight",),
        "attention/projection/bias": ("attention.output.dense.bias",),
        "norm2/gamma": ("layernorm_after.weight",),
        "norm2/beta": ("layernorm_after.bias",),
        "mlp_hidden/kernel": ("intermediate.dense.weight",),
        "mlp_hidden/bias": ("intermediate.dense.bias",),
        "mlp_output/kernel": ("output.dense.weight",),
        "mlp_output/bias": ("output.dense.bias",),
    },
    encoder_block="vit.encoder.layer.{}.",
    decoder_block="decoder.decoder_layers.{}.",
)

HUGGING_FACE_5 = dataclasses.replace(
    HUGGING_FACE,
    name="Hugging Face (parameters of transformers 5)",
    block_names={
        **HUGGING_FACE.block_names,
        "attention/qkv/kernel": tuple(f"attention.{part}_proj.weight" for part in "qkv"),
        "attention/qkv/bias": tuple(f"attention.{part}_proj.bias" for part in "qkv"),
        "attention/projection/kernel": ("attention.o_proj.weight",),
        "attention/projection/bias": ("attention.o_proj.bias",),
        "mlp_hidden/kernel": ("mlp.fc1.weight",),
        "mlp_hidden/bias": ("mlp.fc1.bias",),
        "mlp_output/kernel": ("mlp.fc2.weight",),
        "mlp_output/bias": ("mlp.fc2.bias",),
    },
    encoder_block="vit.layers.{}.",
)

# transformers 5.23 turns its own `decoder_layers` into this when it saves.
HUGGING_FACE_5_SAVED = dataclasses.replace(
    HUGGING_FACE, name="Hugging Face (saved by transformers 5)", decoder_block="decoder.decoder_encoder.layer.{}."
)


def without_vit(naming: Naming) -> Naming:
    """Hugging Face's names where the encoder is the whole model (ViTMAEModel, ViTModel)."""
    return dataclasses.replace(
        naming,
        name=f"{naming.name}, encoder alone",
        names={
            ours: theirs.removeprefix("vit.")
            for ours, theirs in naming.names.items()
            if ours.startswith(KINDS["encoder"])
        },
        encoder_block=naming.encoder_block.removeprefix("vit."),
    )


NAMINGS = (
    OFFICIAL,
    HUGGING_FACE,
    HUGGING_FACE_5,
    HUGGING_FACE_5_SAVED,
    without_vit(HUGGING_FACE),
    without_vit(HUGGING_FACE_5),
)


class WeightNamesError(ValueError):
    """Weights that are missing, left over, or of another shape than the model's."""


def find_naming(keys: Iterable[str]) -> tuple[Naming, str]:
    """Whose names these are, and the kind of model: the naming that knows most of them.

    Raises:
        WeightNamesError: no naming knows any of them.
    """
    keys = set(keys)
    found = []
    for naming in NAMINGS:
        counts = count_blocks(naming, keys)
        known = {kind: len(keys & their_names(name_map(naming, kind, *counts))) for kind in KINDS}
        kind = max(known, key=known.get)  # the first, and so the smallest, of equals
        found.append((known[kind], naming, kind))
    best = max(found, key=lambda candidate: candidate[0])
    if not best[0]:
        raise WeightNamesError(
            "These are not the weights of a ViT by the names of the official MAE code, timm or Hugging Face: expected "
            f"such as 'cls_token' or 'vit.embeddings.cls_token'. Received: {_listed(keys)}"
        )
    return best[1:]


def count_blocks(naming: Naming, keys: Iterable[str]) -> tuple[int, int]:
    """Blocks of encoder and decoder: one more than the highest number that `keys` name."""
    counts = []
    for block in (naming.encoder_block, naming.decoder_block):
        pattern = re.compile(re.escape(block).replace(r"\{\}", r"(\d+)"))
        counts.append(max((int(match[1]) + 1 for match in map(pattern.match, keys) if match), default=0))
    return counts[0], counts[1]


def name_map(naming: Naming, kind: str, depth: int, decoder_depth: int = 0) -> dict[str, tuple[str, ...]]:
    """Ours -> theirs of all weights of a model.

    Args:
        naming: theirs.
        kind: one of KINDS.
        depth: blocks of the encoder.
        decoder_depth: blocks of the decoder; read for the kind "mae" only.
    """
    pooled = ("encoder/norm/",) if kind == "classifier" else ()  # pools first, then norms
    names = {
        ours: (theirs,)
        for ours, theirs in naming.names.items()
        if ours.startswith(KINDS[kind]) and not ours.startswith(pooled)
    }
    blocks = [("encoder", naming.encoder_block, depth), ("decoder", naming.decoder_block, decoder_depth)]
    for part, block, count in blocks if kind == "mae" else blocks[:1]:
        for i in range(count):
            for ours, theirs in naming.block_names.items():
                names[f"{part}/block_{i}/{ours}"] = tuple(block.format(i) + name for name in theirs)
    return names


def their_names(names: Mapping[str, tuple[str, ...]]) -> set[str]:
    """All of theirs in a name map."""
    return {name for parts in names.values() for name in parts}


def check_names(keys: Iterable[str], names: Mapping[str, tuple[str, ...]]) -> None:
    """Raises WeightNamesError, which names them, if keys of theirs are missing or left over."""
    missing, left_over = their_names(names) - set(keys), set(keys) - their_names(names)
    if missing or left_over:
        parts = [f"missing: {_listed(missing)}"] * bool(missing) + [f"left over: {_listed(left_over)}"] * bool(
            left_over
        )
        raise WeightNamesError(f"The weights are not those of the model that their names tell: {'; '.join(parts)}")


def check_shapes(received: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """Raises WeightNamesError, which names them, if arrays of theirs have other shapes than expected."""
    wrong = [
        f"{name}: expected {expected[name].shape}, received {received[name].shape}"
        for name in sorted(expected)
        if expected[name].shape != received[name].shape
    ]
    if wrong:
        raise WeightNamesError(f"Weights of another shape: {_listed(wrong, quote=False)}")


def to_ours(arrays: Mapping[str, np.ndarray], names: Mapping[str, tuple[str, ...]]) -> dict[str, np.ndarray]:
    """Their arrays in our names and our layout; names and shapes must have been checked."""
    ours = {}
    for name, parts in names.items():
        array = np.concatenate([arrays[part] for part in parts]) if len(parts) > 1 else arrays[parts[0]]
        if name.endswith("position_embedding/table"):
            array = array[0]  # (N+1, D)
        elif name.endswith("patch_embedding/kernel"):
            array = array.transpose(2, 3, 1, 0).reshape(-1, len(array))  # (P*P*C, D)
        elif name.endswith("kernel"):
            array = array.T  # (in, out)
        ours[name] = array
    return ours


def to_theirs(
    arrays: Mapping[str, np.ndarray], names: Mapping[str, tuple[str, ...]], patch_size: int
) -> dict[str, np.ndarray]:
    """Our arrays in their names and layout: the inverse of `to_ours`.

    Raises:
        WeightNamesError: a weight is missing on either side; it is named.
    """
    if set(arrays) != set(names):
        raise WeightNamesError(f"Weights that only one side knows: {_listed(set(arrays) ^ set(names))}")
    theirs = {}
    for name, parts in names.items():
        array = arrays[name]
        if name.endswith("position_embedding/table"):
            array = array[None]  # (1, N+1, D)
        elif name.endswith("patch_embedding/kernel"):
            array = array.reshape(patch_size, patch_size, -1, array.shape[1]).transpose(3, 2, 0, 1)  # (D, C, P, P)
        elif name.endswith("kernel"):
            array = array.T  # (out, in)
        theirs.update(zip(parts, np.split(array, len(parts)), strict=True))
    return theirs


def _listed(items: Iterable[str], quote: bool = True, limit: int = 20) -> str:
    """The first few, sorted, and how many there are."""
    items = sorted(items)
    shown = ", ".join(repr(item) if quote else item for item in items[:limit])
    return shown if len(items) <= limit else f"{shown}, ... ({len(items)} in all)"
