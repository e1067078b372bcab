"""What the decoder predicts for a removed patch (Section 3, "Reconstruction target"; Table 1d)."""

from keras import ops

EPSILON = 1e-6


def pixel_statistics(patches):
    """Mean and standard deviation over the values of each patch.

    The variance is unbiased (divides by n - 1), as the reference's is.

    Args:
        patches: (batch, num_patches, values) float32.

    Returns:
        mean and sqrt(variance + 1e-6), each (batch, num_patches, 1).
    """
    values = patches.shape[-1]
    mean = ops.mean(patches, axis=-1, keepdims=True)  # (B, N, 1)
    variance = ops.sum(ops.square(patches - mean), axis=-1, keepdims=True) / (values - 1)  # (B, N, 1)
    return mean, ops.sqrt(variance + EPSILON)


def normalized_pixels(patches):
    """The paper's better target: pixels normalised by the mean and deviation of their own patch."""
    mean, std = pixel_statistics(patches)
    return (patches - mean) / std  # (B, N, P*P*C)
