"""The figure of masks shows, patch by patch, what the layers remove."""

import functools
from pathlib import Path

import numpy as np
import pytest
from fixtures.commands import run_command
from fixtures.shard_sets import encode, write_shard_set
from PIL import Image

from keras_mae.layers import make_masking
from tools import show_masks
from tools.show_masks import (
    CELL,
    DOTS_PER_INCH,
    LINE_LEVEL,
    MARGIN,
    MASKED_LEVEL,
    PLAIN_LEVEL,
    TITLE_HEIGHT,
    draw,
    make_maskings,
    mask_images,
    plain_grid,
)

run = functools.partial(run_command, show_masks)


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """What the command would draw, a list of (title, images); the working folder has two images and a shard set."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg"):
        Image.fromarray(rng.integers(0, 100, (40, 30, 3), dtype=np.uint8)).save(name)
    Path("text.png").write_text("no image")
    Path("set").mkdir()
    write_shard_set(Path("set"), [encode(np.full((20, 20), n, np.uint8)) for n in range(3)], shard_samples=[3])
    columns = []
    monkeypatch.setattr(show_masks, "draw", lambda drawn, output: columns.extend(drawn))
    return columns


def removed(images, patch_size):
    """Which patches are grey all over, 1 or 0: (images, rows, columns)."""
    count, height, width, channels = images.shape
    shape = (count, height // patch_size, patch_size, width // patch_size, patch_size, channels)
    return (images.reshape(shape) == MASKED_LEVEL).all(axis=(2, 4, 5)).astype(int)


@pytest.mark.parametrize("kind, ratio", [("random", 0.75), ("block", 0.5), ("grid", 0.75)])
def test_grey_patches_are_those_that_the_layer_removes(kind, ratio):
    images = np.random.default_rng(1).integers(0, 100, (3, 16, 24, 3), dtype=np.uint8)
    ((title, masking),) = make_maskings([f"{kind}:{ratio}"], (4, 6))
    assert title == f"{kind} {ratio:.0%}"
    masked = mask_images(images, masking, (4, 6), np.random.default_rng(5))
    layer = make_masking(kind, ratio, (4, 6))
    noise = np.random.default_rng(5).random((3, layer.num_draws(24)), dtype="float32")
    mask = np.asarray(layer(np.zeros((3, 24, 1)), noise=noise)[2]).reshape(3, 4, 6)
    np.testing.assert_array_equal(removed(masked, 4), mask)
    kept = np.kron(1 - mask, np.ones((4, 4)))[..., np.newaxis]
    np.testing.assert_array_equal(masked * kept, images * kept)


def test_the_plain_grid_has_a_line_before_each_patch():
    image = plain_grid((2, 3))
    assert image.shape == (32, 48, 1)
    np.testing.assert_array_equal(np.flatnonzero(image[5, :, 0] == LINE_LEVEL), [0, 16, 32])
    np.testing.assert_array_equal(np.flatnonzero(image[:, 5, 0] == LINE_LEVEL), [0, 16])
    assert set(np.unique(image)) == {LINE_LEVEL, PLAIN_LEVEL}


def test_the_figure_has_a_cell_for_each_image(tmp_path):
    path = str(tmp_path / "figure.png")
    image = np.full((1, 6, 6, 3), (10, 200, 30), np.uint8)
    draw([("first", image.repeat(2, axis=0)), ("second", image.repeat(2, axis=0)), ("third", 0 * image)], path)
    with Image.open(path) as figure:
        size, pixels = np.array(figure.size) / DOTS_PER_INCH, np.asarray(figure.convert("RGB"))
    np.testing.assert_allclose(size, [2 * MARGIN + 3 * CELL, 2 * MARGIN + TITLE_HEIGHT + 2 * CELL], atol=0.02)
    shown = (pixels == (10, 200, 30)).all(axis=-1).sum()
    assert shown == pytest.approx(4 * (0.95 * CELL * DOTS_PER_INCH) ** 2, rel=0.03)


def test_the_command_writes_the_figure(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("--count=2", "--image_size=28", "--patch_size=4", "--masks=random:.5,block:.5") == 0
    assert capsys.readouterr().out == "masks.png: 2 rows of random 50%, block 50%\n"
    with Image.open("masks.png") as figure:
        figure.load()


def test_a_plain_grid_shows_the_masks_of_figure_6(drawn):
    assert run("--image_size=32", "--patch_size=4") == 0
    assert [title for title, _ in drawn] == ["random 75%", "block 50%", "block 75%", "grid 75%"]
    for title, images in drawn:
        counts = removed(images, 16).sum(axis=(1, 2))
        np.testing.assert_array_equal(counts, 4 * [32 if title.endswith("50%") else 48])


def test_image_files_are_taken_in_turn(drawn):
    assert run("--images=a.png,b.jpg", "--image_size=16", "--patch_size=4", "--masks=random:.5", "--count=3") == 0
    (title, images), (_, masked) = drawn
    assert title == "original" and images.shape == masked.shape == (3, 16, 16, 3)
    np.testing.assert_array_equal(images[2], images[0])
    assert (images[1] != images[0]).any()
    assert (removed(masked, 4)[2] != removed(masked, 4)[0]).any()  # a new draw
    drawn.clear()
    assert run("--images=a.png,b.jpg", "--image_size=16", "--patch_size=4", "--masks=random:.5") == 0
    assert len(drawn[0][1]) == 2


def test_images_of_a_shard_set(drawn):
    assert run("--data=set", "--image_size=16", "--patch_size=4", "--masks=grid:.75", "--count=2") == 0
    np.testing.assert_array_equal(drawn[0][1][:, 0, 0, 0], [0, 1])


def test_an_image_of_16_bits_is_shown_in_8(drawn):
    np.save("wide.npy", np.full((20, 20, 3), 1000, np.uint16))
    assert run("--images=wide.npy", "--image_size=16", "--patch_size=4", "--masks=random:.5") == 0
    assert drawn[0][1].dtype == np.uint8 and (drawn[0][1] == 255).all()  # the brightest value is white


def test_the_seed_decides_the_masks(drawn):
    for seed in (1, 1, 2):
        assert run("--image_size=32", "--patch_size=4", "--masks=random:.5", f"--seed={seed}") == 0
    first, same, other = (images for _, images in drawn)
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--output=masks.gif"], "--output must end in .png, received masks.gif"),
        (["--output=none/masks.png"], "--output=none/masks.png cannot be written"),
        (["--masks=blocks:.5"], "the kind one of random, block, grid; received 'blocks:.5'"),
        (["--masks=block"], "--masks must be a list of KIND:RATIO such as block:.5"),
        (["--masks=block:half"], "received 'block:half'"),
        (["--masks="], "--masks is empty"),
        (["--masks=block:1"], "mask_ratio is the share of patches removed"),
        (["--masks=grid:.5"], "mask_ratio must be 0.75 for grid masking"),
        (["--masks=random:.9", "--image_size=32"], "mask_ratio=0.9 leaves none of 4 patches"),
        (["--image_size=20"], "a multiple of --patch_size=16, received 20"),
        (["--image_size=0"], "`image_size` must be an integer of at least 1. Received: 0"),
        (["--images=a.png", "--data=set"], "--images and --data both say what to draw"),
        (["--split=val"], "--split=val is of a shard set; give --data=SHARDS too"),
        (["--images=none.png"], "There is no file none.png"),
        (["--images=text.png"], "text.png is not a JPEG, PNG or WebP image"),
        (["--data=none"], "none does not exist"),
        (["--data=set", "--split=val"], "set has no split 'val'"),
        (["more"], "unexpected argument 'more'"),
    ],
)
def test_a_mistake_of_masks_is_one_sentence(arguments, sentence, drawn, capsys):
    assert run(*arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("ERROR: ") and sentence in error and error.count("\n") == 1
    assert not drawn
