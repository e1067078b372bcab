"""Reconstructions at several mask ratios come from the same weights and nested masks, side by side in the figure."""

import numpy as np
import pytest
from fixtures.commands import run_command
from fixtures.shard_sets import encode
from fixtures.tiny_vit import TINY_VIT

from keras_mae.models import MaskedAutoencoder, TokenTarget, VisionTransformer
from keras_mae.models.token_networks import TokenEncoder
from keras_mae.training.saved_model import named_weights
from tools import reconstruct
from tools.reconstruct import make_panels, with_mask_ratio


def make_mae(**options):
    model = MaskedAutoencoder(VisionTransformer(**TINY_VIT), 16, 1, 2, norm_pix_loss=False, **options)
    model.build()
    return model


@pytest.fixture(scope="module")
def model():
    return make_mae()


@pytest.fixture(scope="module")
def images():
    """Without mid-grey, which stands for what is removed."""
    return np.random.default_rng(0).integers(0, 100, (3, 8, 8, 1), dtype="uint8")


def test_another_ratio_keeps_the_weights(model):
    other = with_mask_ratio(model, 0.5)
    assert (other.mask_ratio, model.mask_ratio) == (0.5, 0.75)
    weights = named_weights(model)
    for name, weight in named_weights(other).items():
        np.testing.assert_array_equal(weight, weights[name])
    assert with_mask_ratio(model, 0.75) is model


def test_higher_ratios_remove_what_lower_ones_do_and_more(model, images):
    ratios = (0.5, 0.75, 0.9)
    panels = make_panels([with_mask_ratio(model, ratio) for ratio in ratios], images, seed=3)
    titles = [title for title, _ in panels]
    assert titles == ["original", *sum((["masked " + r, "reconstruction"] for r in ("50%", "75%", "90%")), [])]
    removed = np.zeros((3, 4, 4), bool)
    for (_, masked), (_, reconstruction), ratio in zip(panels[1::2], panels[2::2], ratios, strict=True):
        grey = (masked.reshape(3, 4, 2, 4, 2) == 128).all(axis=(2, 4))
        assert (grey.sum(axis=(1, 2)) == 16 - int(16 * (1 - ratio))).all()
        assert (grey >= removed).all()
        removed = grey
        visible = ~grey.repeat(2, axis=1).repeat(2, axis=2)[..., None]
        np.testing.assert_array_equal(masked[visible], images[visible])
        np.testing.assert_array_equal(reconstruction[visible], images[visible])


@pytest.fixture(scope="module")
def saved(model, images, tmp_path_factory):
    """Folder as tools.convert_weights writes it, and an image."""
    folder = tmp_path_factory.mktemp("converted")
    model.save(folder / "mae.keras")
    (folder / "image.png").write_bytes(encode(images[0, ..., 0]))
    return folder


@pytest.mark.parametrize("ratios, size", [((), (1, 3)), (("--mask_ratios=.5,.75",), (5, 1))])
def test_the_figure_has_images_side_by_side_or_ratios(saved, tmp_path, monkeypatch, ratios, size):
    drawn = []
    original = reconstruct.draw
    monkeypatch.setattr(reconstruct, "draw", lambda *given: (drawn.append(given), original(*given)))
    output = tmp_path / "figure.svg"
    assert (
        run_command(reconstruct, f"--model={saved}", f"--images={saved / 'image.png'}", f"--output={output}", *ratios)
        == 0
    )
    ((panels, note, _),) = drawn
    text = output.read_text()
    assert text.count("<image") == len(panels) == size[0] * size[1]
    assert note == reconstruct.PLAIN_NOTE
    width, height = (float(text.split(f'{side}="')[1].split("pt")[0]) for side in ("width", "height"))
    assert (width > height) == (size[0] > size[1])


def test_normalised_pixels_are_said_to_borrow_the_true_statistics(tmp_path, monkeypatch, images):
    mae = MaskedAutoencoder(VisionTransformer(**TINY_VIT), 16, 1, 2)
    mae.build()
    mae.save(tmp_path / "mae.keras")
    (tmp_path / "image.png").write_bytes(encode(images[0, ..., 0]))
    notes = []
    monkeypatch.setattr(reconstruct, "draw", lambda panels, note, path: notes.append(note))
    flags = (f"--model={tmp_path}", f"--images={tmp_path / 'image.png'}", f"--output={tmp_path / 'f.png'}")
    assert run_command(reconstruct, *flags) == 0
    assert notes == [reconstruct.NORMALIZED_NOTE]


REFUSED = {
    "no model": (("--images=IMAGE",), "Give either --run_dir=RUN of keras_mae.pretrain or --model=PATH"),
    "ratio": (("--model=MODEL", "--images=IMAGE", "--mask_ratios=half"), "mask_ratios takes numbers such as .5,.75,.9"),
    "impossible ratio": (("--model=MODEL", "--images=IMAGE", "--mask_ratios=1.5"), "1.5"),
    "encoder": (("--model=ENCODER", "--images=IMAGE"), "holds no masked autoencoder but a VisionTransformer"),
    "tokens": (("--model=TOKENS", "--images=IMAGE"), "What this model predicts cannot be drawn"),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "tokens" else n for n in REFUSED])
def test_the_command_refuses(name, saved, model, tmp_path, capsys):
    flags, sentence = REFUSED[name]
    places = {
        "IMAGE": saved / "image.png",
        "MODEL": saved,
        "ENCODER": tmp_path / "e.keras",
        "TOKENS": tmp_path / "t.keras",
    }
    if name == "encoder":
        model.encoder.save(places["ENCODER"])
    if name == "tokens":
        make_mae(target=TokenTarget(TokenEncoder(1, 16, 4, 1))).save(places["TOKENS"])
    for word, path in places.items():
        flags = [flag.replace(word, str(path)) for flag in flags]
    assert run_command(reconstruct, *flags, f"--output={tmp_path / 'f.png'}") == 1
    error = capsys.readouterr().err
    assert error.startswith("ERROR: ") and sentence in error
