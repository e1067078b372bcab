"""What a masked autoencoder costs, by arithmetic alone: parameters, FLOPs, and values kept for the backward pass.

A multiply-add counts as 2 FLOPs, as in PyTorch's counter. Only matrix products are counted; biases, norms, softmax,
GELU, the loss and the optimizer's update are left out. Removed patches are dropped before the patch embedding here;
counters that see the reference find its embedding of all patches.
"""

import dataclasses

from keras_mae.layers.masking import num_visible

MLP_RATIO = 4
# A weight, its gradient and AdamW's two moments, in float32 whatever the precision; frozen values have the first alone.
BYTES_PER_TRAINED_VALUE, BYTES_PER_FROZEN_VALUE = 16, 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """The sizes of a masked autoencoder of pixels, named as in `VisionTransformer` and `MaskedAutoencoder`."""

    image_size: int | tuple[int, int]
    patch_size: int
    channels: int
    embed_dim: int
    depth: int
    num_heads: int
    decoder_embed_dim: int
    decoder_depth: int
    decoder_num_heads: int
    mask_ratio: float
    encoder_mask_tokens: bool = False

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        sides = (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size
        return (sides[0] // self.patch_size) * (sides[1] // self.patch_size)

    @property
    def patch_values(self) -> int:
        """Pixels of a patch, over all channels: what the decoder predicts."""
        return self.patch_size**2 * self.channels

    @property
    def embedded_patches(self) -> int:
        """Patches that enter the encoder."""
        return self.num_patches if self.encoder_mask_tokens else num_visible(self.num_patches, self.mask_ratio)


@dataclasses.dataclass(frozen=True)
class Dense:
    """Dense layers of one shape, with bias.

    Attributes:
        rows: tokens of one image that they are applied to.
        inputs: width of a token before.
        outputs: width of a token after.
        count: how many layers.
    """

    rows: int
    inputs: int
    outputs: int
    count: int = 1

    @property
    def flops(self) -> int:
        """FLOPs of the forward pass of one image."""
        return 2 * self.rows * self.inputs * self.outputs * self.count

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return (self.inputs + 1) * self.outputs * self.count


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of the model, over all blocks that have it.

    Attributes:
        parameters: weights, frozen position tables included.
        flops: of the forward pass of one image.
        kept: values of one image that its backward pass reads.
        denses: its dense layers, which `parameters` and `flops` include.
    """

    parameters: int = 0
    flops: int = 0
    kept: int = 0
    denses: tuple[Dense, ...] = ()


def count_parts(architecture: Architecture) -> dict[str, dict[str, Part]]:
    """All parts of the model by name, in two groups, `encoder` and `decoder`."""
    a = architecture
    width, decoder_width = a.embed_dim, a.decoder_embed_dim
    rows, all_rows = a.embedded_patches + 1, a.num_patches + 1
    encoder = {
        "patch_embedding": _dense(Dense(a.embedded_patches, a.patch_values, width)),
        "tokens_positions": Part((1 + a.encoder_mask_tokens) * width + all_rows * width),
        **_blocks(rows, width, a.depth, a.num_heads),
        "final_norm": Part(2 * width, kept=rows * width),
    }
    decoder = {
        "embedding": _dense(Dense(rows, width, decoder_width)),
        "tokens_positions": Part((not a.encoder_mask_tokens) * decoder_width + all_rows * decoder_width),
        **_blocks(all_rows, decoder_width, a.decoder_depth, a.decoder_num_heads),
        "final_norm": Part(2 * decoder_width, kept=all_rows * decoder_width),
        "prediction": _dense(Dense(all_rows, decoder_width, a.patch_values)),
        "loss": Part(kept=a.num_patches * a.patch_values),
    }
    return {"encoder": encoder, "decoder": decoder}


def _dense(*denses: Dense, also_kept: int = 0) -> Part:
    # A dense layer's backward pass reads its input.
    kept = sum(dense.rows * dense.inputs * dense.count for dense in denses)
    parameters, flops = (sum(getattr(dense, name) for dense in denses) for name in ("parameters", "flops"))
    return Part(parameters, flops, kept + also_kept, denses)


def _blocks(rows: int, width: int, depth: int, num_heads: int) -> dict[str, Part]:
    # Attention: queries by keys, then weights by values; it keeps all three and the weights (heads, rows, rows).
    # The MLP keeps, beside the inputs of its layers, the hidden values before GELU.
    hidden = MLP_RATIO * width
    mlp = (Dense(rows, width, hidden, depth), Dense(rows, hidden, width, depth))
    return {
        "norms": Part(4 * width * depth, kept=2 * rows * width * depth),
        "qkv": _dense(Dense(rows, width, 3 * width, depth)),
        "attention": Part(0, 4 * rows**2 * width * depth, (3 * rows * width + num_heads * rows**2) * depth),
        "projection": _dense(Dense(rows, width, width, depth)),
        "mlp": _dense(*mlp, also_kept=rows * hidden * depth),
    }


BLOCK_PARTS = ("norms", "qkv", "attention", "projection", "mlp")


def total(architecture: Architecture, attribute: str) -> int:
    """The sum of an attribute of `Part` over all parts: "parameters", "flops" or "kept"."""
    groups = count_parts(architecture).values()
    return sum(getattr(part, attribute) for group in groups for part in group.values())


def step_flops(architecture: Architecture, remat: str = "none") -> int:
    """FLOPs of a training step for one image.

    The backward pass has two products of the same size for each of the forward pass: the gradients of both factors. The
    patch embedding has one, since nobody asks for the gradient of pixels. What the last block of the decoder saves by
    leaving out visible patches is not taken off (ViT-B: 1.7%). With remat="blocks" the forward pass of all
    blocks comes once more.
    """
    encoder, decoder = count_parts(architecture).values()
    again = sum(group[name].flops for group in (encoder, decoder) for name in BLOCK_PARTS)
    return 3 * total(architecture, "flops") - encoder["patch_embedding"].flops + again * (remat == "blocks")


def kept_values(architecture: Architecture, remat: str = "none") -> int:
    """Values of one image that are in memory when the backward pass begins: an estimate.

    Each value that a backward pass reads is counted once. What a framework keeps besides (copies in another layout, the
    steps of a norm or of GELU that it does not compute as one) and what it needs for a moment is not, nor is what it
    saves by computing again what is cheap. With remat="blocks", the inputs of all blocks, and the inside of the one
    block that is largest.
    """
    kept = total(architecture, "kept")
    if remat == "none":
        return kept
    a = architecture
    encoder, decoder = (sum(group[name].kept for name in BLOCK_PARTS) for group in count_parts(a).values())
    encoder_inputs = (a.embedded_patches + 1) * a.embed_dim * a.depth
    decoder_inputs = (a.num_patches + 1) * a.decoder_embed_dim * a.decoder_depth
    largest = max(encoder // a.depth, decoder // a.decoder_depth)
    return kept - encoder - decoder + encoder_inputs + decoder_inputs + largest


def state_bytes(architecture: Architecture) -> int:
    """Bytes of weights, their gradients and AdamW's moments, whatever the batch."""
    frozen = (architecture.num_patches + 1) * (architecture.embed_dim + architecture.decoder_embed_dim)
    trained = total(architecture, "parameters") - frozen
    return trained * BYTES_PER_TRAINED_VALUE + frozen * BYTES_PER_FROZEN_VALUE
