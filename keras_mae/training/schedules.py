"""Learning-rate schedule of all recipes: linear warmup, then half a cosine."""

import math

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_mae")
class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Linear from 0 over the warmup, then half a cosine down to `min_learning_rate`, per step.

    Args:
        learning_rate: peak, reached at the end of the warmup.
        total_steps: length of the run in updates, warmup included.
        warmup_steps: updates of the warmup; may be fractional.
        min_learning_rate: reached at `total_steps`.
    """

    def __init__(self, learning_rate, total_steps, warmup_steps=0, min_learning_rate=0.0):
        self.learning_rate = learning_rate
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.min_learning_rate = min_learning_rate

    def __call__(self, step):
        step = ops.cast(step, "float32")
        warmup = self.learning_rate * step / max(self.warmup_steps, 1e-9)
        decay_steps = max(self.total_steps - self.warmup_steps, 1e-9)
        share = ops.clip((step - self.warmup_steps) / decay_steps, 0.0, 1.0)
        height = self.learning_rate - self.min_learning_rate
        cosine = self.min_learning_rate + height * 0.5 * (1 + ops.cos(math.pi * share))
        return ops.where(step < self.warmup_steps, warmup, cosine)

    def get_config(self):
        return {
            "learning_rate": self.learning_rate,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "min_learning_rate": self.min_learning_rate,
        }
