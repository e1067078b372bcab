"""Dynamic loss scaling, which keeps the small gradients of float16 from becoming 0 (arXiv 1710.03740, Section 3.2).

Keras' LossScaleOptimizer decides by the gradients of the first replica alone, and so lets an overflow of another one
into the weights. Here the gradients have been summed before, and all replicas see the same.
"""

import keras
import tensorflow as tf
from keras import ops

from keras_mae.training.finite_loss import NonFiniteLossError

MAX_SCALE = 2.0**24


class LossScale:
    """The factor on the loss: halved by each step whose gradients overflow, doubled after many that do not.

    Args:
        initial_scale: to begin with; too large a scale is soon found out, too small a one takes long.
        growth_steps: steps with finite gradients in a row after which the scale doubles.

    Attributes:
        scale: variable, the factor on the loss of the next step.
        finite_steps: variable, steps with finite gradients since the scale last changed.
        is_finite: variable, whether the last step's gradients were finite: if not, its update is skipped.
    """

    def __init__(self, initial_scale=2.0**15, growth_steps=2000):
        self.growth_steps = growth_steps
        self.scale = _variable(initial_scale, "float32", "loss_scale")
        self.finite_steps = _variable(0, "int64", "finite_steps")
        self.is_finite = _variable(True, "bool", "is_finite")

    def unscale(self, gradients):
        """The gradients of the unscaled loss; also adapts the scale.

        Args:
            gradients: of the scaled loss, summed over the replicas.
        """
        scale = tf.identity(self.scale.value)
        is_finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
        steps = self.finite_steps + 1
        grows = steps >= self.growth_steps
        grown = ops.where(grows, ops.minimum(2 * scale, MAX_SCALE), scale)
        self.scale.assign(ops.where(is_finite, grown, scale / 2))
        self.finite_steps.assign(ops.where(ops.logical_and(is_finite, ops.logical_not(grows)), steps, 0))
        self.is_finite.assign(is_finite)
        return [gradient / scale for gradient in gradients]

    def figures(self) -> dict[str, float]:
        """What the log says of it.

        Raises:
            NonFiniteLossError: no scale is small enough, so that no step trains any more.
        """
        scale = float(self.scale.numpy())
        if scale < 1:
            raise NonFiniteLossError(
                f"Gradients are not finite in float16, whatever the loss scale: it fell to {scale:g}, and no update "
                "was made meanwhile. Try --precision=bfloat16 or float32, with which this run may go on."
            )
        return {"loss_scale": scale}

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps, as JSON values."""
        return {"scale": float(self.scale.numpy()), "finite_steps": int(self.finite_steps.numpy())}

    def restore(self, state: dict[str, float]) -> None:
        """Goes on from what `state` gave."""
        self.scale.assign(state["scale"])
        self.finite_steps.assign(state["finite_steps"])


def _variable(value, dtype, name):
    return keras.Variable(value, dtype=dtype, trainable=False, aggregation="only_first_replica", name=name)
