"""What `fit` runs each step, and weighted evaluation, under any tf.distribute strategy.

Keras' own `train_step` reports the running mean of an epoch and weighs a batch by its size, padding included. Here a
step reports its own loss over the global batch, and an evaluation weighs samples.
"""

import functools
from collections.abc import Iterable

import keras
import tensorflow as tf

from keras_mae.layers.elementwise import replaced
from keras_mae.training import fast_elementwise
from keras_mae.training.accumulation import accumulate
from keras_mae.training.keras_fit import WorkersModel

COMPILED = ("step", "elementwise", "nothing")


class Trainer(WorkersModel):
    """Trains `model` with `fit`; holds no weights of its own.

    Args:
        model: a built `MaskedAutoencoder` or `Classifier`: `compute_loss` and `sample_metrics` are what is used.
        compiled: what XLA compiles. "step": forward and backward pass as one, for GPUs. "elementwise": what lies
            between matrix products, for CPUs (see `fast_elementwise`). "nothing": for several logical devices of one
            CPU, which XLA refuses.
        accumulation_steps: equal parts of a replica's batch that are computed one after the other, see `accumulate`;
            one update follows them all. They must make up the batch, and the batch must bring no weights.
    """

    def __init__(self, model, compiled="nothing", accumulation_steps=1, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.model = model
        self.built = True
        if compiled not in COMPILED:
            raise ValueError(f"compiled must be one of {', '.join(COMPILED)}. Received: {compiled!r}")
        compute = self._loss_and_gradients
        if accumulation_steps > 1:
            compute = functools.partial(self._accumulated_loss_and_gradients, accumulation_steps)
        if compiled == "step":
            compute = tf.function(compute, jit_compile=True, autograph=False)
        elif compiled == "elementwise":
            compute = functools.partial(_with_fast_elementwise, compute)
        self._forward_backward = compute

    def call(self, features, training=False):
        return self.model(features, training=training)

    def train_step(self, data):
        """One update; returns the loss of this replica's slice, which is averaged over the replicas."""
        features, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
        loss, gradients = self._forward_backward(features, labels, weights)
        self.optimizer.apply_gradients(zip(gradients, self.model.trainable_variables, strict=True))
        return {"loss": loss}

    def _accumulated_loss_and_gradients(self, steps, features, labels, weights):
        if weights is not None:
            raise ValueError("Accumulation averages over equal parts: it needs batches without sample weights.")
        batch = (features, labels, weights)
        return accumulate(self._loss_and_gradients, batch, steps, self.model.trainable_variables)

    def _loss_and_gradients(self, features, labels, weights):
        with tf.GradientTape() as tape:
            outputs = self.model(features, training=True)
            loss = self.model.compute_loss(features, labels, outputs, weights, training=True)
            # Slices are of equal size and the optimizer sums gradients over replicas.
            scaled_loss = self.optimizer.scale_loss(loss / self.distribute_strategy.num_replicas_in_sync)
        return loss, tape.gradient(scaled_loss, self.model.trainable_variables)


def _with_fast_elementwise(compute, features, labels, weights):
    with replaced(fast_elementwise):
        return compute(features, labels, weights)


def weighted_means(model, dataset: Iterable, strategy: tf.distribute.Strategy | None = None) -> dict[str, float]:
    """Weighted means over an evaluation set of `model.sample_metrics`.

    Args:
        model: a `MaskedAutoencoder` or `Classifier`.
        dataset: batches (features, labels, weights), or the strategy's distributed data set; weight 0 marks padding.
        strategy: whose replicas share the batches.

    Returns:
        Name -> mean; `samples` holds the sum of the weights.
    """
    strategy = strategy or tf.distribute.get_strategy()
    sums: dict[str, float] = {}
    evaluate = _evaluate_function(model, strategy)
    if isinstance(dataset, tf.data.Dataset):
        dataset = strategy.experimental_distribute_dataset(dataset)
    for batch in dataset:
        for name, value in evaluate(batch).items():
            sums[name] = sums.get(name, 0.0) + float(value)
    if not sums.get("samples"):
        raise ValueError("The evaluation set is empty: no sample of weight above 0.")
    return {name: value if name == "samples" else value / sums["samples"] for name, value in sums.items()}


def _evaluate_function(model, strategy):
    """The compiled evaluation step, kept with the model: tracing it anew for each evaluation takes seconds."""
    if getattr(model, "_evaluate_function", None) is None:

        def evaluate_replica(features, labels, weights):
            metrics = model.sample_metrics(features, labels, model(features, training=False))
            sums = {name: tf.reduce_sum(values * weights) for name, values in metrics.items()}
            return {**sums, "samples": tf.reduce_sum(weights)}

        @tf.function(reduce_retracing=True, autograph=False)
        def evaluate(batch):
            outputs = strategy.run(evaluate_replica, args=batch)
            return {name: strategy.reduce("SUM", value, axis=None) for name, value in outputs.items()}

        model._evaluate_function = evaluate
    return model._evaluate_function
