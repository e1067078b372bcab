"""Mean and deviation of each channel against NumPy's over all pixels at once."""

import json

import numpy as np
import pytest
from fixtures.commands import run_command
from fixtures.shard_sets import encode, write_shard_set

from tools import make_shards, pixel_statistics
from tools.pixel_statistics import PixelStatistics, as_flags

SAMPLES, SIDE = 11, 8


def images(channels=3, dtype="uint8"):
    rng = np.random.default_rng(0)
    top = np.linspace(0.2, 1, channels) * np.iinfo(dtype).max
    return (rng.uniform(size=(SAMPLES, SIDE, SIDE, channels)) * top).astype(dtype)


def write(folder, pixels):
    write_shard_set(folder, [encode(image.squeeze()) for image in pixels], shard_samples=[4, 7])
    return (f"--data={folder}", f"--image_size={SIDE}", f"--resize_size={SIDE}", "--num_threads=1", "--batch_size=3")


def expected(pixels, scale=255):
    """--pixel_mean and --pixel_std by NumPy."""
    values = pixels.astype("float64") / scale
    mean, std = values.mean(axis=(0, 1, 2)), values.std(axis=(0, 1, 2))
    return [float(f"{v:.5g}") for v in mean], [float(f"{v:.5g}") for v in std]


def printed(out):
    """The numbers of the two flags."""
    return tuple([float(value) for value in word.split("=")[1].split(",")] for word in out.split())


@pytest.mark.parametrize("channels", [1, 3])
def test_command_prints_the_flags_and_nothing_else(channels, tmp_path, capsys):
    pixels = images(channels)
    assert run_command(pixel_statistics, *write(tmp_path, pixels), f"--channels={channels}") == 0
    out, err = capsys.readouterr()
    assert [word.split("=")[0] for word in out.split()] == ["--pixel_mean", "--pixel_std"]
    assert printed(out) == expected(pixels)
    assert f"{SAMPLES} images of split train" in err


def test_json_holds_all_digits_and_where_they_come_from(tmp_path, capsys):
    pixels = images()
    (tmp_path / "shards").mkdir()
    file = tmp_path / "statistics.json"
    assert run_command(pixel_statistics, *write(tmp_path / "shards", pixels), f"--json={file}") == 0
    content = json.loads(file.read_text())
    np.testing.assert_allclose(content["pixel_mean"], (pixels / 255).mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(content["pixel_std"], (pixels / 255).std(axis=(0, 1, 2)), rtol=1e-12)
    assert content["images"] == SAMPLES
    assert content["source"]["view"] == "eval" and content["source"]["split"] == "train"


@pytest.mark.parametrize("channels", [1, 2, 7])
@pytest.mark.parametrize("dtype, scale", [("uint8", 255), ("uint16", 65535)])
def test_scale_follows_the_type_for_any_number_of_channels(dtype, scale, channels):
    pixels = images(channels, dtype)
    statistics = pixel_statistics.pixel_statistics(np.array_split(pixels, 4), channels)
    np.testing.assert_allclose(statistics.mean, (pixels / scale).mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(statistics.std, (pixels / scale).std(axis=(0, 1, 2)), rtol=1e-12)
    assert statistics.num_pixels == SAMPLES * SIDE * SIDE


def test_arrays_of_a_shard_set_are_read_as_they_are(tmp_path, capsys):
    pixels = images(5, "uint16")
    source, shards = tmp_path / "source", tmp_path / "shards"
    source.mkdir()
    for number, image in enumerate(pixels):
        np.save(source / f"{number}.npy", image)
    assert run_command(make_shards, f"--input={source}", f"--output={shards}", "--workers=1") == 0
    capsys.readouterr()
    sizes = (f"--image_size={SIDE}", f"--resize_size={SIDE}", "--num_threads=1")
    assert run_command(pixel_statistics, f"--data={shards}", *sizes, "--channels=5") == 0
    assert printed(capsys.readouterr().out) == expected(pixels, 65535)


def test_dark_images_keep_their_digits():
    statistics = PixelStatistics(np.array([0.000223456789]), np.array([0.0001]), 2)
    assert as_flags(statistics) == "--pixel_mean=0.00022346 --pixel_std=0.0001"


def test_constant_channel_is_said(tmp_path, capsys):
    pixels = images()
    pixels[..., 1] = 7
    assert run_command(pixel_statistics, *write(tmp_path, pixels)) == 0
    assert "channels [1] (from 0) have one value everywhere" in capsys.readouterr().err


def test_max_images_takes_fewer(tmp_path, capsys):
    assert run_command(pixel_statistics, *write(tmp_path, images()), "--max_images=5") == 0
    assert "5 images of split train" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, sentence",
    [
        ("--json=numbers.txt", "must end in .json"),
        ("--data=/no/such/folder", "does not exist"),
        ("--resize_size=4", "`resize_size` must be at least 8"),
    ],
)
def test_mistakes_are_one_sentence(change, sentence, tmp_path, capsys):
    assert run_command(pixel_statistics, *write(tmp_path, images()), change) == 1
    error = capsys.readouterr().err
    assert sentence in error and error.startswith("ERROR: ")
