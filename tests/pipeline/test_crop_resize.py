import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from pipeline import views
from pipeline.crop_resize import (
    CROP_TRIES,
    FixedCrop,
    choose_clamped_crop,
    choose_crop,
    choose_fixed_crop,
    crop_resize,
    resize,
    workspace_bytes,
)

NOISE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
# Only 0 and 255, in which clipping between the two passes shows
BLACK_AND_WHITE = NOISE // 128 * 255
SIZES = [(16, 16), (60, 80), (60, 11), (7, 80), (61, 79), (150, 200), (1, 1), (1, 90), (90, 1), (3, 70), (59, 3)]
BOXES = [
    (0, 0, 60, 80),  # the whole
    (5, 7, 33, 21),
    (0, 79, 60, 1),  # one column
    (59, 0, 1, 80),  # one row
    (30, 40, 1, 1),
    (2, 3, 57, 4),  # tall, the height first
    (2, 3, 4, 70),  # wide
]


def pillow_resize(pixels, box, size):
    """`Image.crop` and `Image.resize`, channel by channel where Pillow knows no such image."""
    top, left, height, width = box
    image = Image.fromarray(pixels.squeeze(axis=2) if pixels.shape[2] == 1 else pixels)
    image = image.crop((left, top, left + width, top + height)).resize(size[::-1], Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(*size, pixels.shape[2])


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("pixels", [NOISE, BLACK_AND_WHITE, NOISE[..., :1]], ids=["noise", "edges", "grey"])
def test_a_resized_crop_is_pillows_to_the_bit(pixels, box):
    for size in SIZES:
        expected = pillow_resize(pixels, box, size)
        np.testing.assert_array_equal(resize(pixels, size, box=box), expected)
        np.testing.assert_array_equal(resize(pixels, size, box=box, flip=True), expected[:, ::-1])


def test_a_photographs_size_and_extreme_ratios_are_pillows_to_the_bit():
    rng = np.random.default_rng(1)
    for shape in [(375, 500), (500, 375), (1200, 17), (17, 1200), (2, 3000)]:
        pixels = rng.integers(0, 2, (*shape, 3), dtype=np.uint8) * 255
        np.testing.assert_array_equal(resize(pixels, (224, 224)), pillow_resize(pixels, (0, 0, *shape), (224, 224)))


def test_random_boxes_and_sizes_are_pillows_to_the_bit():
    rng = np.random.default_rng(2)
    for _ in range(300):
        height, width = rng.integers(1, (61, 81))
        box = int(rng.integers(61 - height)), int(rng.integers(81 - width)), int(height), int(width)
        size = tuple(rng.integers(1, 130, 2).tolist())
        np.testing.assert_array_equal(
            resize(BLACK_AND_WHITE, size, box=box), pillow_resize(BLACK_AND_WHITE, box, size), str((box, size))
        )


@pytest.mark.parametrize("box", BOXES)
def test_the_workspace_is_as_large_as_promised(box):
    for size in SIZES:
        needed = workspace_bytes(box[2], box[3], 3, *size)
        memory = np.full(needed + 64, 77, np.uint8)
        out = np.empty((*size, 3), np.uint8)
        crop_resize(NOISE, np.array(box), False, memory[:needed], out)
        np.testing.assert_array_equal(memory[needed:], 77)
        np.testing.assert_array_equal(out, pillow_resize(NOISE, box, size))
        assert needed <= workspace_bytes(*NOISE.shape, *size)  # so that one for the image serves all its boxes


@tf.function
def graph_boxes(height, width, uniforms, min_area):
    # (n, CROP_TRIES, 4) -> (n, 4)
    return tf.map_fn(
        lambda draws: views.random_crop_box(height, width, draws, min_area), uniforms, tf.TensorSpec([4], tf.int32)
    )


def host_boxes(choose, height, width, uniforms, min_area):
    boxes = np.empty((len(uniforms), 4), np.int64)
    for draws, box in zip(uniforms, boxes, strict=True):
        choose(height, width, draws.reshape(-1), min_area, box)
    return boxes


@pytest.mark.parametrize(
    "height, width, min_area",
    [
        (375, 500, 0.08),
        (500, 375, 0.2),
        (28, 28, 0.2),
        (20, 400, 0.2),  # some tries fit
        (20, 400, 0.9),  # none fits: the centre
        (400, 21, 0.9),
        (1, 1, 0.08),
        (1, 50, 0.2),
        (3, 4, 1.0),
        (4000, 3001, 0.2),
    ],
)
def test_boxes_are_those_of_the_graph(height, width, min_area):
    uniforms = np.random.default_rng(height).random((500, CROP_TRIES, 4))
    expected = graph_boxes(
        tf.constant(height), tf.constant(width), tf.constant(uniforms), tf.constant(min_area, tf.float64)
    )
    np.testing.assert_array_equal(host_boxes(choose_crop, height, width, uniforms, min_area), expected)


@pytest.mark.parametrize("height, width", [(375, 500), (20, 400), (400, 20), (1, 1), (1, 50), (2, 3)])
def test_clamped_boxes_lie_inside_and_are_the_first_try_with_its_sides_cut(height, width):
    uniforms = np.random.default_rng(3).random((1000, CROP_TRIES, 4))
    # Draws at both ends of [0, 1)
    uniforms[0], uniforms[1] = 0, np.nextafter(1, 0)
    boxes = host_boxes(choose_clamped_crop, height, width, uniforms, 0.08)
    top, left, h, w = boxes.T
    assert min(top.min(), left.min()) >= 0 and min(h.min(), w.min()) >= 1
    assert np.all(top + h <= height) and np.all(left + w <= width)
    area = (0.08 + 0.92 * uniforms[:, 0, 0]) * height * width
    ratio = np.exp(np.log(4 / 3) * (2 * uniforms[:, 0, 1] - 1))
    np.testing.assert_array_equal(h, np.clip(np.rint(np.sqrt(area / ratio)), 1, height))
    np.testing.assert_array_equal(w, np.clip(np.rint(np.sqrt(area * ratio)), 1, width))
    np.testing.assert_array_equal(top, np.floor(uniforms[:, 0, 2] * (height - h + 1)))
    np.testing.assert_array_equal(left, np.floor(uniforms[:, 0, 3] * (width - w + 1)))


def test_clamped_boxes_use_the_first_try_only():
    uniforms = np.random.default_rng(4).random((50, CROP_TRIES, 4))
    others = uniforms.copy()
    others[:, 1:] = 0.5
    np.testing.assert_array_equal(
        host_boxes(choose_clamped_crop, 30, 40, uniforms, 0.08), host_boxes(choose_clamped_crop, 30, 40, others, 0.08)
    )


@pytest.mark.parametrize("choose", [choose_crop, choose_clamped_crop])
def test_boxes_of_the_greatest_draws_lie_inside(choose):
    greatest = np.full((1, CROP_TRIES, 4), np.nextafter(1, 0))
    for height, width in [(1, 1), (7, 500), (333, 333), (65500, 65500)]:
        ((top, left, h, w),) = host_boxes(choose, height, width, greatest, 0.08)
        assert top + h <= height and left + w <= width


@pytest.mark.parametrize(
    ("shape", "aspect", "box"),
    [
        ((375, 500), 1.0, (23, 86, 328, 328)),  # 7/8 of the short side: 328.125
        ((500, 375), 1.0, (86, 23, 328, 328)),
        ((256, 256), 2.0, (72, 16, 112, 224)),  # twice as wide as high: 256 x 128 covers it
        ((1, 1), 1.0, (0, 0, 1, 1)),
    ],
)
def test_a_central_crop_of_fixed_size_is_the_one_computed_by_hand(shape, aspect, box):
    found = np.empty(4, np.int64)
    fixed = FixedCrop(224 / 256, aspect, True)
    choose_fixed_crop(*shape, np.zeros(40), fixed, found)
    assert tuple(found) == box
    in_graph = views.fixed_crop_box(*shape, tf.zeros((CROP_TRIES, 4), tf.float64), fixed)
    assert tuple(in_graph.numpy()) == box


def test_crops_of_fixed_size_lie_anywhere_inside():
    fixed, box, places = FixedCrop(0.5, 1.0, False), np.empty(4, np.int64), set()
    for draws in np.random.default_rng(0).uniform(size=(400, 40)):
        choose_fixed_crop(6, 8, draws, fixed, box)
        assert tuple(box[2:]) == (3, 3)
        places.add((int(box[0]), int(box[1])))
        in_graph = views.fixed_crop_box(6, 8, tf.constant(draws.reshape(CROP_TRIES, 4)), fixed)
        np.testing.assert_array_equal(in_graph, box)
    assert places == {(top, left) for top in range(4) for left in range(6)}
