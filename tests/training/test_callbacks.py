"""What happens around the steps of a run, without a model."""

import os
import signal

import pytest
import tensorflow as tf

from keras_mae.training.data_errors import DataError, named_data_errors
from keras_mae.training.interruption import stop_requests


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_handlers_come_back(number):
    before = signal.getsignal(number)
    with stop_requests() as requested:
        assert not requested()
        os.kill(os.getpid(), number)
        assert requested()
        assert signal.getsignal(number) is before  # a second signal ends the process as usual
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (
            r"Error in ParallelMapDatasetV2: assertion failed: [Sample of split \'train\' is bad:] [5] [a.tar]",
            "Sample of split 'train' is bad: 5 a.tar",
        ),
        ("[[IteratorGetNext]]\npipeline.manifest.ManifestError: train.idx is cut\nTraceback", "train.idx is cut"),
    ],
)
def test_the_pipelines_own_words_are_what_is_said(message, sentence):
    with pytest.raises(DataError, match=sentence), named_data_errors():
        raise tf.errors.InvalidArgumentError(None, None, message)


def test_errors_of_the_model_are_not_called_data_errors():
    with pytest.raises(tf.errors.InvalidArgumentError), named_data_errors():
        raise tf.errors.InvalidArgumentError(None, None, "Matrix size-incompatible: In[0]: [3,4], In[1]: [5,6]")
