"""One check for every layer and model: shapes, weights, config, saving, mixed precision, gradients."""

import importlib
import inspect
import json
import pkgutil
from dataclasses import dataclass

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mae.layers
import keras_mae.models
from keras_mae.layers import (
    BlockMasking,
    DropPath,
    GridMasking,
    PatchEmbedding,
    PositionEmbedding,
    RandomMasking,
    SelfAttention,
    TransformerBlock,
)
from keras_mae.layers.batch_norm import BatchNorm
from keras_mae.layers.dense import Dense
from keras_mae.layers.elementwise import LayerNorm
from keras_mae.models import Classifier, LinearProbe, MaskedAutoencoder, VisionTransformer
from keras_mae.models.decoder import Decoder
from keras_mae.models.discrete_vae import DiscreteVAE
from keras_mae.models.pca_target import PCATarget
from keras_mae.models.targets import PixelTarget
from keras_mae.models.token_networks import ResidualBlock, TokenDecoder, TokenEncoder
from keras_mae.models.token_target import TokenTarget

ENCODER = {"image_size": (8, 12), "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}
# qkv, projection, MLP, norms
BLOCK_PARAMETERS = (8 * 24 + 24) + (8 * 8 + 8) + (8 * 32 + 32) + (32 * 8 + 8) + 4 * 8
# class token, patches, positions, block; no norm
ENCODER_PARAMETERS = 8 + (48 * 8 + 8) + 7 * 8 + BLOCK_PARAMETERS


def floats(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype("float32")


def uniform(*shape):
    return np.random.default_rng(1).uniform(size=shape).astype("float32")


def images():
    return np.random.default_rng(2).integers(0, 256, (2, 8, 12, 3), dtype="uint8")


def pictures():
    return np.random.default_rng(2).integers(0, 256, (2, 8, 16, 3), dtype="uint8")


def residual_parameters(inputs, dim, sides, shortcut):
    dims = (inputs, dim // 4, dim // 4, dim // 4, dim)
    count = sum(dims[i] * dims[i + 1] * side**2 + dims[i + 1] for i, side in enumerate(sides))
    return count + (inputs * dim + dim if shortcut else 0)


# Of a discrete VAE with 5 codes of 16 numbers, 16 channels wide at first, one block in each of four groups
TOKEN_ENCODER_PARAMETERS = (
    (7 * 7 * 3 * 16 + 16)
    + residual_parameters(16, 16, (3, 3, 3, 1), False)
    + sum(residual_parameters(16 * 2**i, 32 * 2**i, (3, 3, 3, 1), True) for i in range(3))
    + (128 * 5 + 5)
)
TOKEN_DECODER_PARAMETERS = (
    (5 * 16 + 16)
    + residual_parameters(16, 128, (1, 3, 3, 3), True)
    + sum(residual_parameters(128 // 2**i, 64 // 2**i, (1, 3, 3, 3), True) for i in range(3))
    + (16 * 6 + 6)
)


@dataclass
class Case:
    """A layer, its inputs (functions that make them), and what is expected; dtypes under mixed_bfloat16."""

    build: callable
    inputs: tuple
    shapes: object
    num_weights: int = 0
    num_parameters: int = 0
    num_trainable: int | None = None  # all weights, unless said
    dtypes: object = "bfloat16"


CASES = {
    BatchNorm: Case(
        lambda **kw: BatchNorm(**kw),
        (floats(2, 8),),
        (2, 8),
        num_weights=2,
        num_parameters=16,
        num_trainable=0,
        dtypes="float32",
    ),
    BlockMasking: Case(
        lambda **kw: BlockMasking(0.5, (2, 3), seed=3, **kw),
        (floats(2, 6, 4), uniform(2, 6 + 32 * 4)),
        ((2, 3), (2, 6), (2, 6)),
        dtypes=("int32", "int32", "float32"),
    ),
    Dense: Case(lambda **kw: Dense(5, **kw), (floats(2, 3, 4),), (2, 3, 5), num_weights=2, num_parameters=25),
    DropPath: Case(lambda **kw: DropPath(0.5, seed=3, **kw), (floats(2, 3, 4),), (2, 3, 4)),
    GridMasking: Case(
        lambda **kw: GridMasking(0.75, (2, 3), seed=3, **kw),
        (floats(2, 6, 4), uniform(2, 6 + 1)),
        ((2, 1), (2, 6), (2, 6)),
        dtypes=("int32", "int32", "float32"),
    ),
    LayerNorm: Case(lambda **kw: LayerNorm(**kw), (floats(2, 6, 8),), (2, 6, 8), num_weights=2, num_parameters=16),
    PCATarget: Case(
        lambda **kw: PCATarget(np.linspace(-1, 1, 48), np.eye(5, 48), **kw),
        (images(), floats(2, 6, 48)),
        (2, 6, 5),
        dtypes="float32",
    ),
    PixelTarget: Case(lambda **kw: PixelTarget(48, **kw), (images(), floats(2, 6, 48)), (2, 6, 48), dtypes="float32"),
    PatchEmbedding: Case(
        lambda **kw: PatchEmbedding(8, **kw),
        (floats(2, 6, 12),),
        (2, 6, 8),
        num_weights=2,
        num_parameters=104,
    ),
    PositionEmbedding: Case(
        lambda **kw: PositionEmbedding((2, 3), 8, **kw),
        (np.array([[1, 0, 5, 2], [3, 4, 0, 1]], "int32"),),
        ((1, 8), (2, 4, 8)),
        num_weights=1,
        num_parameters=56,
        dtypes=("bfloat16", "bfloat16"),
    ),
    RandomMasking: Case(
        lambda **kw: RandomMasking(0.5, seed=3, **kw),
        (floats(2, 6, 4), uniform(2, 6)),
        ((2, 3), (2, 6), (2, 6)),
        dtypes=("int32", "int32", "float32"),
    ),
    SelfAttention: Case(
        lambda **kw: SelfAttention(2, **kw),
        (floats(2, 5, 8),),
        (2, 5, 8),
        num_weights=4,
        num_parameters=4 * 8 * 8 + 4 * 8,
    ),
    TransformerBlock: Case(
        lambda **kw: TransformerBlock(2, mlp_ratio=4.0, drop_path_rate=0.25, **kw),
        (floats(2, 5, 8),),
        (2, 5, 8),
        num_weights=12,
        num_parameters=BLOCK_PARAMETERS,
    ),
    Decoder: Case(
        lambda **kw: Decoder((2, 3), 48, embed_dim=8, depth=1, num_heads=2, **kw),
        (floats(2, 3, 12), np.array([[1, 0, 5, 2, 3, 4], [3, 4, 0, 1, 2, 5]], "int32")),
        (2, 6, 48),
        num_weights=1 + 2 + 1 + 12 + 2 + 2,
        num_parameters=8 + (12 * 8 + 8) + 7 * 8 + BLOCK_PARAMETERS + 16 + (8 * 48 + 48),
        num_trainable=19,
    ),
    VisionTransformer: Case(
        lambda **kw: VisionTransformer(**ENCODER, **kw),
        (images(),),
        (2, 7, 8),
        num_weights=4 + 12 + 2,
        num_parameters=ENCODER_PARAMETERS + 16,
        num_trainable=17,
    ),
    MaskedAutoencoder: Case(
        lambda **kw: MaskedAutoencoder(VisionTransformer(**ENCODER, **kw), 8, 1, 2, mask_ratio=0.5, **kw),
        ({"image": images(), "noise": uniform(2, 6)},),
        {"prediction": (2, 6, 48), "mask": (2, 6), "latent": (2, 4, 8)},
        num_weights=18 + 20,
        num_parameters=(ENCODER_PARAMETERS + 16) + 8 + (8 * 8 + 8) + 7 * 8 + BLOCK_PARAMETERS + 16 + (8 * 48 + 48),
        num_trainable=36,
        dtypes={"prediction": "bfloat16", "mask": "float32", "latent": "bfloat16"},
    ),
    Classifier: Case(
        lambda **kw: Classifier(VisionTransformer(**ENCODER, final_norm=False, **kw), 5, **kw),
        (images(),),
        (2, 5),
        num_weights=16 + 2 + 2,
        num_parameters=ENCODER_PARAMETERS + 16 + 8 * 5 + 5,
        dtypes="float32",
    ),
    LinearProbe: Case(
        lambda **kw: LinearProbe(VisionTransformer(**ENCODER, **kw), 5, **kw),
        (images(),),
        (2, 5),
        num_weights=18 + 2 + 2,
        num_parameters=ENCODER_PARAMETERS + 16 + 16 + 8 * 5 + 5,
        num_trainable=2,
        dtypes="float32",
    ),
    ResidualBlock: Case(
        lambda **kw: ResidualBlock(8, (3, 3, 3, 1), 0.25, True, **kw),
        (floats(2, 6, 4, 4),),
        (2, 6, 4, 8),
        num_weights=10,
        num_parameters=residual_parameters(4, 8, (3, 3, 3, 1), True),
    ),
    TokenEncoder: Case(
        lambda **kw: TokenEncoder(3, 5, 16, 1, **kw),
        (pictures(),),
        (2, 1, 2, 5),
        num_weights=42,
        num_parameters=TOKEN_ENCODER_PARAMETERS,
        dtypes="float32",
    ),
    TokenDecoder: Case(
        lambda **kw: TokenDecoder(3, 16, 1, 16, **kw),
        (floats(2, 1, 2, 5),),
        (2, 8, 16, 6),
        num_weights=44,
        num_parameters=TOKEN_DECODER_PARAMETERS,
        dtypes="float32",
    ),
    DiscreteVAE: Case(
        lambda **kw: DiscreteVAE(3, 5, 16, 1, 16, **kw),
        (pictures(),),
        {"scores": (2, 1, 2, 5), "pixels": (2, 8, 16, 6)},
        num_weights=86,
        num_parameters=TOKEN_ENCODER_PARAMETERS + TOKEN_DECODER_PARAMETERS,
        dtypes={"scores": "float32", "pixels": "float32"},
    ),
    TokenTarget: Case(
        lambda **kw: TokenTarget(TokenEncoder(3, 5, 16, 1), **kw),
        (pictures(), floats(2, 8, 48)),
        (2, 8),
        num_weights=42,
        num_parameters=TOKEN_ENCODER_PARAMETERS,
        num_trainable=0,
        dtypes="int32",
    ),
}
EVERY_LAYER = pytest.mark.parametrize("case", CASES.values(), ids=[cls.__name__ for cls in CASES])


def layers_defined_in(package):
    """Layer classes that the package's own modules define."""
    modules = [importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    return {
        value
        for module in modules
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, keras.layers.Layer) and value.__module__ == module.__name__
    }


def describe(attribute, outputs):
    """The outputs' shapes or dtypes in the outputs' own structure."""
    read = {"shape": lambda x: tuple(x.shape), "dtype": lambda x: keras.backend.standardize_dtype(x.dtype)}
    if isinstance(outputs, dict):
        return {key: read[attribute](value) for key, value in outputs.items()}
    if isinstance(outputs, (tuple, list)):
        return tuple(read[attribute](value) for value in outputs)
    return read[attribute](outputs)


def arrays(outputs):
    return [keras.ops.convert_to_numpy(keras.ops.cast(x, "float32")) for x in keras.tree.flatten(outputs)]


def test_no_layer_is_forgotten():
    assert set(CASES) == layers_defined_in(keras_mae.layers) | layers_defined_in(keras_mae.models)


@pytest.mark.parametrize("cls", CASES, ids=lambda cls: cls.__name__)
def test_layer_is_registered_under_our_package(cls):
    assert keras.saving.get_registered_name(cls) == f"keras_mae>{cls.__name__}"


@EVERY_LAYER
def test_shape_and_weight_count(case):
    layer = case.build()
    outputs = layer(*case.inputs)
    trainable = case.num_weights if case.num_trainable is None else case.num_trainable
    assert describe("shape", outputs) == case.shapes
    assert (len(layer.weights), layer.count_params()) == (case.num_weights, case.num_parameters)
    assert len(layer.trainable_weights) == trainable


@EVERY_LAYER
def test_config_holds_the_constructor_arguments_and_round_trips(case):
    layer = case.build()
    config = layer.get_config()
    arguments = set(inspect.signature(type(layer).__init__).parameters) - {"self", "kwargs"}
    assert set(config) - {"name", "trainable", "dtype"} == arguments
    json.dumps(config)
    for _ in range(2):  # a second time: from_config leaves its argument as it was
        assert type(layer).from_config(config).get_config() == config


@EVERY_LAYER
@pytest.mark.parametrize("policy", [pytest.param("float32", marks=pytest.mark.slow), "mixed_bfloat16"])
def test_saved_layer_computes_the_same(case, policy, tmp_path):
    layer = case.build(dtype=policy)
    inputs = [keras.tree.map_structure(lambda x: keras.Input(x.shape[1:], dtype=x.dtype), x) for x in case.inputs]
    model = keras.Model(inputs, layer(*inputs))
    for weight in layer.trainable_weights:
        weight.assign(weight + np.random.uniform(0.1, 0.2, weight.shape))  # nothing stays as initialised
    expected = arrays(model(list(case.inputs)))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for a, b in zip(arrays(loaded(list(case.inputs))), expected, strict=True):
        np.testing.assert_array_equal(a, b)


@EVERY_LAYER
def test_mixed_precision(case):
    layer = case.build()
    expected = arrays(layer(*case.inputs))
    for half in ("bfloat16", "float16"):
        mixed = case.build(dtype=f"mixed_{half}")
        mixed(*case.inputs)
        mixed.set_weights(layer.get_weights())
        outputs = mixed(*case.inputs)
        dtypes = keras.tree.map_structure(lambda dtype, half=half: half if dtype == "bfloat16" else dtype, case.dtypes)
        assert describe("dtype", outputs) == dtypes
        assert {w.dtype for w in mixed.weights} <= {"float32"}
        for a, b in zip(arrays(outputs), expected, strict=True):
            np.testing.assert_allclose(a, b, atol=0.03 * (1 + np.abs(b).max()))


@EVERY_LAYER
def test_gradient_reaches_every_trainable_weight(case):
    layer = case.build()
    layer(*case.inputs)
    if not layer.trainable_weights:
        pytest.skip("nothing to train")
    with tf.GradientTape() as tape:
        outputs = [x for x in keras.tree.flatten(layer(*case.inputs)) if x.dtype == tf.float32]
        # Weighted by random numbers: the plain sum of a LayerNorm's output has no gradient.
        loss = sum(tf.reduce_sum(x * floats(*x.shape)) for x in outputs)
    gradients = tape.gradient(loss, [w.value for w in layer.trainable_weights])
    for weight, gradient in zip(layer.trainable_weights, gradients, strict=True):
        assert gradient is not None, weight.path
        assert np.any(arrays(gradient)[0] != 0) and np.all(np.isfinite(arrays(gradient)[0])), weight.path
