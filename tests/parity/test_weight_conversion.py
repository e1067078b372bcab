"""Converted weights in the models of others, loaded by strict keys: equal outputs in both directions."""

import argparse
import pickle

import numpy as np
import pytest
from fixtures.commands import run_command
from fixtures.make_mae_reference import PIXEL_MEAN, PIXEL_STD, SIZES, build_reference, draw_batch

from tools import convert_weights

parity, timm = pytest.mark.parity, pytest.mark.timm

ENCODER = {key: SIZES[key] for key in ("image_size", "patch_size", "channels", "embed_dim", "depth", "num_heads")}
DECODER = {key: value for key, value in SIZES.items() if key.startswith("decoder_")}
HEADS = (f"--num_heads={SIZES['num_heads']}",)
ALL_HEADS = (*HEADS, f"--decoder_num_heads={SIZES['decoder_num_heads']}")
CLASSES = 7


def build(kind, **overrides):
    """Our model with random weights, the position table and the norms included."""
    from keras_mae.models import Classifier, MaskedAutoencoder, VisionTransformer

    encoder = VisionTransformer(**{**ENCODER, **overrides}, final_norm=kind != "classifier")
    if kind == "encoder":
        model = encoder
    else:
        model = MaskedAutoencoder(encoder, **DECODER) if kind == "mae" else Classifier(encoder, CLASSES)
    model.build()
    generator = np.random.default_rng(2)
    for weight in model.weights:
        weight.assign(weight + 0.1 * generator.standard_normal(weight.shape))
    return model


def save_ours(model, folder):
    from keras_mae.training.saved_model import export

    export(model, folder / "ours")
    return folder / "ours"


def convert(source, output, *flags):
    assert run_command(convert_weights, f"--input={source}", f"--output={output}", *flags) == 0
    return output


def pixels_of(image):
    """As PyTorch's models take them: normalised (B, C, H, W)."""
    import torch

    pixels = (image / np.float32(255) - PIXEL_MEAN) / PIXEL_STD
    return torch.tensor(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), "float32"))


def assert_equal(ours, theirs):
    """Float32 rounding: 1e-5 of the largest value."""
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


def load_theirs(kind, folder):
    """Hugging Face's model, with no key missing or left over."""
    import transformers

    name = "ViTMAEForPreTraining" if kind == "mae" else "ViTMAEModel"
    model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


@parity
def test_our_autoencoder_in_hugging_face(tmp_path):
    import torch

    ours = build("mae")
    theirs = load_theirs("mae", convert(save_ours(ours, tmp_path), tmp_path / "theirs", "--to=huggingface"))
    image, noise = draw_batch(SIZES)
    expected = theirs(pixel_values=pixels_of(image), noise=torch.tensor(noise))
    features = {"image": image, "noise": noise}
    outputs = ours(features)
    assert_equal(outputs["prediction"], expected.logits)
    assert float(ours.compute_loss(features, y_pred=outputs)) == pytest.approx(expected.loss.item(), rel=1e-6)


@parity
def test_our_encoder_in_hugging_face(tmp_path):
    import torch

    ours = build("encoder")
    theirs = load_theirs("encoder", convert(save_ours(ours, tmp_path), tmp_path / "theirs", "--to=huggingface"))
    theirs.embeddings.config.mask_ratio = 0.0
    image, noise = draw_batch(SIZES)
    in_order = torch.tensor(np.sort(noise, axis=1))  # they shuffle the patches by the noise even if all stay
    assert_equal(ours(image), theirs(pixel_values=pixels_of(image), noise=in_order).last_hidden_state)


@parity
@pytest.mark.parametrize("how", ["saved", "parameters"])
def test_hugging_faces_autoencoder_in_ours(tmp_path, how):
    """As transformers saves it, and by the names that its parameters have, which are others."""
    import torch
    from safetensors.torch import save_file

    from keras_mae.training.saved_model import load_model

    theirs = build_reference(SIZES, norm_pix_loss=False)
    theirs.save_pretrained(tmp_path / "theirs")
    flags = ()
    if how == "parameters":
        (tmp_path / "theirs" / "config.json").unlink()
        save_file(dict(theirs.state_dict()), tmp_path / "theirs" / "model.safetensors")
        flags = (*ALL_HEADS, "--nonorm_pix_loss")
    ours = load_model(convert(tmp_path / "theirs", tmp_path / "out", *flags) / "mae.keras")
    assert not ours.norm_pix_loss
    image, noise = draw_batch(SIZES)
    expected = theirs(pixel_values=pixels_of(image), noise=torch.tensor(noise))
    assert_equal(ours({"image": image, "noise": noise})["prediction"], expected.logits)


@parity
@pytest.mark.parametrize("form", ["model", "bare"])
def test_pytorch_files_are_read(tmp_path, form):
    """As the official code saves in training: flags beside the weights; and a bare dict of tensors."""
    import torch
    from safetensors.torch import load_file

    from keras_mae.training.saved_model import load_model, named_weights

    folder = convert(save_ours(build("mae"), tmp_path), tmp_path / "theirs", "--to=official")
    tensors = load_file(folder / "model.safetensors")
    content = {"model": tensors, "epoch": 3, "args": argparse.Namespace(lr=0.1)} if form == "model" else tensors
    torch.save(content, tmp_path / "weights.pth")
    ours = load_model(convert(tmp_path / "weights.pth", tmp_path / "out", *ALL_HEADS) / "mae.keras")
    expected = named_weights(load_model(tmp_path / "ours" / "mae.keras"))
    for name, variable in named_weights(ours).items():
        np.testing.assert_array_equal(variable, expected[name], err_msg=name)


class Harmful:
    """What a pickle may do when it is loaded."""

    def __reduce__(self):
        return (eval, ("open('harm', 'w').close()",))


@parity
@pytest.mark.parametrize("form", ["code", "damaged", "no tensors"])
def test_pytorch_files_that_are_no_weights_are_refused(tmp_path, form, capsys, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    if form == "code":
        path.write_bytes(pickle.dumps({"model": Harmful()}, protocol=2))
    elif form == "damaged":
        torch.save({"model": {"cls_token": torch.ones(1, 1, 100)}}, path)
        path.write_bytes(path.read_bytes()[:300])
    else:
        torch.save({"model": {"cls_token": 1}}, path)
    assert run_command(convert_weights, f"--input={path}", f"--output={tmp_path / 'out'}") == 1
    error = capsys.readouterr().err
    assert error.startswith("ERROR: ") and "weights.pth" in error and error.count("\n") == 1
    assert not (tmp_path / "harm").exists() and not (tmp_path / "out").exists()


def timm_model(**overrides):
    """timm's ViT of our sizes, with random weights everywhere."""
    import torch
    from timm.models.vision_transformer import VisionTransformer

    arguments = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 0}
    model = VisionTransformer(**{**arguments, **overrides}).eval()
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data = parameter.data + 0.1 * torch.randn_like(parameter)
    return model


FINE_TUNED = {"num_classes": CLASSES, "global_pool": "avg"}


@timm
@pytest.mark.parametrize("image_size", [(16, 16), (8, 20)])
def test_our_encoder_in_timm(tmp_path, image_size):
    from safetensors.torch import load_file

    ours, theirs = build("encoder", image_size=image_size), timm_model(img_size=image_size)
    folder = convert(save_ours(ours, tmp_path), tmp_path / "theirs", "--to=timm")
    theirs.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    image = np.random.default_rng(0).integers(0, 256, (2, *image_size, 3), dtype="uint8")
    assert_equal(ours(image), theirs.forward_features(pixels_of(image)))
    again = convert(folder, tmp_path / "again")  # without a flag: our header tells heads and image size
    from keras_mae.training.saved_model import load_encoder

    np.testing.assert_array_equal(load_encoder(again)(image), ours(image))


@timm
def test_our_classifier_in_timm(tmp_path):
    from safetensors.torch import load_file

    ours, theirs = build("classifier"), timm_model(**FINE_TUNED)
    folder = convert(save_ours(ours, tmp_path), tmp_path / "theirs", "--to=timm")
    theirs.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    image, _ = draw_batch(SIZES)
    assert_equal(ours(image), theirs(pixels_of(image)))


@timm
@pytest.mark.parametrize("kind", ["encoder", "classifier"])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_timms_model_in_ours(tmp_path, kind, suffix):
    import torch
    from safetensors.torch import save_file

    from keras_mae.training.saved_model import load_model

    theirs = timm_model(**FINE_TUNED if kind == "classifier" else {})
    path = tmp_path / f"weights.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(dict(theirs.state_dict()), path)
    ours = load_model(convert(path, tmp_path / "out", *HEADS))
    image, _ = draw_batch(SIZES)
    expected = theirs(pixels_of(image)) if kind == "classifier" else theirs.forward_features(pixels_of(image))
    assert_equal(ours(image), expected)
