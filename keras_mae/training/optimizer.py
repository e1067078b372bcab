"""What AdamW and LARS share: how gradients of all replicas become one update of each variable.

Keras' own optimizers clip each replica's gradients before they are summed, so that the result depends on the number
of replicas; their loss scale looks at the gradients of the first replica alone, and lets an overflow of another one
into the weights; and their averages take the place of the weights when `fit` ends. Here clipping and scale follow the
sum, and averages are kept in the loop that updates the weights.
"""

import contextlib

import keras
import tensorflow as tf
from keras import ops

from keras_mae.training.loss_scaling import LossScale


class Optimizer(keras.optimizers.Optimizer):
    """Base class: a subclass says what an update reads (`update_inputs`) and what follows from it (`new_values`).

    Args:
        learning_rate: a number or a schedule of the update number (from 0).
        ema_decay: decay of exponential moving averages of the weights, one step an update; they start as the weights
            after the first update, and serve only within `averaged_weights`. None: no averages.
        **kwargs: of Keras' optimizers; `global_clipnorm` and its kin clip the sum over the replicas.

    Attributes:
        slot_names: a subclass's own slots of a variable.
        loss_scale: a `LossScale` after `scale_losses`, else None.
    """

    slot_names = ()

    def __init__(self, learning_rate, ema_decay=None, **kwargs):
        super().__init__(learning_rate, **kwargs)
        self.ema_decay = ema_decay
        self.loss_scale = None
        self._compiled_update = None

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        names = [*self.slot_names, *(["average"] if self.ema_decay is not None else [])]
        self._slots = list(zip(*self.add_optimizer_variables(variables, names), strict=True))

    def compile_updates(self):
        """Makes the update of a variable one loop, compiled by XLA, one program a shape; for a single device."""
        self._compiled_update = tf.function(self._update, jit_compile=True, autograph=False)

    def scale_losses(self):
        """Makes losses large enough for float16 gradients, by a factor that adapts itself: see `LossScale`."""
        self.loss_scale = LossScale()

    @contextlib.contextmanager
    def averaged_weights(self):
        """Within this context the trained weights hold their averages; nothing happens without `ema_decay`."""
        self._swap_weights_and_averages()
        try:
            yield
        finally:
            self._swap_weights_and_averages()

    def _swap_weights_and_averages(self):
        if self.ema_decay is None:
            return
        for variable, (*_, average) in zip(self._trainable_variables, self._slots, strict=True):
            weight = tf.identity(variable.value)
            variable.assign(average)
            average.assign(weight)

    def update_inputs(self, index, gradient, learning_rate):
        """What the update of a variable reads beside the variable and its slots.

        Args:
            index: of the variable.
            gradient: summed over the replicas, in the variable's dtype, as the learning rate.

        Returns:
            Dict of arguments for `new_values`.
        """
        raise NotImplementedError

    def new_values(self, variable, *slots, **inputs):
        """Values of the variable and of its own slots after the update."""
        raise NotImplementedError

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        gradient, learning_rate = (ops.cast(x, variable.dtype) for x in (gradient, learning_rate))
        state = [variable, *(slot.value for slot in self._slots[index])]
        average_share = is_finite = None
        if self.ema_decay is not None:
            average_share = ops.cast(ops.where(self.iterations == 0, 1.0, 1 - self.ema_decay), variable.dtype)
        if self.loss_scale is not None:
            is_finite = tf.identity(self.loss_scale.is_finite.value)
        update = self._compiled_update or self._update
        update(state, self.update_inputs(index, gradient, learning_rate), average_share, is_finite)

    def _update(self, state, inputs, average_share, is_finite):
        # `average_share`: how much of the new weight enters its average.
        if average_share is None:
            values = self.new_values(*state, **inputs)
        else:
            *state_of_step, average = state
            values = list(self.new_values(*state_of_step, **inputs))
            values.append(average + average_share * (values[0] - average))
        for variable, value in zip(state, values, strict=True):
            variable.assign(value if is_finite is None else tf.where(is_finite, value, variable))

    def scale_loss(self, loss):
        return super().scale_loss(loss) if self.loss_scale is None else loss * self.loss_scale.scale

    def apply(self, grads, trainable_variables=None):
        super().apply(grads, trainable_variables)
        if self.loss_scale is not None:  # a skipped update does not count
            self._iterations.assign_sub(ops.cast(ops.logical_not(self.loss_scale.is_finite), self._iterations.dtype))

    def _all_reduce_sum_gradients(self, grads_and_vars):
        gradients, variables = zip(*super()._all_reduce_sum_gradients(grads_and_vars), strict=True)
        if self.loss_scale is not None:
            gradients = self.loss_scale.unscale(gradients)
        return list(zip(super()._clip_gradients(gradients), variables, strict=True))

    def _clip_gradients(self, grads):
        """Nothing: a replica's own gradients are not clipped, their sum is."""
        return grads

    def _apply_weight_decay(self, variables):
        """Nothing: `new_values` decays each variable by its own group's rate."""

    def get_config(self):
        return {**super().get_config(), "ema_decay": self.ema_decay}
