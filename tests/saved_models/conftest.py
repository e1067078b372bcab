"""A tiny encoder as SavedModel, and images for it."""

import numpy as np
import pytest
from fixtures.tiny_vit import TINY_VIT


@pytest.fixture(scope="session")
def encoder_export(tmp_path_factory):
    """Export folder of an encoder with new weights."""
    import keras

    from keras_mae.models import VisionTransformer
    from keras_mae.training.saved_model import export

    keras.utils.set_random_seed(0)
    encoder = VisionTransformer(**TINY_VIT)
    encoder.build()
    folder = tmp_path_factory.mktemp("encoder") / "export"
    export(encoder, folder)
    return folder


@pytest.fixture(scope="session")
def halves_file(tmp_path_factory):
    """An .npz file of 64 images that are bright on the left (class 0) or on the right (class 1)."""
    rng = np.random.default_rng(0)
    labels = np.arange(64) % 2
    images = rng.integers(0, 60, (64, 8, 8, 1), dtype="uint8")
    for image, label in zip(images, labels, strict=True):
        image[:, 4 * label : 4 * label + 4] += 180
    path = tmp_path_factory.mktemp("halves") / "halves.npz"
    np.savez(path, images=images, labels=labels)
    return path
