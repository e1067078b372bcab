import math

import numpy as np
import pytest
import tensorflow as tf
from fixtures.shard_sets import encode
from PIL import Image

from pipeline import views

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)


@tf.function
def choose_boxes(height, width, uniforms, min_area):
    # (n, CROP_TRIES, 4) -> (n, 4)
    return tf.map_fn(
        lambda draws: views.random_crop_box(height, width, draws, min_area),
        uniforms,
        tf.TensorSpec([4], tf.int32),
    )


def random_boxes(height, width, min_area, count=200):
    uniforms = np.random.default_rng(1).random((count, views.CROP_TRIES, 4))
    boxes = choose_boxes(
        tf.constant(height), tf.constant(width), tf.constant(uniforms), tf.constant(min_area, tf.float64)
    )
    return boxes.numpy(), uniforms


def reference_box(height, width, uniforms, min_area):
    # torchvision's RandomResizedCrop.get_params, with the draws handed in.
    area = height * width
    for u_area, u_ratio, u_top, u_left in uniforms:
        target_area = area * (min_area + (1 - min_area) * u_area)
        log_ratio = math.log(3 / 4), math.log(4 / 3)
        ratio = math.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * u_ratio)
        w, h = round(math.sqrt(target_area * ratio)), round(math.sqrt(target_area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(u_top * (height - h + 1)), int(u_left * (width - w + 1)), h, w
    h, w = height, width
    if width / height < 3 / 4:
        h = round(width / (3 / 4))
    elif width / height > 4 / 3:
        w = round(height * (4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize(
    "height, width, min_area",
    [(375, 500, 0.08), (500, 375, 0.2), (28, 28, 0.2), (20, 400, 0.2), (1, 1, 0.08)],
)
def test_random_crop_boxes_equal_a_plain_loop(height, width, min_area):
    boxes, uniforms = random_boxes(height, width, min_area)
    expected = [reference_box(height, width, draws, min_area) for draws in uniforms]
    np.testing.assert_array_equal(boxes, expected)


def test_random_crops_lie_inside_and_spread_over_the_allowed_areas_and_ratios():
    boxes, _ = random_boxes(375, 500, 0.2, count=1000)
    top, left, height, width = boxes.T
    assert min(top.min(), left.min()) >= 0
    assert np.all(top + height <= 375) and np.all(left + width <= 500)
    area, ratio = height * width / (375 * 500), width / height
    assert 0.19 < area.min() < 0.22 and 0.95 < area.max() <= 1
    assert 0.74 < ratio.min() < 0.77 and 1.30 < ratio.max() < 1.35


@pytest.mark.parametrize("height, width, box", [(400, 20, (186, 0, 27, 20)), (20, 400, (0, 186, 20, 27))])
def test_an_extreme_image_falls_back_to_its_centre(height, width, box):
    # No share of at least half the area of a 20x400 image fits: 20 / (3/4) = 26.7, (400 - 27) // 2 = 186.
    boxes, _ = random_boxes(height, width, 0.5, count=3)
    np.testing.assert_array_equal(boxes, [box] * 3)


def resize_with_pillow(pixels, size):
    channels = [Image.fromarray(pixels[..., channel]) for channel in range(pixels.shape[2])]
    return np.stack([np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC)) for image in channels], axis=2)


@pytest.mark.parametrize("size", [(10, 10), (13, 29), (64, 64), (30, 7), (5, 200), (90, 3), (200, 41)])
@pytest.mark.parametrize(
    "pixels", [PIXELS, PIXELS[:, :, :1], PIXELS[:3], PIXELS // 128 * 255], ids=["rgb", "grey", "low", "edges"]
)
def test_resize_equals_pillow(pixels, size):
    difference = views.resize_bicubic(pixels, size).numpy().astype(int) - resize_with_pillow(pixels, size)
    assert np.abs(difference).max() <= 2  # Pillow computes with integers
    assert np.abs(difference).mean() <= 0.02


def test_resize_of_a_photograph_equals_one_call_of_pillow():
    photograph = Image.fromarray(PIXELS).resize((500, 375), Image.Resampling.BICUBIC)
    expected = np.asarray(photograph.resize((224, 224), Image.Resampling.BICUBIC)).astype(int)
    difference = views.resize_bicubic(np.asarray(photograph), (224, 224)).numpy() - expected
    assert np.abs(difference).max() <= 3
    assert np.abs(difference).mean() <= 0.5


def test_resize_to_its_own_size_leaves_an_image_as_it_is():
    np.testing.assert_array_equal(views.resize_bicubic(PIXELS, (30, 40)), PIXELS)


def test_a_random_view_is_pillows_resize_of_the_crop():
    seed = views.sample_seed(0, 0, 7)
    uniforms = views.draw_uniform(seed, "crop", (views.CROP_TRIES, 4), "float64").numpy()
    top, left, height, width = reference_box(30, 40, uniforms, 0.2)
    expected = resize_with_pillow(PIXELS[top : top + height, left : left + width], (12, 16)).astype(int)
    view = views.random_view(encode(PIXELS), seed, (12, 16), flip=False).numpy()
    assert np.abs(view - expected).max() <= 2


def test_half_of_the_views_are_flipped():
    encoded = encode(PIXELS)
    flipped = 0
    for index in range(24):
        seed = views.sample_seed(0, 0, index)
        plain = views.random_view(encoded, seed, (8, 8), flip=False).numpy()
        view = views.random_view(encoded, seed, (8, 8), flip=True).numpy()
        assert np.array_equal(view, plain) or np.array_equal(view, plain[:, ::-1])
        flipped += not np.array_equal(view, plain)
    assert 5 <= flipped <= 19  # 12 expected, 2.9 standard deviations of sqrt(24) / 2


def test_random_views_run_in_dataset_map_and_depend_on_the_seed_alone():
    encoded = encode(PIXELS, "JPEG")

    def view(index):
        return views.random_view(encoded, views.sample_seed(0, 3, index), (8, 10), channels=1)

    mapped = list(tf.data.Dataset.range(3).map(view, num_parallel_calls=2))
    for index, image in enumerate(mapped):
        assert image.shape == (8, 10, 1) and image.dtype == tf.uint8
        np.testing.assert_array_equal(image, view(index))
    assert len({image.numpy().tobytes() for image in mapped}) == 3


@pytest.mark.parametrize("height, width", [(375, 500), (20, 400), (1, 1)])
def test_a_clamped_crop_is_one_try_cut_to_the_image(height, width):
    for index in range(20):
        uniforms = views.draw_uniform(views.sample_seed(0, 0, index), "crop", (views.CROP_TRIES, 4), "float64").numpy()
        top, left, h, w = views.clamped_crop_box(height, width, uniforms, 0.08).numpy().tolist()
        area, ratio = (0.08 + 0.92 * uniforms[0, 0]) * height * width, (3 / 4) * (16 / 9) ** uniforms[0, 1]
        assert h == max(1, min(height, round((area / ratio) ** 0.5)))
        assert w == max(1, min(width, round((area * ratio) ** 0.5)))
        assert top == int(uniforms[0, 2] * (height - h + 1)) and left == int(uniforms[0, 3] * (width - w + 1))


def test_draws_differ_by_seed_epoch_sample_and_purpose():
    seeds = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (1, 1, 0)]
    draws = [views.draw_uniform(views.sample_seed(*seed), name, (4,)).numpy() for seed in seeds for name in "ab"]
    assert len({draw.tobytes() for draw in draws}) == 12


@pytest.mark.parametrize("height, width", [(30, 40), (41, 30), (28, 28), (8, 90)])
def test_eval_view_is_torchvisions_resize_and_centre_crop(height, width):
    pixels = np.resize(PIXELS, (height, width, 3))
    short = min(height, width)
    size = [int(20 * side / short) for side in (height, width)]
    resized = resize_with_pillow(pixels, size).astype(int)
    top, left = (int(round((side - 17) / 2.0)) for side in size)
    view = views.eval_view(encode(pixels), (17, 17), 20).numpy()
    assert np.abs(view - resized[top : top + 17, left : left + 17]).max() <= 2


def test_eval_view_of_an_image_of_the_views_size_is_the_image():
    np.testing.assert_array_equal(views.eval_view(encode(PIXELS), (30, 40), 30), PIXELS)


@pytest.mark.parametrize("height, width, expected", [(100, 100, (36, 36)), (100, 300, (24, 72)), (300, 100, (108, 36))])
def test_a_view_that_is_not_square_is_covered(height, width, expected):
    # The view (20, 30) enlarged by 24 / 20 is (24, 36).
    np.testing.assert_array_equal(views.covering_size(height, width, (20, 30), 24), expected)
