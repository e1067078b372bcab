"""What others build on: the tokens of chosen blocks of an encoder, pooled, or as maps of features.

In `keras.ops` only. `keras_mae.training.backbone` makes a Keras layer of it, which loads saved encoders.
"""

from keras import ops

from keras_mae.layers.remat import run_blocks

POOLS = ("class_token", "patch_mean")
OUTPUTS = ("tokens", *POOLS, "pyramid")


def block_numbers(layers, depth):
    """Numbers of blocks from 0 on.

    Args:
        layers: numbers; negative ones count from the end, -1 is the last block.
        depth: number of blocks.

    Raises:
        ValueError: there is none, there is no such block, or one is named twice.
    """
    numbers = [number + depth if number < 0 else number for number in layers]
    if not numbers or not all(0 <= number < depth for number in numbers) or len(set(numbers)) < len(numbers):
        raise ValueError(
            f"layers must be different numbers of blocks, from {-depth} to {depth - 1}. Received: {list(layers)}"
        )
    return numbers


def tokens_after_blocks(encoder, images, blocks, drop_noise=None, training=False):
    """Tokens after chosen blocks, each through the encoder's final norm, where it has one.

    Args:
        encoder: a built `VisionTransformer`.
        images: (batch, height, width, channels), as the encoder takes them.
        blocks: numbers of blocks, from 0, in any order; what lies after the last of them is not computed.
        drop_noise: (batch, 2 * depth) uniform numbers for drop path, optional.
        training: whether drop path is active.

    Returns:
        {number of the block: (batch, 1 + num_patches, embed_dim)}, in the order of `blocks`.
    """
    embeddings = encoder.patch_embedding(encoder.normalized_patches(images))  # (B, N, D)
    x, start, found = encoder.with_positions(embeddings), 0, {}  # (B, N+1, D)
    for number in sorted(blocks):
        noise = None if drop_noise is None else drop_noise[:, 2 * start : 2 * (number + 1)]
        x = run_blocks(encoder.blocks[start : number + 1], x, noise, training, encoder.remat)  # (B, N+1, D)
        found[number] = x if encoder.norm is None else encoder.norm(x)
        start = number + 1
    return {number: found[number] for number in blocks}


def pool_tokens(tokens, outputs, grid_size):
    """One of `OUTPUTS` from tokens.

    Args:
        tokens: (batch, 1 + num_patches, embed_dim), class token first.
        outputs: "tokens", all of them; "class_token" or "patch_mean", of the others: (batch, embed_dim); "pyramid",
            the patches as a map of features: (batch, rows, columns, embed_dim).
        grid_size: (rows, columns) of the patches.
    """
    if outputs == "class_token":
        return tokens[:, 0]
    if outputs == "patch_mean":
        return ops.mean(tokens[:, 1:], axis=1)
    if outputs == "pyramid":
        return ops.reshape(tokens[:, 1:], (-1, *grid_size, tokens.shape[-1]))  # (B, rows, columns, D)
    return tokens
