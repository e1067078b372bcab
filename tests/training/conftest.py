"""A tiny encoder that several tests train."""

import numpy as np
import pytest
from fixtures.tiny_vit import TINY_VIT


@pytest.fixture
def tiny_encoder():
    from keras_mae.models import VisionTransformer

    encoder = VisionTransformer(**TINY_VIT)
    encoder.build()
    return encoder


@pytest.fixture
def halves():
    """16 images that are bright on the left (class 0) or on the right (class 1), and their classes."""
    rng = np.random.default_rng(0)
    labels = np.arange(16) % 2
    images = rng.integers(0, 60, (16, 8, 8, 1), dtype="uint8")
    for image, label in zip(images, labels, strict=True):
        image[:, 4 * label : 4 * label + 4] += 180
    return images, labels
