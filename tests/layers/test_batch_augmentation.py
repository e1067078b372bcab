import math

import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from scipy import special, stats

from keras_mae.layers.batch_augmentation import (
    ERASING_DRAWS,
    ERASING_TRIES,
    MIX_DRAWS,
    beta_quantile,
    draw_mixing,
    mix_images,
    mix_targets,
    normal_pixels,
    normal_quantile,
    random_erasing,
)

MIXUP = {"mixup": 1.0, "cutmix": 0.0}  # Beta(1, 1) is uniform: the share is the draw
CUTMIX = {"mixup": 0.0, "cutmix": 1.0}
BOTH = {"mixup": 1.0, "cutmix": 1.0}


def random_images(*shape):
    return np.random.standard_normal(shape).astype("float32")


def uniform(*shape):
    return np.random.uniform(size=shape).astype("float32")


def mix_noise(mix=0.0, switch=0.0, share=0.25, row=0.5, column=0.5):
    """Draws of two samples, of which the first says what is done."""
    return np.array([[mix, switch, share, row, column], [0.9] * MIX_DRAWS], "float32")


def erasing_noise(erase=0.0, top=0.5, left=0.5, key=0.3, areas=(0.5,), aspects=(0.5,)):
    """Draws of one sample; tries without values of their own get those of the last one."""
    areas, aspects = (np.pad(x, (0, ERASING_TRIES - len(x)), mode="edge") for x in (areas, aspects))
    return np.array([[erase, top, left, key, *areas, *aspects]], "float32")


def erased(noise, height, width, probability=1.0):
    """(top, left, height, width) of the box, None where there is none."""
    inside = ops.convert_to_numpy(random_erasing(np.zeros((1, height, width, 3), "float32"), noise, probability)) != 0
    rows, columns = (np.flatnonzero(inside[0, ..., 0].any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return None
    box = (rows[0], columns[0], len(rows), len(columns))
    assert inside.all(axis=3).sum() == box[2] * box[3]  # one whole rectangle
    return tuple(map(int, box))


def test_mixup_keeps_the_share_everywhere():
    images, labels = random_images(4, 2, 3, 1), np.eye(4, dtype="float32")
    keep, share = draw_mixing(mix_noise(share=0.25), (2, 3), **MIXUP)
    np.testing.assert_array_equal(keep, np.full((2, 3), 0.25))
    np.testing.assert_allclose(mix_images(images, keep), 0.25 * images + 0.75 * images[::-1], rtol=1e-6)
    expected = [[0.25, 0, 0, 0.75], [0, 0.25, 0.75, 0], [0, 0.75, 0.25, 0], [0.75, 0, 0, 0.25]]
    np.testing.assert_array_equal(mix_targets(labels, share), expected)


def test_cutmix_box_is_clipped_and_its_share_corrected():
    # Share .75: sides of sqrt(.25) = half of 10 and 20, 5 and 10 pixels, as 2 * (5 // 2) and 2 * (10 // 2).
    # Centre (5, 2): rows 3 .. 6, columns -3 .. 6, clipped to 0 .. 6.
    keep, share = draw_mixing(mix_noise(share=0.75, row=0.5, column=0.1), (10, 20), **CUTMIX)
    expected = np.ones((10, 20))
    expected[3:7, 0:7] = 0
    np.testing.assert_array_equal(keep, expected)
    np.testing.assert_allclose(share, 1 - 28 / 200, rtol=1e-6)
    images = random_images(2, 10, 20, 3)
    mixed = ops.convert_to_numpy(mix_images(images, keep))
    np.testing.assert_array_equal(mixed, np.where(expected[..., None] == 1, images, images[::-1]))


def test_target_share_is_the_mean_share_of_the_pixels():
    for noise in uniform(50, 2, MIX_DRAWS):
        keep, share = draw_mixing(noise, (14, 9), mixup=0.8, cutmix=1.0)
        np.testing.assert_allclose(np.mean(keep), share, atol=1e-6)
        assert 0 <= share <= 1


@pytest.mark.parametrize(("share", "rest"), [(0.0, 0.0), (1 - 2**-23, 1.0)])
def test_cutmix_can_take_all_or_nothing(share, rest):
    keep, corrected = draw_mixing(mix_noise(share=share), (8, 8), **CUTMIX)
    assert corrected == rest
    np.testing.assert_array_equal(keep, np.full((8, 8), rest))


def test_the_first_sample_decides_for_the_batch():
    noise = uniform(6, MIX_DRAWS)
    (keep, share), (keep_alone, share_alone) = (draw_mixing(x, (8, 8), **BOTH) for x in (noise, noise[:1]))
    np.testing.assert_array_equal(keep, keep_alone)
    assert share == share_alone


def test_mixing_happens_below_its_probability():
    keep, share = draw_mixing(mix_noise(mix=0.3), (8, 8), **MIXUP, probability=0.3)
    assert (np.mean(keep), share) == (1, 1)
    keep, share = draw_mixing(mix_noise(mix=0.29, share=0.25), (8, 8), **MIXUP, probability=0.3)
    assert (np.mean(keep), share) == (0.25, 0.25)


@pytest.mark.parametrize(
    ("alphas", "switch", "is_cutmix"), [(BOTH, 0.39, 1), (BOTH, 0.4, 0), (CUTMIX, 0.99, 1), (MIXUP, 0.0, 0)]
)
def test_cutmix_below_the_switch_probability_or_where_it_is_alone(alphas, switch, is_cutmix):
    keep, _ = draw_mixing(mix_noise(switch=switch), (8, 8), **alphas, switch_probability=0.4)
    assert set(np.unique(keep)) == ({0.0, 1.0} if is_cutmix else {0.25})


def test_middle_of_an_odd_batch_stays_as_it_is():
    images = random_images(3, 8, 8, 2)
    keep, _ = draw_mixing(uniform(3, MIX_DRAWS), (8, 8), **MIXUP)
    np.testing.assert_allclose(mix_images(images, keep)[1], images[1], atol=1e-6)


def test_mixed_targets_sum_to_one():
    targets = np.random.dirichlet(np.ones(5), 6).astype("float32")
    for noise in uniform(10, 6, MIX_DRAWS):
        _, share = draw_mixing(noise, (8, 8), mixup=0.8, cutmix=1.0)
        np.testing.assert_allclose(np.sum(mix_targets(targets, share), axis=1), np.ones(6), rtol=1e-6)


def beta_quantiles(draws, alpha):
    return tf.function(lambda draws: tf.map_fn(lambda u: beta_quantile(u, alpha), draws))(draws).numpy()


@pytest.mark.parametrize(("alpha", "error"), [(0.2, 1e-6), (0.8, 2e-7), (1.0, 1e-9), (2.0, 2e-5)])
def test_beta_quantiles_are_those_of_scipy(alpha, error):
    edges = np.array([0, 2**-23, 0.5 - 2**-23, 0.5, 1 - 2**-23])
    draws = np.concatenate([edges, uniform(2000)]).astype("float32")
    quantiles = beta_quantiles(draws, alpha)
    np.testing.assert_allclose(quantiles, special.betaincinv(alpha, alpha, draws.astype("float64")), atol=error)


@pytest.mark.parametrize("alpha", [0.8, 1.0])
def test_shares_have_the_moments_of_beta(alpha):
    draws = ((np.arange(4096) + 0.5) / 4096).astype("float32")
    quantiles = beta_quantiles(draws, alpha).astype("float64")
    np.testing.assert_allclose(quantiles.mean(), 0.5, atol=1e-6)
    np.testing.assert_allclose(quantiles.var(), 1 / (4 * (2 * alpha + 1)), rtol=1e-3)


def test_erasing_fills_the_box_that_was_drawn():
    # Area .02 + .5 x (1/3 - .02) = .1767 of 20 x 30: a square of round(sqrt(106)) = 10 pixels a side.
    # Top floor(.5 x 11), left floor(.9 x 21).
    assert erased(erasing_noise(top=0.5, left=0.9), 20, 30) == (5, 18, 10, 10)
    # The same area three and a third times as high as wide, in 40 x 40: sqrt(282.7 x 3.33), sqrt(282.7 / 3.33).
    assert erased(erasing_noise(aspects=(1 - 2**-23,)), 40, 40)[2:] == (31, 9)
    assert erased(erasing_noise(aspects=(0.0,)), 40, 40)[2:] == (9, 31)


def test_erasing_takes_the_first_try_that_fits():
    too_high = 1 - 2**-23  # a third of 20 x 20, 3.3 times as high as wide: 21 pixels
    noise = erasing_noise(areas=(too_high, too_high, 0.5, 0.0), aspects=(too_high, too_high, 0.5, 0.5))
    assert erased(noise, 20, 20)[2:] == (8, 8)  # sqrt(.1767 x 400)
    assert erased(erasing_noise(areas=(too_high,), aspects=(too_high,)), 20, 20) is None


@pytest.mark.parametrize("place", [0.0, 1 - 2**-23])
def test_erased_box_reaches_the_borders_and_not_beyond(place):
    top, left, height, width = erased(erasing_noise(top=place, left=place), 20, 30)
    assert (top, left) == ((0, 0) if place == 0 else (20 - height, 30 - width))


def test_erasing_happens_below_its_probability_and_leaves_the_rest():
    images, noise = random_images(400, 8, 8, 1), uniform(400, ERASING_DRAWS)
    after = ops.convert_to_numpy(random_erasing(images, noise, 0.25))
    touched = (after != images).any(axis=(1, 2, 3))
    np.testing.assert_array_equal(touched, noise[:, 0] < 0.25)


def test_erased_pixels_are_standard_normal_and_independent():
    keys = uniform(16)
    keys[1] = keys[0] + 2**-23  # neighbours
    pixels = ops.convert_to_numpy(normal_pixels(keys, (64, 64, 3))).astype("float64")
    assert stats.kstest(pixels.ravel(), "norm").pvalue > 0.01
    pairs = [(pixels[:, 1:], pixels[:, :-1]), (pixels[:, :, 1:], pixels[:, :, :-1])]
    pairs += [(pixels[..., 1], pixels[..., 0]), (pixels[1], pixels[0]), (pixels[1:], pixels[:-1])]
    for a, b in pairs:
        for power in (1, 2):
            correlation = np.corrcoef((a**power).ravel(), (b**power).ravel())[0, 1]
            assert abs(correlation) < 4 / math.sqrt(a.size)  # 4 standard errors


def test_erased_pixels_are_the_hash_of_key_and_place():
    def mix(x):  # lowbias32 on unsigned numbers
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x = (x ^ (x >> shift)) * factor % 2**32
        return x ^ (x >> 16)

    key, places = 0.7182817459106445, range(24)
    bits = [mix(mix(place) ^ mix(int(key * 2**23))) >> 8 for place in places]
    expected = special.ndtri((np.array(bits) + 0.5) / 2**24)
    pixels = ops.convert_to_numpy(normal_pixels(np.array([key], "float32"), (2, 4, 3)))
    np.testing.assert_allclose(pixels.ravel(), expected, atol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_the_rarest_pixels_are_finite(jit_compile):
    bits = np.array([0, 1, 2**23 - 1, 2**23, 2**24 - 2, 2**24 - 1], "int32")
    quantiles = tf.function(normal_quantile, jit_compile=jit_compile)(tf.constant(bits))
    np.testing.assert_allclose(quantiles, special.ndtri((bits + 0.5) / 2**24), rtol=1e-4)


@pytest.mark.parametrize("alphas", [MIXUP, CUTMIX])
def test_compiled_by_xla_the_result_is_the_same(alphas):
    def augment(images, targets, erasing, mixing):
        keep, share = draw_mixing(mixing, images.shape[1:3], **alphas)
        return mix_images(random_erasing(images, erasing, 0.5), keep), mix_targets(targets, share)

    inputs = [random_images(6, 12, 10, 3), np.eye(6, dtype="float32"), uniform(6, ERASING_DRAWS), uniform(6, MIX_DRAWS)]
    inputs = [tf.constant(x) for x in inputs]
    for a, b in zip(augment(*inputs), tf.function(augment, jit_compile=True)(*inputs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_gradient_flows_to_both_partners_and_around_the_erased_box():
    images, weights = tf.constant(random_images(2, 10, 20, 1)), random_images(2, 10, 20, 1)
    with tf.GradientTape() as tape:
        tape.watch(images)
        after = random_erasing(images, erasing_noise(), 1.0)  # (top, left, height, width) as drawn
        keep, _ = draw_mixing(mix_noise(share=0.25), (10, 20), **MIXUP)
        loss = tf.reduce_sum(mix_images(after, keep) * weights)
    expected = 0.25 * weights + 0.75 * weights[::-1]
    top, left, height, width = erased(erasing_noise(), 10, 20)
    expected[:, top : top + height, left : left + width] = 0
    np.testing.assert_allclose(tape.gradient(loss, images), expected, atol=1e-6)


def test_bfloat16_images_stay_bfloat16():
    images = tf.cast(random_images(2, 8, 8, 3), "bfloat16")
    keep, _ = draw_mixing(mix_noise(), (8, 8), **MIXUP)
    assert mix_images(random_erasing(images, uniform(2, ERASING_DRAWS), 1.0), keep).dtype == tf.bfloat16


def test_draws_of_another_number_are_an_error():
    with pytest.raises(ValueError, match=r"mix_noise must have the shape \(batch, 5\). Received: \(2, 4\)"):
        draw_mixing(uniform(2, 4), (8, 8), **MIXUP)
    with pytest.raises(ValueError, match=r"erasing_noise must have the shape \(batch, 24\). Received: \(2, 5\)"):
        random_erasing(random_images(2, 8, 8, 3), uniform(2, 5), 0.5)
