"""Our masked autoencoder against numbers that Hugging Face's computed (fixtures/make_mae_reference.py)."""

import numpy as np
import pytest
from fixtures.mae_comparison import assert_close, build_ours, compare
from fixtures.make_mae_reference import FIXTURE, SIZES


@pytest.fixture(scope="module")
def arrays():
    with np.load(FIXTURE) as file:
        return dict(file)


def part(arrays, prefix):
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


@pytest.mark.parametrize("target", ["normalized", "plain"])
def test_prediction_loss_and_gradients_equal_the_reference(arrays, target):
    weights = {name: value.astype("float32") for name, value in part(arrays, "weight/").items()}
    model = build_ours(SIZES, norm_pix_loss=target == "normalized", weights=weights)
    expected = {
        "prediction": arrays["prediction"],
        "mask": arrays["mask"],
        "loss": arrays[f"{target}/loss"],
        "gradients": part(arrays, f"{target}/gradient/"),
    }
    assert len(expected["gradients"]) == len(model.weights) - 2  # all but the position tables
    assert_close(compare(model, arrays["image"], arrays["noise"], expected))
