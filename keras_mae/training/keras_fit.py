"""What `keras.Model.fit` needs to run on several workers: the one file that overrides private parts of Keras.

Keras 3's `fit` fails under MultiWorkerMirroredStrategy (tensorflow/tensorflow issue 72388, closed as stale; nothing has
changed in Keras 3.15) for two reasons in `keras/src/backend/tensorflow/trainer.py`:

- `_maybe_symbolic_build` reduces the structure of a whole first batch at once: "Attempt to convert a value (PerReplica
  ...) with an unsupported type".
- `reduce_per_replica` averages scalars over their axis 0: "Invalid reduction dimension 0 for input with 0 dimensions".

`tests/training/test_keras_fit.py` runs plain `fit` on two workers and fails when Keras does not need this any more.
"""

import re
import time
from collections.abc import Callable

import keras
import tensorflow as tf

TESTED = (3, 15)


def check_version(version: str) -> None:
    """Refuses a Keras whose private parts may be others.

    Raises:
        ImportError: with the version to install.
    """
    if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) != TESTED:
        wanted = ".".join(map(str, TESTED))
        raise ImportError(f"Training needs Keras {wanted}, whose `fit` it adapts. Received: Keras {version}")


check_version(keras.__version__)


class WorkersModel(keras.Model):
    """A model, built before `fit`, whose `fit` runs under every strategy of tf.distribute.

    A subclass has a `train_step` that returns float32 scalars of this replica's slice by name; `fit` sees their means
    over all replicas of all workers.

    Attributes:
        data_wait_seconds: time that steps have waited for their batch so far.
        stop_requested: asked before each step: whether this worker wants all of them to stop after it.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.data_wait_seconds = 0.0
        self.stop_requested: Callable[[], bool] = bool
        self._stop = 0.0

    def all_stop(self) -> bool:
        """Whether any worker wanted to stop before the last step; the answer is the same on all of them."""
        return float(self._stop) > 0.0

    def make_train_function(self, force=False):
        """The step that `fit` runs: as Keras', but the batch is fetched outside the compiled part, which is timed."""
        if self.train_function is not None and not force:
            return self.train_function
        strategy = self.distribute_strategy

        names = []  # of the outputs, known when the step is traced

        def replica_step(data, stop):
            outputs = self.train_step(data)
            names[:] = outputs
            return tf.stack([*outputs.values(), stop])  # one vector is one message between workers

        @tf.function(reduce_retracing=True, autograph=False)
        def step(data, stop):
            values = strategy.run(replica_step, args=(data, stop))
            *means, stop = tf.unstack(strategy.reduce("MEAN", values, axis=None))
            return dict(zip(names, means, strict=True)), stop

        flags = (tf.constant(0.0), tf.constant(1.0))

        def train_function(iterator):
            begin = time.perf_counter()
            data = next(iterator)
            self.data_wait_seconds += time.perf_counter() - begin
            outputs, self._stop = step(data, flags[bool(self.stop_requested())])
            return outputs

        self.train_function = train_function
        return train_function

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Nothing: the model is built already, and the symbolic build would read (and lose) a first batch."""
