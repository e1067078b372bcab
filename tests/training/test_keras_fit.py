"""The adaptation of Keras' `fit`: which Keras it is for, and whether Keras still needs it."""

import keras
import pytest
from fixtures.worker_processes import finish, run_workers, start

from keras_mae.training.keras_fit import WorkersModel, check_version

# Two steps of a linear model on constant data; the data set is as `pipeline.distribute` makes it.
FIT = """
import os, sys
from absl import flags
import keras, numpy as np, tensorflow as tf
from keras_mae.run_flags import define_strategy_flags, worker_flags
from keras_mae.training.keras_fit import WorkersModel
from keras_mae.training.strategy import make_strategy

define_strategy_flags()
flags.FLAGS(["fit", *sys.argv[2:]])
strategy = make_strategy("auto", worker_flags(flags.FLAGS))
with strategy.scope():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    if sys.argv[1] == "ours":

        class Ours(WorkersModel):
            def __init__(self):
                super().__init__()
                self.layer, self.built = model, True

            def train_step(self, data):
                features, labels = data
                with tf.GradientTape() as tape:
                    loss = tf.reduce_mean((self.layer(features) - labels) ** 2)
                    scaled = loss / self.distribute_strategy.num_replicas_in_sync
                variables = self.layer.trainable_variables
                self.optimizer.apply_gradients(zip(tape.gradient(scaled, variables), variables))
                return {"loss": loss}

        trained = Ours()
    else:
        trained = model
    trained.compile("sgd", "mse")

def load(context):
    return tf.data.Dataset.from_tensors((np.ones((2, 3), "f4"), np.ones((2, 1), "f4"))).repeat()

data = strategy.distribute_datasets_from_function(load)
history = trained.fit(data, steps_per_epoch=2, verbose=0, shuffle=False)
print("FITTED", history.history["loss"][0])
"""


def test_another_keras_is_refused_with_the_version_to_install():
    check_version(keras.__version__)
    check_version("3.15.9")
    for version in ("3.16.0", "4.15.0"):
        with pytest.raises(ImportError, match=f"Training needs Keras 3.15.* Received: Keras {version}"):
            check_version(version)


def test_keras_still_has_what_is_overridden():
    assert callable(keras.Model._maybe_symbolic_build) and callable(keras.Model.make_train_function)
    assert WorkersModel._maybe_symbolic_build is not keras.Model._maybe_symbolic_build


@pytest.mark.slow
def test_our_fit_runs_in_two_workers(tmp_path):
    texts = run_workers(2, ["-c", FIT, "ours"], tmp_path)
    losses = [text.split("FITTED ")[1] for text in texts]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_the_fit_of_keras_runs_in_one_process(tmp_path):
    (text,) = finish([start(tmp_path / "log", ["-c", FIT, "keras"])])
    assert "FITTED" in text


@pytest.mark.slow
def test_the_fit_of_keras_still_fails_in_two_workers(tmp_path):
    """When this test fails, Keras does not need `keras_mae/training/keras_fit.py` any more."""
    texts = run_workers(2, ["-c", FIT, "keras"], tmp_path, codes=[1, 1])
    for text in texts:
        assert "FITTED" not in text
        assert "Attempt to convert a value" in text or "Invalid reduction dimension 0" in text
