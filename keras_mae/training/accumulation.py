"""Gradient accumulation: the gradients of a large batch in the memory of a small one."""

import tensorflow as tf


def accumulate(loss_and_gradients, batch, steps, variables):
    """Mean loss and mean gradients over equal parts of a batch, computed one after the other.

    The computation is traced once, as the body of a loop; shapes stay static, as XLA needs them.

    Args:
        loss_and_gradients: function of a batch's elements that gives (loss, [gradient of each variable]).
        batch: tuple of tensors, dicts of them, or None, whose first axis is the batch.
        steps: number of parts; divides the batch.
        variables: whose gradients are meant.

    Returns:
        (loss, list of gradients).

    Raises:
        ValueError: `steps` does not divide the batch.
    """
    parts = tf.nest.map_structure(lambda x: x if x is None else _split(x, steps), batch)

    def add_part(index, loss_sum, sums):
        part = tf.nest.map_structure(lambda x: x if x is None else x[index], parts)
        loss, gradients = loss_and_gradients(*part)
        return index + 1, loss_sum + loss, [a + b for a, b in zip(sums, gradients, strict=True)]

    start = [tf.zeros(v.shape, v.dtype) for v in variables]
    _, loss_sum, sums = tf.while_loop(
        lambda index, *_: index < steps,
        add_part,
        (tf.constant(0), tf.constant(0.0), start),
        parallel_iterations=1,  # or the next part's activations take memory beside this one's
        maximum_iterations=steps,
    )
    return loss_sum / steps, [total / steps for total in sums]


def _split(x, steps):
    size = x.shape[0]
    if size is None or size % steps:
        raise ValueError(
            f"Accumulation splits each replica's batch into {steps} equal parts: its size must be known and a multiple "
            f"of them. Received: a batch of shape {tuple(x.shape)}"
        )
    return tf.reshape(x, (steps, size // steps, *x.shape[1:]))  # (steps, B / steps, ...)
