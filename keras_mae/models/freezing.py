"""Which part of an encoder trains: none of it in the linear probe, the last blocks in partial fine-tuning."""

EMBEDDINGS = ("patch_embedding", "position_embedding")
HALF = 0.5


def freeze_encoder(encoder, trainable_blocks=0):
    """Freezes a built encoder but for its last blocks: embeddings, class token and final norm are frozen, too.

    What is frozen is no part of the configuration: copies and saved files of the encoder train again.

    Args:
        encoder: a built `VisionTransformer`.
        trainable_blocks: last blocks that train; 0.5 for the second half of the last one, its MLP with the norm before.

    Raises:
        ValueError: the encoder has no so many blocks, or it is another part of a block.
    """
    if trainable_blocks != HALF and trainable_blocks not in range(encoder.depth + 1):
        raise ValueError(
            f"trainable_blocks must be {HALF} or a whole number up to the encoder's {encoder.depth}. "
            f"Received: {trainable_blocks:g}"
        )
    for name in EMBEDDINGS:
        getattr(encoder, name).trainable = False
    encoder.class_token.trainable = False
    if encoder.norm is not None:
        encoder.norm.trainable = False
    whole = int(trainable_blocks)
    for block in encoder.blocks[: encoder.depth - whole]:
        block.trainable = False
    if trainable_blocks == HALF:
        block = encoder.blocks[-1]
        block.trainable = True
        block.norm1.trainable = block.attention.trainable = False
