"""The models on the JAX and torch backends of Keras, against the TensorFlow backend, each in a process of its own."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from fixtures import backend_process

pytestmark = [pytest.mark.parity, pytest.mark.timeout(1800)]
ROOT = pathlib.Path(__file__).parents[2]
# Largest differences over the largest value. Measured: outputs 5e-7, losses 3e-7, weights 1e-7, gradients 9e-7, but in
# the discrete VAE 7e-6.
LIMITS = {"output": 1e-5, "loss": 1e-6, "losses": 1e-6, "gradient": 3e-5, "weight": 1e-6}
EXACT = ("output mask", "codes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where every backend has written what it found; TensorFlow was first, and wrote the weights."""
    pytest.importorskip("jax")
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("backends")
    for backend in ("tensorflow", "jax", "torch"):
        environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, backend_process.__file__, str(folder)]
        process = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert process.returncode == 0, f"{backend}: {process.stderr[-3000:]}"
    return folder


def read(folder, case, backend):
    with np.load(folder / f"{case}-{backend}.npz") as file:
        return dict(file)


def relative_difference(found, expected):
    """max|a - b| / max|b|"""
    assert found.shape == expected.shape
    largest = np.abs(expected).max()
    assert np.isfinite(largest) and largest > 0
    return np.abs(found.astype("float64") - expected).max() / largest


@pytest.mark.parametrize("backend", ["jax", "torch"])
@pytest.mark.parametrize("case", backend_process.CASES)
def test_outputs_losses_gradients_and_updates_are_those_of_tensorflow(folder, case, backend):
    found, expected = read(folder, case, backend), read(folder, case, "tensorflow")
    assert set(found) == set(expected)
    differences = {}
    for name, values in expected.items():
        if name in EXACT:
            np.testing.assert_array_equal(found[name], values, err_msg=name)
        elif name.split()[0] in LIMITS and name not in ("losses of AdamW", "losses alone"):
            differences[name] = relative_difference(found[name], values)
    for kind in LIMITS:
        worst = max((n for n in differences if n.split()[0] == kind), key=differences.get)
        print(f"{worst}: {differences[worst]:.1e}")  # shown with -rP
    assert {n: value for n, value in differences.items() if not value <= LIMITS[n.split()[0]]} == {}
    assert expected["losses"][-1] < expected["losses"][0] == pytest.approx(expected["loss"], rel=1e-6)


def test_the_tokens_that_are_compared_are_different_ones(folder):
    assert len(np.unique(read(folder, "tokens", "tensorflow")["codes"])) > 2


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_adamw_gives_the_losses_of_tensorflow(folder, backend):
    found, expected = read(folder, "default", backend), read(folder, "default", "tensorflow")
    difference = relative_difference(found["losses of AdamW"], expected["losses of AdamW"])
    print(f"{difference:.1e}")
    assert difference < 1e-5
    assert expected["losses of AdamW"][-1] < expected["losses of AdamW"][0]


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_a_plain_array_of_images_is_enough(folder, backend):
    losses = read(folder, "default", backend)["losses alone"]
    assert len(set(losses)) == len(losses) and np.isfinite(losses).all()
