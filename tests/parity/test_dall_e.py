"""Our discrete VAE against PyPI's `dall-e` 0.1, randomly initialised, and the files that it would be published in."""

import keras
import numpy as np
import pytest
from fixtures.commands import run_command

from keras_mae.models.token_networks import squeezed_pixels
from keras_mae.models.token_target import TokenTarget
from tools import convert_tokenizer

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
dall_e = pytest.importorskip("dall_e")


@pytest.fixture(scope="module")
def halves():
    """Encoder and decoder of the smallest sizes that the package takes, biases drawn too."""
    torch.manual_seed(0)
    modules = dall_e.Encoder(n_hid=64, vocab_size=512), dall_e.Decoder(n_init=16, n_hid=64, vocab_size=512)
    for module in modules:
        for name, parameter in module.named_parameters():
            if name.endswith(".b"):
                parameter.data.normal_(std=0.1)
    return modules


@pytest.fixture(scope="module")
def tokenizer(halves):
    states = ({name: value.numpy() for name, value in module.state_dict().items()} for module in halves)
    return convert_tokenizer.build(*states)


def to_torch(x):
    return torch.from_numpy(np.array(x).transpose(0, 3, 1, 2))


def to_numpy(x):
    return x.detach().numpy().transpose(0, 2, 3, 1)


def images(side):
    return np.random.default_rng(0).integers(0, 256, (2, side, side, 3), dtype="uint8")


def test_pixel_mapping_is_equal():
    x = images(16)
    expected = to_numpy(dall_e.map_pixels(to_torch(x).float() / 255))
    np.testing.assert_allclose(squeezed_pixels(x), expected, atol=1e-6)


def test_scores_and_codes_are_equal(halves, tokenizer):
    x = images(48)
    expected = to_numpy(halves[0](dall_e.map_pixels(to_torch(x).float() / 255)))
    np.testing.assert_allclose(tokenizer.encoder(x), expected, atol=2e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(tokenizer.encoder.codes(x), expected.argmax(axis=-1))


def test_decoder_and_drawn_images_are_equal(halves, tokenizer):
    x = images(48)
    codes = torch.argmax(halves[0](dall_e.map_pixels(to_torch(x).float() / 255)), dim=1)
    one_hot = torch.nn.functional.one_hot(codes, 512).permute(0, 3, 1, 2).float()
    pixels = halves[1](one_hot)
    np.testing.assert_allclose(tokenizer(x)["pixels"], to_numpy(pixels), atol=1e-5)
    expected = to_numpy(dall_e.unmap_pixels(torch.sigmoid(pixels[:, :3]))) * 255
    assert np.abs(np.asarray(tokenizer.reconstruct(x), "float32") - expected).max() < 0.51  # rounded to whole values


def test_target_is_what_the_encoder_sees_of_the_image_at_eight_pixels_a_patch(halves, tokenizer):
    x = images(96)
    resized = torch.nn.functional.interpolate(to_torch(x).float() / 255, (48, 48), mode="bilinear", antialias=True)
    expected = torch.argmax(halves[0](dall_e.map_pixels(resized)), dim=1)
    codes = TokenTarget(tokenizer)(x, np.zeros((2, 36, 16 * 16 * 3), "float32"))
    np.testing.assert_array_equal(np.asarray(codes).reshape(2, 6, 6), expected)


@pytest.mark.parametrize("form", ["module", "state dict"])
def test_published_files_are_read_without_running_their_code(halves, tokenizer, tmp_path, form, capsys):
    names = ("encoder", "decoder")
    for name, module in zip(names, halves, strict=True):
        torch.save(module if form == "module" else module.state_dict(), tmp_path / f"{name}.pkl")
    output = tmp_path / "converted"
    flags = [f"--{name}={tmp_path / name}.pkl" for name in names]
    assert run_command(convert_tokenizer, *flags, f"--output={output}") == 0, capsys.readouterr().err
    for a, b in zip(keras.saving.load_model(output / "tokenizer.keras").weights, tokenizer.weights, strict=True):
        np.testing.assert_array_equal(a, b)


class Unknown(torch.nn.Linear):
    """A module whose class the converter does not expect."""


def test_another_pickle_is_refused(tmp_path, capsys):
    path = tmp_path / "encoder.pkl"
    torch.save(Unknown(2, 2), path)
    assert run_command(convert_tokenizer, f"--encoder={path}", f"--output={tmp_path / 'converted'}") == 1
    assert "encoder.pkl is no file of DALL-E's discrete VAE that can be read" in capsys.readouterr().err
