"""DALL-E's layout against NumPy loops over the state dict, and what the converter refuses."""

import hashlib
import json

import numpy as np
import pytest
from fixtures.commands import run_command

from keras_mae.models.token_networks import squeezed_pixels
from keras_mae.pretrain_tokenizer import load_tokenizer
from keras_mae.training.model_card import read_card
from tools import convert_tokenizer

CHANNELS, NUM_CODES, HIDDEN_DIM, CODE_DIM, BLOCKS = 2, 6, 4, 5, 2
KERNELS = {"encoder": (3, 3, 3, 1), "decoder": (1, 3, 3, 3)}


def make_state(half):
    """Random arrays by DALL-E's names."""
    rng = np.random.default_rng(0)
    state = {}

    def convolution(name, inputs, outputs, side):
        state[f"{name}.w"] = rng.normal(0, 1 / np.sqrt(inputs * side**2), (outputs, inputs, side, side))
        state[f"{name}.b"] = rng.normal(0, 0.1, outputs)

    factors = (1, 2, 4, 8) if half == "encoder" else (8, 4, 2, 1)
    if half == "encoder":
        convolution("blocks.input", CHANNELS, HIDDEN_DIM, 7)
        dim = HIDDEN_DIM
    else:
        convolution("blocks.input", NUM_CODES, CODE_DIM, 1)
        dim = CODE_DIM
    for group, factor in enumerate(factors, 1):
        for block in range(1, BLOCKS + 1):
            new_dim, name = factor * HIDDEN_DIM, f"blocks.group_{group}.block_{block}"
            if dim != new_dim:
                convolution(f"{name}.id_path", dim, new_dim, 1)
            dims = (dim, new_dim // 4, new_dim // 4, new_dim // 4, new_dim)
            for i, side in enumerate(KERNELS[half]):
                convolution(f"{name}.res_path.conv_{i + 1}", dims[i], dims[i + 1], side)
            dim = new_dim
    convolution("blocks.output.conv", dim, NUM_CODES if half == "encoder" else 2 * CHANNELS, 1)
    return {name: array.astype("float32") for name, array in state.items()}


def convolved(x, state, name):
    """Convolution of (batch, channels, height, width) by sliding windows."""
    kernel, bias = state[f"{name}.w"], state[f"{name}.b"]
    margin = kernel.shape[-1] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (margin, margin), (margin, margin)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[2:], axis=(2, 3))
    return np.einsum("bchwij,ocij->bohw", windows, kernel) + bias[:, None, None]


def run_half(half, state, x):
    """Forward pass of encoder or decoder as arXiv 2102.12092 and the layout's names say."""
    x = convolved(x, state, "blocks.input")
    for group in range(1, 5):
        for block in range(1, BLOCKS + 1):
            name, residual = f"blocks.group_{group}.block_{block}", x
            for i in range(1, 5):
                residual = convolved(np.maximum(residual, 0), state, f"{name}.res_path.conv_{i}")
            shortcut = convolved(x, state, f"{name}.id_path") if f"{name}.id_path.w" in state else x
            x = shortcut + residual / (4 * BLOCKS) ** 2
        if group < 4 and half == "encoder":
            batch, dim, height, width = x.shape
            x = x.reshape(batch, dim, height // 2, 2, width // 2, 2).max(axis=(3, 5))
        elif group < 4:
            x = x.repeat(2, axis=2).repeat(2, axis=3)
    return convolved(np.maximum(x, 0), state, "blocks.output.conv")


def test_encoder_computes_what_numpy_makes_of_the_state_dict():
    state = make_state("encoder")
    encoder = convert_tokenizer.build(state)
    assert (encoder.channels, encoder.num_codes, encoder.hidden_dim, encoder.blocks_per_group) == (2, 6, 4, 2)
    image = np.random.randint(0, 256, (2, 24, 16, CHANNELS)).astype("uint8")
    expected = run_half("encoder", state, np.asarray(squeezed_pixels(image)).transpose(0, 3, 1, 2))
    np.testing.assert_allclose(encoder(image), expected.transpose(0, 2, 3, 1), atol=1e-5)


def test_decoder_computes_what_numpy_makes_of_the_state_dict():
    state = make_state("decoder")
    tokenizer = convert_tokenizer.build(make_state("encoder"), state)
    assert (tokenizer.code_dim, tokenizer.blocks_per_group) == (5, 2)
    codes = np.random.dirichlet(np.ones(NUM_CODES), (2, 3, 2)).astype("float32")
    expected = run_half("decoder", state, codes.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(tokenizer.decoder(codes), expected.transpose(0, 2, 3, 1), atol=1e-5)


def test_the_command_reads_safetensors_and_writes_what_loads(tmp_path, capsys):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    for half in KERNELS:
        save_file(make_state(half), tmp_path / f"{half}.safetensors")
    flags = [f"--{half}={tmp_path / half}.safetensors" for half in KERNELS]
    output = tmp_path / "converted" / "tokenizer"
    assert run_command(convert_tokenizer, *flags, f"--output={output}", "--source_license=modified MIT") == 0
    assert "DiscreteVAE of 6 codes" in capsys.readouterr().out
    card = json.loads((output / "card.json").read_text())
    assert (card["source"], card["source_license"]) == ("encoder.safetensors, decoder.safetensors", "modified MIT")
    digests = [hashlib.sha256((tmp_path / f"{half}.safetensors").read_bytes()).hexdigest() for half in KERNELS]
    assert card["source_sha256"].split(", ") == digests
    assert "modified MIT" in (output / "README.md").read_text()
    expected = convert_tokenizer.build(*(make_state(half) for half in KERNELS))
    for a, b in zip(load_tokenizer(output).weights, expected.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_unknown_licence_is_said_and_that_of_a_card_beside_the_weights_is_kept(tmp_path, capsys):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    save_file(make_state("encoder"), tmp_path / "encoder.safetensors")
    flag = f"--encoder={tmp_path / 'encoder.safetensors'}"
    assert run_command(convert_tokenizer, flag, f"--output={tmp_path / 'a'}") == 0
    assert "licence of the source is not known" in capsys.readouterr().err
    assert read_card(tmp_path / "a" / "tokenizer.keras")["source_license"] == "unknown"
    (tmp_path / "card.json").write_text('{"source_license": "MIT"}')
    assert run_command(convert_tokenizer, flag, f"--output={tmp_path / 'b'}") == 0
    assert read_card(tmp_path / "b")["source_license"] == "MIT"
    assert "licence" not in capsys.readouterr().err


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


BROKEN = {
    "missing": (lambda s: without(s, "blocks.group_2.block_1.id_path.b"), r"Missing: \['blocks.group_2.block_1.id_"),
    "left over": (lambda s: {**s, "blocks.extra.w": s["blocks.input.w"]}, r"Left over: \['blocks.extra.w'\]"),
    "shape": (
        lambda s: {**s, "blocks.group_1.block_1.res_path.conv_2.w": np.zeros((1, 1, 5, 5), "float32")},
        r"conv_2.w of the encoder has another shape. .*Received: \(5, 5, 1, 1\)",
    ),
    "layout": (lambda s: without(s, "blocks.input.w"), "there is no blocks.input.w"),
    "rank": (lambda s: {**s, "blocks.input.w": np.zeros(3)}, "blocks.input.w must have 4 dimensions"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_leftovers_missing_names_and_shapes_are_named(name):
    change, sentence = BROKEN[name]
    with pytest.raises(ValueError, match=sentence):
        convert_tokenizer.build(change(make_state("encoder")))


def test_halves_of_different_models_are_refused():
    decoder = make_state("decoder")
    decoder["blocks.input.w"] = np.zeros((CODE_DIM, 7, 1, 1), "float32")
    with pytest.raises(ValueError, match="not of one model: num_codes is 6 there, 7 here"):
        convert_tokenizer.build(make_state("encoder"), decoder)


REFUSED = {
    "missing file": ("--encoder=/nowhere/encoder.pkl", "There is no file /nowhere/encoder.pkl"),
    "output": ("--output=tokenizer.keras", "--output names a new folder, which gets tokenizer.keras"),
    "full folder": ("--output=.", ". exists already; give another --output"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_command_refuses(name, capsys):
    flag, sentence = REFUSED[name]
    assert run_command(convert_tokenizer, "--encoder=encoder.pkl", "--output=converted", flag) == 1
    assert capsys.readouterr().err.startswith(f"ERROR: {sentence}")
