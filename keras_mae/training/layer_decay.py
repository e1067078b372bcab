"""Layer-wise learning-rate decay of fine-tuning (appendix A.1; arXiv 2003.10555)."""


def layer_numbers(model) -> list[int]:
    """The layer of each of `model.variables`.

    0 for class token, positions and patch embedding, j + 1 for block j, depth + 1 for what follows the blocks.

    Args:
        model: a built encoder, or a model with one as `encoder`.
    """
    encoder = getattr(model, "encoder", model)
    layers = {id(v): 0 for v in encoder.variables}
    for j, block in enumerate(encoder.blocks):
        layers.update({id(v): j + 1 for v in block.variables})
    top = encoder.depth + 1
    if encoder.final_norm:
        layers.update({id(v): top for v in encoder.norm.variables})
    return [layers.get(id(v), top) for v in model.variables]


def layer_decay_scales(classifier, decay):
    """Learning-rate factors of layer-wise decay: decay^(depth + 1 - i) for layer i of `layer_numbers`.

    Args:
        classifier: a built `Classifier`.
        decay: factor from one layer to the layer below; 1 turns layer-wise decay off.

    Returns:
        Dict of the trainable variables' paths to factors, for `AdamW(learning_rate_scales=...)`.
    """
    top = classifier.encoder.depth + 1
    numbered = zip(classifier.variables, layer_numbers(classifier), strict=True)
    return {v.path: decay ** (top - number) for v, number in numbered if v.trainable}
