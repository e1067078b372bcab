"""What the blocks of an encoder look at, as maps over the patches: the class token's attention, likeness of patches."""

import numpy as np
from keras import ops

from keras_mae.layers.remat import run_blocks
from keras_mae.models.backbone import tokens_after_blocks


def class_token_attention(encoder, images: np.ndarray, block: int) -> np.ndarray:
    """How much the class token attends to each patch, by the heads of a block.

    Args:
        encoder: a built `VisionTransformer`; nothing is masked.
        images: uint8 or uint16 (count, height, width, channels).
        block: number of the block, from 0.

    Returns:
        float32 (count, num_heads, rows, columns). A map and the attention to the class token itself add up to 1.
    """
    layer = encoder.blocks[block]
    embeddings = encoder.patch_embedding(encoder.normalized_patches(images))  # (B, N, D)
    x = layer.norm1(run_blocks(encoder.blocks[:block], encoder.with_positions(embeddings)))  # (B, N+1, D)
    heads = (-1, x.shape[1], 3, encoder.num_heads, encoder.embed_dim // encoder.num_heads)
    query, key, _ = ops.unstack(ops.reshape(layer.attention.qkv(x), heads), axis=2)  # (B, L, K, d)
    scores = ops.einsum("bkd,blkd->bkl", ops.cast(query[:, 0], "float32"), ops.cast(key, "float32"))
    attention = ops.softmax(scores * heads[-1] ** -0.5)  # (B, K, L)
    return ops.convert_to_numpy(attention)[:, :, 1:].reshape(len(images), -1, *encoder.grid_size)


def patch_similarity(encoder, images: np.ndarray, block: int, patch: tuple[int, int]) -> np.ndarray:
    """Cosine of the angle between a patch's token and every other's, after a block and the encoder's final norm.

    Args:
        encoder, images, block: as of `class_token_attention`.
        patch: (row, column) of the patch in the grid, from 0.

    Returns:
        float32 (count, rows, columns); 1 at the patch itself.
    """
    tokens = tokens_after_blocks(encoder, images, [block])[block][:, 1:]  # (B, N, D)
    tokens = ops.convert_to_numpy(ops.cast(tokens, "float32"))
    tokens = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
    tokens = tokens.reshape(len(images), *encoder.grid_size, -1)  # (B, rows, columns, D)
    return np.einsum("brcd,bd->brc", tokens, tokens[:, patch[0], patch[1]])
