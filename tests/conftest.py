"""Makes tests stricter than use: fixed seeds, CPU, and a warning that our own packages raise is an error."""

import contextlib
import os
import random
import sys

import numpy as np
import pytest
from fixtures.web_servers import serve

OUR_WARNINGS_ARE_ERRORS = r"error:::(keras_mae|pipeline|tools)(\.|$)"


def pytest_configure(config):
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if config.getoption("markexpr") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if config.getoption("markexpr").split(" and ")[0] in ("parity", "timm"):
        # torch brings triton on Linux, which crashes if TensorFlow was imported before it.
        with contextlib.suppress(ImportError):
            import triton  # noqa: F401
    config.addinivalue_line("filterwarnings", OUR_WARNINGS_ARE_ERRORS)
    # Keras 3.15 reading its own variables with NumPy 2
    config.addinivalue_line("filterwarnings", r"ignore:__array__ implementation:DeprecationWarning:keras\.")


@pytest.fixture(autouse=True)
def fixed_seed():
    random.seed(0)
    np.random.seed(0)
    if "keras" in sys.modules:  # tests of tools that do without TensorFlow stay fast when run alone
        sys.modules["keras"].utils.set_random_seed(0)


@pytest.fixture(autouse=True, scope="session")
def no_waiting_for_the_disk():
    """No test ends with a loss of power, and thousands of files would each wait for the disk, 10 ms and more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # refuses what is no open file, as fsync does
        yield


@pytest.fixture
def web_server():
    """Function from a folder to the URL of a web server that gives its files until the test ends."""
    with contextlib.ExitStack() as stack:
        yield lambda folder: stack.enter_context(serve(folder))
