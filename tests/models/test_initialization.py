"""Initial values: the reference's bounds and deviations, at the width of ViT-B."""

import math

import keras
import numpy as np
import pytest
from keras import ops

from keras_mae.models import Classifier, MaskedAutoencoder, VisionTransformer


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    encoder = VisionTransformer(image_size=32, embed_dim=768, depth=1, num_heads=12)
    model = MaskedAutoencoder(encoder, decoder_embed_dim=512, decoder_depth=1, decoder_num_heads=16)
    model.build()
    return model


def assert_uniform(weight, bound):
    values = ops.convert_to_numpy(weight)
    assert 0.99 * bound < np.abs(values).max() <= bound
    assert abs(values.std() / (bound / math.sqrt(3)) - 1) < 0.05
    assert abs(values.mean()) < 0.1 * bound


def assert_normal(weight, std):
    values = ops.convert_to_numpy(weight)
    assert abs(values.std() / std - 1) < 4 / math.sqrt(2 * values.size)  # 4 standard errors
    assert np.abs(values).max() > 2.5 * std  # not truncated at 2


def test_fused_qkv_has_the_fan_of_all_three(model):
    assert math.isclose(math.sqrt(6 / (4 * 768)), 0.0442, rel_tol=1e-3)
    assert_uniform(model.encoder.blocks[0].attention.qkv.kernel, math.sqrt(6 / (4 * 768)))
    assert_uniform(model.decoder.blocks[0].attention.qkv.kernel, math.sqrt(6 / (4 * 512)))


def test_patch_embedding_is_seen_as_a_matrix(model):
    assert_uniform(model.encoder.patch_embedding.kernel, 0.0625)  # sqrt(6 / (3 * 16 * 16 + 768))
    assert_uniform(model.encoder.patch_embedding.bias, 1 / math.sqrt(768))


def test_other_dense_layers_are_xavier_uniform(model):
    block, decoder = model.encoder.blocks[0], model.decoder
    assert_uniform(block.attention.projection.kernel, math.sqrt(6 / (768 + 768)))
    assert_uniform(block.mlp_hidden.kernel, math.sqrt(6 / (768 + 3072)))
    assert_uniform(block.mlp_output.kernel, math.sqrt(6 / (3072 + 768)))
    assert_uniform(decoder.embedding.kernel, math.sqrt(6 / (768 + 512)))
    assert_uniform(decoder.prediction.kernel, math.sqrt(6 / (512 + 768)))


def test_class_and_mask_token_are_normal(model):
    assert_normal(model.encoder.class_token, 0.02)
    assert_normal(model.decoder.mask_token, 0.02)


def test_biases_are_zero_and_scales_are_one(model):
    patch_bias = model.encoder.patch_embedding.bias
    constants = {"bias": 0, "beta": 0, "gamma": 1}
    weights = [w for w in model.weights if w.name in constants and w is not patch_bias]
    assert len(weights) == 2 * 8 + 2 * 2 + 2  # 8 a block, 2 for each final norm, embedding and prediction
    for weight in weights:
        np.testing.assert_array_equal(ops.convert_to_numpy(weight), constants[weight.name], err_msg=weight.path)


def test_every_layer_norm_has_the_small_epsilon(model):
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.LayerNormalization)]
    assert [norm.epsilon for norm in norms] == 6 * [1e-6]


def test_head_starts_near_zero_and_norm_has_the_small_epsilon():
    encoder = VisionTransformer(image_size=32, embed_dim=64, depth=0, num_heads=1, final_norm=False)
    classifier = Classifier(encoder, num_classes=1000)
    classifier.build()
    kernel = ops.convert_to_numpy(classifier.head.kernel)
    assert np.abs(kernel).max() <= 4e-5  # Keras truncates at two deviations of 2e-5
    assert 1.5e-5 < kernel.std() < 2.1e-5
    assert not np.any(ops.convert_to_numpy(classifier.head.bias))
    assert classifier.norm.epsilon == 1e-6
