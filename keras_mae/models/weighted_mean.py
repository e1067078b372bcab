"""The mean of per-sample losses in which padding does not count."""

from keras import ops


def weighted_mean(losses, sample_weight=None):
    """sum(loss x weight) / sum(weight); the plain mean without weights, 0 where all weights are 0.

    Args:
        losses: (batch,) float32.
        sample_weight: (batch,), 0 = padding; optional.

    Returns:
        A scalar.
    """
    if sample_weight is None:
        return ops.mean(losses)
    weights = ops.cast(sample_weight, losses.dtype)
    return ops.divide_no_nan(ops.sum(losses * weights), ops.sum(weights))
