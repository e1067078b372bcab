"""The rules of conftest.py hold."""

import os

import numpy as np
import pytest


@pytest.mark.parametrize("module", ["keras_mae", "keras_mae.layers.patches", "pipeline.order", "tools.demo"])
def test_a_warning_of_our_packages_is_an_error(module):
    with pytest.raises(UserWarning, match="ours"):
        exec("import warnings; warnings.warn('ours')", {"__name__": module})


@pytest.mark.parametrize("module", ["keras", "keras_mae_plugin"])
@pytest.mark.filterwarnings("ignore:not ours")
def test_a_warning_of_other_packages_is_not(module):
    names = {"__name__": module}
    exec("import warnings; warnings.warn('not ours'); went_on = True", names)
    assert names["went_on"]


@pytest.mark.parametrize("again", [0, 1])
def test_every_test_starts_from_the_same_seed(again):
    assert np.random.randint(10**9) == np.random.RandomState(0).randint(10**9)


def test_no_gpu_is_visible():
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
