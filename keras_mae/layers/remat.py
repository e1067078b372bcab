"""Rematerialisation (arXiv 1604.06174): the inside of a block is computed again when its gradient is needed.

Without it, everything that the backward pass of every block reads is kept from the forward pass on: for 12 blocks of
ViT-B at 197 tokens 140 MB an image in float32. With it, only the input of each block is kept, and one block's inside at
a time; the step computes every block's forward pass twice. Gradients are equal.

`keras.RematScope` is not used: it is fixed when a layer is made, and covers every inner layer by itself.
"""

import keras
from keras import ops

REMATS = ("none", "blocks")


def check_remat(remat):
    """Raises ValueError unless `remat` is one of `REMATS`."""
    if remat not in REMATS:
        raise ValueError(f"remat must be one of {', '.join(REMATS)}. Received: {remat!r}")


def run_blocks(blocks, x, drop_noise=None, training=False, remat="none", num_outputs=None):
    """The blocks of a Transformer, one after the other.

    Args:
        blocks: list of `TransformerBlock`.
        x: tokens (batch, num_tokens, width).
        drop_noise: (batch, 2 * len(blocks)) uniform numbers for drop path, optional (see `DropPath`).
        training: whether drop path is active; outside training nothing is kept, so nothing is computed again.
        remat: "none", or "blocks" to compute each block again in the backward pass.
        num_outputs: the last block computes only the last so many tokens; None for all.

    Returns:
        Tokens of the same shape, or (batch, num_outputs, width).
    """
    for i, block in enumerate(blocks):
        noise = None if drop_noise is None else drop_noise[:, 2 * i : 2 * i + 2]
        outputs = num_outputs if block is blocks[-1] else None
        if training and remat == "blocks":
            x = _run_recomputed(block, x, noise, outputs)
        else:
            x = block(x, drop_noise=noise, training=training, num_outputs=outputs)
    return x if num_outputs is None else x[:, -num_outputs:]


def _run_recomputed(block, x, noise, num_outputs):
    # A draw of its own inside would be another one when the block is computed again.
    if noise is None and block.drop_path_rate:
        noise = keras.random.uniform((ops.shape(x)[0], 2), dtype="float32", seed=block.drop_path.seed_generator)
    # Only what needs a gradient may be an argument: TensorFlow adds to all of them, and takes no None.
    return keras.remat(lambda tokens: block(tokens, drop_noise=noise, training=True, num_outputs=num_outputs))(x)
