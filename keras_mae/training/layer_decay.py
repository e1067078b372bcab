"""Layer-wise learning-rate decay of fine-tuning (appendix A.1; arXiv 2003.10555)."""


def layer_decay_scales(classifier, decay):
    """Learning-rate factors of layer-wise decay: decay^(depth + 1 - i).

    i = 0 for class token, positions and patch embedding, j + 1 for block j, depth + 1 for what follows the blocks.

    Args:
        classifier: a built `Classifier`.
        decay: factor from one layer to the layer below; 1 turns layer-wise decay off.

    Returns:
        Dict of the trainable variables' paths to factors, for `AdamW(learning_rate_scales=...)`.
    """
    encoder = classifier.encoder
    layers = {id(v): 0 for v in encoder.trainable_variables}
    for j, block in enumerate(encoder.blocks):
        layers.update({id(v): j + 1 for v in block.trainable_variables})
    top = encoder.depth + 1
    return {v.path: decay ** (top - layers.get(id(v), top)) for v in classifier.trainable_variables}
