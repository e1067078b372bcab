"""Attention maps and patch similarities are those of the blocks; the figure is drawn for any number of channels."""

import numpy as np
import pytest
from fixtures.commands import run_command
from fixtures.shard_sets import encode
from fixtures.tiny_vit import TINY_VIT

from keras_mae.models import VisionTransformer
from keras_mae.training.saved_model import named_weights
from tools import attention
from tools.attention_maps import class_token_attention, patch_similarity

SIZES = {**TINY_VIT, "image_size": (8, 12), "patch_size": 4, "depth": 3}


@pytest.fixture(scope="module")
def encoder():
    encoder = VisionTransformer(**SIZES)
    encoder.build()
    rng = np.random.default_rng(0)
    for weight in encoder.weights:
        weight.assign(weight + rng.normal(0, 0.1, weight.shape))
    return encoder


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (2, 8, 12, 1), dtype="uint8")


def shortened(encoder, depth, final_norm):
    """An encoder with the first blocks of another."""
    shorter = VisionTransformer(**{**SIZES, "depth": depth, "final_norm": final_norm})
    shorter.build()
    weights = named_weights(encoder)
    for name, weight in named_weights(shorter).items():
        weight.assign(weights[name])
    return shorter


@pytest.mark.parametrize("block", [0, 2])
def test_the_maps_mix_the_values_to_what_the_block_makes_of_the_class_token(encoder, images, block):
    maps = class_token_attention(encoder, images, block)
    assert maps.shape == (2, 2, 2, 3)
    layer = encoder.blocks[block]
    x = layer.norm1(np.asarray(shortened(encoder, block, final_norm=False)(images)))
    values = np.asarray(layer.attention.qkv(x))[..., 32:].reshape(2, 7, 2, 8)  # (B, L, K, d)
    patches = maps.reshape(2, 2, 6)
    weights = np.concatenate([1 - patches.sum(axis=2, keepdims=True), patches], axis=2)  # (B, K, L)
    assert weights.min() > 0
    mixed = np.einsum("bkl,blkd->bkd", weights, values).reshape(2, 16)
    expected = np.asarray(layer.attention(x))[:, 0]
    np.testing.assert_allclose(np.asarray(layer.attention.projection(mixed)), expected, atol=1e-5)


def test_similarity_is_the_cosine_between_tokens(encoder, images):
    maps = patch_similarity(encoder, images, 1, (1, 2))
    tokens = np.asarray(shortened(encoder, 2, final_norm=True)(images), "float64")
    for number in range(2):
        patches = tokens[number, 1:].reshape(2, 3, 16)
        for place in np.ndindex(2, 3):
            a, b = patches[place], patches[1, 2]
            assert maps[number][place] == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)), abs=1e-5)
    np.testing.assert_allclose(maps[:, 1, 2], 1, atol=1e-6)


@pytest.fixture(scope="module")
def saved(encoder, tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder") / "encoder.keras"
    encoder.save(path)
    return path


def test_the_command_draws_a_figure(saved, images, tmp_path, capsys):
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for path, image in zip(paths, images, strict=True):
        path.write_bytes(encode(image[..., 0]))
    output = tmp_path / "figure.png"
    flags = (f"--encoder={saved}", f"--images={paths[0]},{paths[1]}", "--layer=-2", "--patch=1,0", f"--output={output}")
    assert run_command(attention, *flags) == 0
    assert "2 images, block 1, patch 1,0" in capsys.readouterr().out
    assert output.read_bytes().startswith(b"\x89PNG")


def test_wide_images_of_many_channels_are_drawn(tmp_path):
    images = np.random.default_rng(0).integers(0, 4000, (2, 8, 12, 5), dtype="uint16")
    maps = np.random.default_rng(1).random((2, 3, 2, 3))
    attention.draw(images, maps, maps[:, 0], (1, 2), tmp_path / "figure.svg")
    text = (tmp_path / "figure.svg").read_text()
    assert text.count("<image") == 2 * 5


REFUSED = {
    "no images": ((), "Give either --images=FILE,FILE or --data=SHARDS"),
    "output": (("--images=a.png", "--output=a.txt"), "--output must end in .png"),
    "layer": (("--images=a.png", "--layer=3"), "from -3 to 2. Received: [3]"),
    "patch": (("--images=a.png", "--patch=2,0"), "patch takes ROW,COLUMN, up to 1,2. Received: '2,0'"),
    "one number": (("--images=a.png", "--patch=2"), "Received: '2'"),
    "no such image": (("--images=/nowhere.png",), "There is no file /nowhere.png"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_command_refuses(name, saved, capsys):
    flags, sentence = REFUSED[name]
    assert run_command(attention, f"--encoder={saved}", *flags) == 1
    error = capsys.readouterr().err
    assert error.startswith("ERROR: ") and sentence in error
