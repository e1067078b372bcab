import numpy as np
import pytest
from keras import ops

from keras_mae.layers import PatchEmbedding, patchify, unpatchify


def patchify_in_loops(images, patch_size):
    """Oracle: rows of patches, then columns; inside a patch row, column, channel."""
    batch, height, width, channels = images.shape
    result = []
    for image in images:
        for top in range(0, height, patch_size):
            for left in range(0, width, patch_size):
                patch = [
                    image[top + y, left + x, c]
                    for y in range(patch_size)
                    for x in range(patch_size)
                    for c in range(channels)
                ]
                result.append(patch)
    return np.array(result).reshape(batch, -1, patch_size * patch_size * channels)


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (2, 4, 12, 3), (1, 12, 8, 1), (3, 8, 4, 5)])
@pytest.mark.parametrize("patch_size", [2, 4])
def test_unpatchify_inverts_patchify(shape, patch_size):
    images = np.random.standard_normal(shape).astype("float32")
    patches = patchify(ops.convert_to_tensor(images), patch_size)
    np.testing.assert_array_equal(unpatchify(patches, shape[1:3], patch_size), images)


@pytest.mark.parametrize(
    "shape, patch_size", [((2, 8, 8, 3), 4), ((2, 4, 12, 3), 2), ((1, 6, 9, 5), 3), ((1, 2, 4, 1), 2)]
)
def test_patchify_order_is_that_of_the_loop(shape, patch_size):
    images = np.random.standard_normal(shape).astype("float32")
    expected = patchify_in_loops(images, patch_size)
    np.testing.assert_array_equal(patchify(ops.convert_to_tensor(images), patch_size), expected)


def test_patchify_by_hand():
    image = np.arange(8).reshape(1, 2, 4, 1)  # two patches side by side
    np.testing.assert_array_equal(patchify(image, 2), [[[0, 1, 4, 5], [2, 3, 6, 7]]])


def test_patchify_keeps_the_dtype():
    assert patchify(ops.zeros((1, 4, 4, 3), "uint8"), 2).dtype == "uint8"


def test_patch_embedding_is_the_strided_convolution():
    images = np.random.standard_normal((2, 8, 12, 3)).astype("float32")
    layer = PatchEmbedding(6)
    tokens = layer(patchify(ops.convert_to_tensor(images), 4))
    kernel = ops.reshape(layer.kernel, (4, 4, 3, 6))
    expected = ops.reshape(ops.conv(images, kernel, strides=4) + layer.bias, (2, 6, 6))
    np.testing.assert_allclose(tokens, expected, atol=1e-5)
