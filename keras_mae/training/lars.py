"""LARS (arXiv 1708.03888) as the linear probe of the paper uses it (appendix A.1, Table 10)."""

import keras
import tensorflow as tf

from keras_mae.training.optimizer import Optimizer


@keras.saving.register_keras_serializable(package="keras_mae")
class LARS(Optimizer):
    """Momentum SGD in which a layer's gradient is brought to a fixed share of the length of its weights.

    Tensors of one dimension (biases, norms) take plain momentum SGD, without decay. The learning rate stands outside
    the momentum.

    Args:
        learning_rate: a number or a schedule of the update number (from 0).
        weight_decay: added to the gradient, before its length is measured.
        momentum: decay of the sum of past gradients.
        trust_coefficient: the share.
        ema_decay: of averages of the weights, see `Optimizer`.
    """

    slot_names = ("momentum",)

    def __init__(
        self,
        learning_rate=0.1,
        weight_decay=0.0,
        momentum=0.9,
        trust_coefficient=0.001,
        ema_decay=None,
        name="lars",
        **kwargs,
    ):
        super().__init__(learning_rate, ema_decay, name=name, **kwargs)
        self.weight_decay = weight_decay
        self.momentum = momentum
        self.trust_coefficient = trust_coefficient

    def update_inputs(self, index, gradient, learning_rate):
        return {"gradient": gradient, "rate": learning_rate}

    def new_values(self, variable, momentum, *, gradient, rate):
        if len(variable.shape) > 1:
            gradient = gradient + self.weight_decay * variable
            gradient = gradient * self._trust(tf.norm(variable), tf.norm(gradient))
        momentum = self.momentum * momentum + gradient
        return variable - rate * momentum, momentum

    def _trust(self, weight_norm, gradient_norm):
        is_defined = tf.logical_and(weight_norm > 0, gradient_norm > 0)
        return tf.where(is_defined, tf.math.divide_no_nan(self.trust_coefficient * weight_norm, gradient_norm), 1.0)

    def get_config(self):
        return {
            **super().get_config(),
            "weight_decay": self.weight_decay,
            "momentum": self.momentum,
            "trust_coefficient": self.trust_coefficient,
        }
