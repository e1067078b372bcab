"""AdamW as the recipes mean it: PyTorch's arithmetic, decay groups and layer-wise rates that survive saving.

Keras' own AdamW differs in three ways that matter here: its epsilon stands outside the bias correction; its
`exclude_from_weight_decay` is lost on save and load; and it has no learning rate per variable.
"""

import keras
from keras import ops

from keras_mae.training.optimizer import Optimizer


@keras.saving.register_keras_serializable(package="keras_mae")
class AdamW(Optimizer):
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
            decay. When given, it must name exactly the variables that are trained. The end of a path will do, and
            the path may be the end of a name: models that Keras loads lack some of the outer names.
        ema_decay: of averages of the weights, see `Optimizer`.

    Raises:
        ValueError: at build, if `learning_rate_scales` and the trained variables differ, or a name of `no_decay`
            fits none.
    """

    slot_names = ("momentum", "velocity")

    def __init__(
        self,
        learning_rate=1e-3,
        weight_decay=0.05,
        beta_1=0.9,
        beta_2=0.95,
        epsilon=1e-8,
        no_decay=(),
        learning_rate_scales=None,
        ema_decay=None,
        name="adamw",
        **kwargs,
    ):
        super().__init__(learning_rate, ema_decay, name=name, **kwargs)
        self.weight_decay = weight_decay
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.no_decay = tuple(no_decay)
        self.learning_rate_scales = dict(learning_rate_scales) if learning_rate_scales else None

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        paths = [v.path for v in variables]
        unmatched = [name for name in self.no_decay if not any(path.endswith(name) for path in paths)]
        if unmatched:
            raise ValueError(f"no_decay names variables that are not trained: {unmatched}. Trained: {paths}")
        self._scales = [1.0] * len(paths)
        if self.learning_rate_scales is not None:
            self._scales = _values_of(paths, self.learning_rate_scales)
        self._decays = [
            0.0 if len(v.shape) <= 1 or v.path.endswith(self.no_decay or ("\0",)) else self.weight_decay
            for v in variables
        ]

    def update_inputs(self, index, gradient, learning_rate):
        rate = learning_rate * self._scales[index]
        step = ops.cast(self.iterations + 1, gradient.dtype)
        return {
            "gradient": gradient,
            "corrections": (1 - ops.power(self.beta_1, step), ops.sqrt(1 - ops.power(self.beta_2, step))),
            "rate": rate,
            "kept": 1 - rate * self._decays[index],  # the share of the variable that its decay leaves
        }

    def new_values(self, variable, momentum, velocity, *, gradient, corrections, rate, kept):
        momentum = momentum + (gradient - momentum) * (1 - self.beta_1)
        velocity = velocity + (ops.square(gradient) - velocity) * (1 - self.beta_2)
        root = ops.sqrt(velocity) / corrections[1] + self.epsilon
        return variable * kept - rate * momentum / (corrections[0] * root), momentum, velocity

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


def _values_of(paths, values):
    """The value of each path in a dict that names exactly these."""
    names = [_fitting_name(path, values) for path in paths]
    differing = [path for path, name in zip(paths, names, strict=True) if name is None or names.count(name) > 1]
    differing += [name for name in values if name not in names]
    if differing:
        raise ValueError(
            f"learning_rate_scales must name exactly the trained variables; differing: {sorted(differing)}"
        )
    return [values[name] for name in names]


def _fitting_name(path, names):
    if path in names:
        return path
    fitting = [name for name in names if f"/{name}".endswith(f"/{path}") or f"/{path}".endswith(f"/{name}")]
    return fitting[0] if len(fitting) == 1 else None
