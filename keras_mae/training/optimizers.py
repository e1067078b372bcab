"""AdamW as the recipes mean it: PyTorch's arithmetic, decay groups and layer-wise rates that survive saving.

Keras' own AdamW differs in three ways that matter here: its epsilon stands outside the bias correction; its
`exclude_from_weight_decay` is lost on save and load; and it has no learning rate per variable.
"""

import keras
import tensorflow as tf
from keras import ops


@keras.saving.register_keras_serializable(package="keras_mae")
class AdamW(keras.optimizers.Optimizer):
    """Adam with decoupled weight decay (arXiv 1711.05101), step for step as `torch.optim.AdamW`.

    Tensors of one dimension (biases, norms) are never decayed.

    Args:
        learning_rate: a number or a schedule of the update number (from 0).
        weight_decay: decoupled decay; a step shrinks a weight by learning_rate * weight_decay.
        beta_1: decay of the first moment.
        beta_2: decay of the second moment; .95 in pre-training, .999 in fine-tuning.
        epsilon: added to the root of the bias-corrected second moment.
        no_decay: further variables that are not decayed, by the end of their path ("class_token").
        learning_rate_scales: variable path -> factor on its learning rate (and so on its decay), for layer-wise
            decay. When given, it must name exactly the variables that are trained.

    Raises:
        ValueError: at build, if `learning_rate_scales` and the trained variables differ, or a name of `no_decay`
            fits none.
    """

    def __init__(
        self,
        learning_rate=1e-3,
        weight_decay=0.05,
        beta_1=0.9,
        beta_2=0.95,
        epsilon=1e-8,
        no_decay=(),
        learning_rate_scales=None,
        name="adamw",
        **kwargs,
    ):
        super().__init__(learning_rate, name=name, **kwargs)
        self.weight_decay = weight_decay
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.no_decay = tuple(no_decay)
        self.learning_rate_scales = dict(learning_rate_scales) if learning_rate_scales else None
        self._compiled_update = None

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._momentums, self._velocities = self.add_optimizer_variables(variables, ["momentum", "velocity"])
        paths = [v.path for v in variables]
        unmatched = [name for name in self.no_decay if not any(path.endswith(name) for path in paths)]
        if unmatched:
            raise ValueError(f"no_decay names variables that are not trained: {unmatched}. Trained: {paths}")
        if self.learning_rate_scales is not None and set(self.learning_rate_scales) != set(paths):
            difference = sorted(set(self.learning_rate_scales) ^ set(paths))
            raise ValueError(f"learning_rate_scales must name exactly the trained variables; differing: {difference}")
        scales = self.learning_rate_scales or {}
        self._scales = [scales.get(path, 1.0) for path in paths]
        self._decays = [
            0.0 if len(v.shape) <= 1 or v.path.endswith(self.no_decay or ("\0",)) else self.weight_decay
            for v in variables
        ]

    def compile_updates(self):
        """Makes the update of a variable one loop, compiled by XLA, one program a shape; for a single device."""
        self._compiled_update = tf.function(_update, jit_compile=True, autograph=False)

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        momentum, velocity = self._momentums[index], self._velocities[index]
        rate = ops.cast(learning_rate, variable.dtype) * self._scales[index]
        step = ops.cast(self.iterations + 1, variable.dtype)
        inputs = {
            "gradient": ops.cast(gradient, variable.dtype),
            "betas": (self.beta_1, self.beta_2),
            "corrections": (1 - ops.power(self.beta_1, step), ops.sqrt(1 - ops.power(self.beta_2, step))),
            "epsilon": self.epsilon,
            "rate": rate,
            "kept": 1 - rate * self._decays[index],
        }
        if self._compiled_update is not None:
            self._compiled_update(variable, momentum.value, velocity.value, **inputs)
            return
        new_values = _new_values(variable, momentum, velocity, **inputs)
        for slot, value in zip((variable, momentum, velocity), new_values, strict=True):
            self.assign(slot, value)

    def _apply_weight_decay(self, variables):
        """Nothing: `update_step` decays each variable by its own group's rate."""

    def get_config(self):
        return {
            **super().get_config(),
            "weight_decay": self.weight_decay,
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
            "no_decay": self.no_decay,
            "learning_rate_scales": self.learning_rate_scales,
        }


def _new_values(variable, momentum, velocity, *, gradient, betas, corrections, epsilon, rate, kept):
    # (variable, momentum, velocity) after a step; `kept` is the share of the variable that its decay leaves.
    momentum = momentum + (gradient - momentum) * (1 - betas[0])
    velocity = velocity + (ops.square(gradient) - velocity) * (1 - betas[1])
    root = ops.sqrt(velocity) / corrections[1] + epsilon
    return variable * kept - rate * momentum / (corrections[0] * root), momentum, velocity


def _update(variable, momentum, velocity, **inputs):
    slots = variable, momentum, velocity
    for slot, value in zip(slots, _new_values(*slots, **inputs), strict=True):
        slot.assign(value)


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
