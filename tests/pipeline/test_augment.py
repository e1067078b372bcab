"""What augmentation chooses, and that both ways to carry it out give the same pixels.

Expected arguments are computed by hand from the levels; pixels come from exact identities, from Pillow's own
ops (fixture), and from TensorFlow Addons (fixture); timm's own ops are in tests/parity.
"""

import math
from collections import Counter
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import tensorflow as tf
from fixtures import pillow_augmentation
from fixtures.make_addons_reference import make_image

from pipeline import augment_graph, augment_host
from pipeline.augment import (
    JITTER_OPS,
    RAND_AUGMENT_OPS,
    SMALLEST_DRAW,
    ColorJitter,
    RandAugment,
    parse_rand_augment,
)
from pipeline.compiled_geometry import round_to_15_digits
from pipeline.compiled_normal import normal_quantile
from pipeline.philox import draw_uniform

RECIPE = parse_rand_augment("rand-m9-mstd0.5-inc1")
JITTER = ColorJitter(0.4, 0.4, 1.5, 0.1)
IMAGE = make_image()
GREY = IMAGE[..., :1]
IMAGES = {
    "photo": IMAGE,
    "grey": GREY,
    "narrow": (make_image()[:, :7] // 4 + 60),
    "flat": np.full((9, 12, 3), (7, 7, 200), np.uint8),
}
ARGUMENTS = {
    "AutoContrast": (None,),
    "Equalize": (None,),
    "Invert": (None,),
    "Rotate": (-30.0, -26.1, 0.0, 4.7, 27.0),
    "Posterize": (0, 1, 4),
    "Solarize": (0, 26, 256),
    "SolarizeAdd": (0, 99, 110),
    "Color": (0.0, 0.19, 1.0, 1.81),
    "Contrast": (0.0, 0.19, 1.0, 1.81),
    "Brightness": (0.0, 0.19, 1.0, 1.81),
    "Sharpness": (0.0, 0.19, 1.0, 1.81),
    "ShearX": (-0.3, -0.267, 0.0, 0.27),
    "ShearY": (-0.3, -0.267, 0.0, 0.27),
    "TranslateX": (-0.45, -0.123, 0.0, 0.405),
    "TranslateY": (-0.45, -0.123, 0.0, 0.405),
    "Hue": (-0.5, -0.07, 0.0, 0.1, 0.5),
}
CASES = [(name, argument) for name, arguments in ARGUMENTS.items() for argument in arguments]


def draws_for(name, *, height=0.5, direction=0.75):
    """The four draws that choose and apply one op; height .5 is the mean level."""
    number = [op.name for op in RAND_AUGMENT_OPS].index(name)
    return [(number + 0.5) / len(RAND_AUGMENT_OPS), 0.0, height, direction]


def choose_one(name, **draws):
    [(chosen, argument)] = RandAugment(num_ops=1).choose(np.array(draws_for(name, **draws)))
    assert chosen == name
    return argument


def choose_many(policy, count):
    uniforms = np.random.default_rng(0).random((count, policy.num_draws))
    return [policy.choose(draws) for draws in uniforms]


def assert_same_pixels(ours, expected):
    """Equal: at most one value in a thousand is one level off (where float64 rounds differently)."""
    difference = np.abs(np.asarray(ours).astype(int) - expected)
    assert difference.max() <= 1
    assert np.mean(difference > 0) <= 0.001


# Choices


def test_timms_notation_is_read():
    assert RECIPE == RandAugment(magnitude=9.0, magnitude_std=0.5, num_ops=2)
    assert RECIPE.num_draws == 8
    assert parse_rand_augment("rand-inc1-n3-m7") == RandAugment(7.0, 0.0, 3)
    assert parse_rand_augment("rand-inc1") == RandAugment(10.0, 0.0, 2)


@pytest.mark.parametrize(
    "policy, problem",
    [
        ("", "Not a RandAugment policy"),
        ("augmix-m3-inc1", "Not a RandAugment policy"),
        ("rand-m9", "grow stronger"),
        ("rand-m9-inc0", "grow stronger"),
        ("rand-m9-p0.5-inc1", "Unknown section 'p0.5'"),
        ("rand-mmax20-inc1", "Unknown section 'mmax20'"),
        ("rand-tweights-inc1", "Unknown section 'tweights'"),
        ("rand-m-1-inc1", "Unknown section 'm'"),
        ("rand-m9-m8-inc1", "'m' is twice"),
        ("rand-m9.5-inc1", "'m' of a RandAugment policy takes a whole number"),
        ("rand-m11-inc1", "magnitude must be from 0 to 10"),
        ("rand-mstd101-inc1", "magnitude_std must be from 0 to 100"),
        ("rand-n0-inc1", "num_ops must be at least 1"),
    ],
)
def test_other_notations_are_refused(policy, problem):
    with pytest.raises(ValueError, match=problem):
        parse_rand_augment(policy)


@pytest.mark.parametrize(
    "name, positive, negative",
    [
        ("AutoContrast", None, None),
        ("Equalize", None, None),
        ("Invert", None, None),
        ("Rotate", 27.0, -27.0),
        ("Posterize", 1, 1),  # 4 - int(3.6)
        ("Solarize", 26, 26),  # 256 - int(230.4)
        ("SolarizeAdd", 99, 99),
        ("Color", 1.81, 0.19),
        ("Contrast", 1.81, 0.19),
        ("Brightness", 1.81, 0.19),
        ("Sharpness", 1.81, 0.19),
        ("ShearX", 0.27, -0.27),
        ("ShearY", 0.27, -0.27),
        ("TranslateX", 0.405, -0.405),
        ("TranslateY", 0.405, -0.405),
    ],
)
def test_arguments_at_the_mean_level(name, positive, negative):
    assert choose_one(name, direction=0.5) == pytest.approx(positive)
    assert choose_one(name, direction=0.49) == pytest.approx(negative)


def test_levels_are_normal_and_clipped():
    one_deviation = 0.8413447460685429  # the share of a normal distribution below mean + deviation
    assert choose_one("Rotate", height=one_deviation) == pytest.approx(28.5)
    assert choose_one("Rotate", height=1 - one_deviation) == pytest.approx(25.5)
    assert choose_one("Rotate", height=1 - 2**-53) == 30.0
    assert choose_one("Posterize", height=1 - 2**-53) == 0
    assert 0 < choose_one("Rotate", height=0.0) < 20.0


def test_a_draw_from_half_on_leaves_the_op_out():
    draws = [*draws_for("Invert"), *draws_for("Equalize")]
    assert RECIPE.choose(np.array(draws)) == [("Invert", None), ("Equalize", None)]
    draws[1] = 0.5
    assert RECIPE.choose(np.array(draws)) == [("Equalize", None)]
    draws[5] = 0.99
    assert RECIPE.choose(np.array(draws)) == []


def test_ops_are_equally_frequent_and_half_are_applied():
    count = 6000
    choices = choose_many(RECIPE, count)
    applied = Counter(len(chosen) for chosen in choices)
    for number, share in enumerate((0.25, 0.5, 0.25)):
        assert abs(applied[number] - count * share) < 5 * (count * share) ** 0.5
    frequencies = Counter(name for chosen in choices for name, _ in chosen)
    assert set(frequencies) == {op.name for op in RAND_AUGMENT_OPS}
    assert all(abs(n - count / 15) < 5 * (count / 15) ** 0.5 for n in frequencies.values())
    twice = sum(chosen[0] == chosen[1] for chosen in choices if len(chosen) == 2 and chosen[0][1] is None)
    assert twice > 0  # drawn with replacement


def test_levels_of_many_choices_have_the_stated_distribution():
    degrees = np.array([a for chosen in choose_many(RECIPE, 6000) for name, a in chosen if name == "Rotate"])
    levels = np.abs(degrees) / 3
    assert levels.max() == 10
    assert np.mean(levels == 10) == pytest.approx(0.0228, abs=0.03)  # beyond two deviations
    assert np.median(levels) == pytest.approx(9, abs=0.15)
    assert np.std(levels) == pytest.approx(0.5, abs=0.1)
    assert np.mean(degrees < 0) == pytest.approx(0.5, abs=0.13)


def test_jitter_draws_factors_and_order():
    amounts = [0.0, 0.5, 0.75, 1 - 2**-53]
    chosen = JITTER.choose(np.array([*amounts, 0.4, 0.1, 0.3, 0.2]))
    assert [name for name, _ in chosen] == ["Contrast", "Hue", "Color", "Brightness"]
    expected = {"Brightness": 0.6, "Contrast": 1.0, "Color": 0.75 * 2.5, "Hue": 0.1}
    assert dict(chosen) == pytest.approx(expected)


def test_jitter_draws_every_order_alike():
    orders = Counter(tuple(name for name, _ in chosen) for chosen in choose_many(JITTER, 4800))
    assert len(orders) == 24
    assert all(abs(n - 200) < 5 * 200**0.5 for n in orders.values())


def test_jitter_of_strength_zero_is_left_out():
    chosen = ColorJitter(brightness=0.4, saturation=0.4).choose(np.full(ColorJitter.num_draws, 0.5))
    assert chosen == [("Brightness", pytest.approx(1.0)), ("Color", pytest.approx(1.0))]
    assert ColorJitter().choose(np.full(ColorJitter.num_draws, 0.5)) == []


@pytest.mark.parametrize("strengths", [{"brightness": -0.1}, {"saturation": float("nan")}, {"hue": 0.6}])
def test_impossible_strengths_of_jitter_are_refused(strengths):
    with pytest.raises(ValueError, match=f"ColorJitter's {next(iter(strengths))} must be"):
        ColorJitter(**strengths)


@pytest.mark.parametrize("policy", [RECIPE, JITTER])
def test_a_wrong_number_of_draws_is_refused(policy):
    with pytest.raises(ValueError, match=r"takes \(8,\) draws an image. Received: shape \(4,\)"):
        policy.choose(np.zeros(4))


def test_choices_equal_those_of_plain_python():
    for policy in (RECIPE, RandAugment(0.5, 100.0, 3)):
        for draws in np.random.default_rng(5).random((300, policy.num_draws)):
            expected = []
            for which, apply, height, direction in draws.reshape(-1, 4).tolist():
                level = policy.magnitude + policy.magnitude_std * NormalDist().inv_cdf(max(height, SMALLEST_DRAW))
                op = RAND_AUGMENT_OPS[int(which * 15)]
                if apply < 0.5:
                    change = min(max(level, 0.0), 10.0) / 10 * op.span
                    change = int(change) if op.whole else change
                    argument = op.base - change if op.signed and direction < 0.5 else op.base + change
                    expected.append((op.name, argument if op.span else None))
            assert policy.choose(draws) == expected


def test_whole_arguments_are_integers():
    assert [type(choose_one(name)) for name in ("Posterize", "Solarize", "SolarizeAdd", "Rotate")] == [int] * 3 + [
        float
    ]


def test_quantiles_equal_pythons_to_the_bit():
    rng = np.random.default_rng(6)
    ends = 2.0 ** -rng.uniform(1, 53, 1000)
    for probability in np.concatenate([[SMALLEST_DRAW, 0.075, 0.5, 0.925], rng.random(3000), ends, 1 - ends]).tolist():
        assert normal_quantile(probability) == NormalDist().inv_cdf(probability)


def test_rounding_to_15_digits_equals_pythons():
    angles = np.random.default_rng(7).uniform(-math.pi, math.pi, 3000)
    tiny = [0.0, 1e-16, 4.9e-16, 5e-16, -5e-16, 1.5e-15, -6e-16, 0.5, 1 - 2**-53, 1.0, -1.0]
    for value in np.concatenate([tiny, np.cos(angles), np.sin(angles)]).tolist():
        assert round_to_15_digits(value) == round(value, 15), value


# The host's pixels


@pytest.mark.parametrize("image", [IMAGE, GREY], ids=["RGB", "grey"])
@pytest.mark.parametrize(
    "name, argument",
    [
        ("Rotate", 0.0),
        ("Solarize", 256),
        ("SolarizeAdd", 0),
        ("Color", 1.0),
        ("Contrast", 1.0),
        ("Brightness", 1.0),
        ("Sharpness", 1.0),
        ("ShearX", 0.0),
        ("ShearY", 0.0),
        ("TranslateX", 0.0),
        ("TranslateY", 0.0),
    ],
)
def test_the_weakest_argument_changes_nothing(image, name, argument):
    np.testing.assert_array_equal(augment_host.apply(image, [(name, argument)]), image)


def test_no_ops_give_the_image_itself():
    assert augment_host.apply(IMAGE, []) is IMAGE


def test_inverting_twice_changes_nothing():
    np.testing.assert_array_equal(augment_host.apply(IMAGE, [("Invert", None)]), 255 - IMAGE)
    np.testing.assert_array_equal(augment_host.apply(IMAGE, [("Invert", None)] * 2), IMAGE)


def test_ops_are_applied_in_order():
    bright_first = augment_host.apply(IMAGE, [("Brightness", 0.5), ("Invert", None)])
    np.testing.assert_array_equal(bright_first, 255 - IMAGE // 2)


def test_a_quarter_turn_goes_counterclockwise():
    square = IMAGE[:, :21]
    np.testing.assert_array_equal(augment_host.apply(square, [("Rotate", 90.0)]), np.rot90(square))


@pytest.mark.parametrize("image, fill", [(IMAGE, (124, 116, 104)), (GREY, 117)], ids=["RGB", "grey"])
def test_translation_by_whole_pixels_moves_and_fills(image, fill):
    moved = augment_host.apply(image, [("TranslateX", 3 / 30), ("TranslateY", -7 / 21)])
    np.testing.assert_array_equal(moved[7:, :-3], image[:-7, 3:])
    np.testing.assert_array_equal(moved[:7], np.broadcast_to(fill, moved[:7].shape))
    np.testing.assert_array_equal(moved[:, -3:], np.broadcast_to(fill, moved[:, -3:].shape))


def test_solarize_and_posterize_by_hand():
    ramp = np.array([0, 25, 26, 127, 128, 200, 255], np.uint8).reshape(1, 7, 1)
    for name, argument, expected in (
        ("Solarize", 26, [0, 25, 229, 128, 127, 55, 0]),
        ("Solarize", 0, [255, 230, 229, 128, 127, 55, 0]),
        ("SolarizeAdd", 99, [99, 124, 125, 226, 128, 200, 255]),
        ("Posterize", 1, [0, 0, 0, 0, 128, 128, 128]),
        ("Posterize", 0, [0, 0, 0, 0, 0, 0, 0]),
        ("AutoContrast", None, [0, 25, 26, 127, 128, 200, 255]),
    ):
        assert augment_host.apply(ramp, [(name, argument)]).flatten().tolist() == expected, name


def small_images():
    """Noise, gradients and one colour, of sizes that filters hardly fit into, grey and RGB."""
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (1, 5), (5, 1), (2, 2), (3, 3), (4, 3), (16, 16), (13, 32)):
        across, down = np.linspace(0, 255, width), np.linspace(0, 255, height)[:, np.newaxis]
        for channels in (1, 3):
            shape = height, width, channels
            yield rng.integers(0, 256, shape, dtype=np.uint8)
            yield rng.integers(100, 140, shape, dtype=np.uint8)
            yield np.repeat(((across + down) / 2).astype(np.uint8)[..., np.newaxis], channels, axis=2)
            yield np.broadcast_to(rng.integers(0, 256, channels, dtype=np.uint8), shape)


def assert_equals_pillow(image, name, argument):
    ours = augment_host.apply(image, [(name, argument)])
    np.testing.assert_array_equal(ours, pillow_augmentation.apply(image, [(name, argument)]), f"{name} {argument}")


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_op_equals_pillows_to_the_bit(name):
    for image in (*IMAGES.values(), *small_images()):
        for argument in ARGUMENTS[name]:
            assert_equals_pillow(image, name, argument)


def test_whole_pixels_and_quarter_turns_equal_pillows_to_the_bit():
    for image in (IMAGE, IMAGE[:, :21], *small_images()):
        for argument in (90.0, -90.0, 180.0, 270.0, 360.0, 45.0, 1e-9):
            assert_equals_pillow(image, "Rotate", argument)
        for name in ("ShearX", "ShearY", "TranslateX", "TranslateY"):
            for argument in (1.0, -1.0, 0.5, -0.25, 1 / 3, 1e-13, -1e-13):
                assert_equals_pillow(image, name, argument)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_op_equals_pillows_for_many_arguments(name):
    rng = np.random.default_rng(1)
    low, high = (0, 1) if ARGUMENTS[name] == (None,) else (min(ARGUMENTS[name]), max(ARGUMENTS[name]))
    waves = np.tile(make_image(), (7, 5, 1))
    for number in range(400):
        height, width = rng.integers(1, 140, 2)
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8) if number % 2 else waves[:height, :width]
        argument = rng.uniform(low, high) if isinstance(low, float) else int(rng.integers(low, high + 1))
        assert_equals_pillow(image[..., : 1 if number % 3 == 0 else 3], name, argument)


@pytest.mark.parametrize("policy", [RECIPE, JITTER], ids=["RandAugment", "ColorJitter"])
def test_several_ops_in_a_row_equal_pillows(policy):
    for draws in np.random.default_rng(4).random((60, policy.num_draws)):
        chosen = policy.choose(draws)
        expected = pillow_augmentation.apply(IMAGE, chosen)
        np.testing.assert_array_equal(augment_host.apply(IMAGE, chosen), expected, str(chosen))


@pytest.mark.parametrize("policy", [RECIPE, JITTER], ids=["RandAugment", "ColorJitter"])
def test_a_sample_is_augmented_from_its_seed(policy):
    augment = augment_host.augmentation(policy, "any purpose")
    seeds = np.array([[number, 7] for number in range(12)])
    for seed, draws in zip(seeds, draw_uniform(seeds, "any purpose", policy.num_draws, "float64"), strict=True):
        image = IMAGE.copy()
        augment(seed, image)
        np.testing.assert_array_equal(image, augment_host.apply(IMAGE, policy.choose(draws)))


def test_applying_leaves_the_image_as_it_is():
    image = IMAGE.copy()
    for name, arguments in ARGUMENTS.items():
        augment_host.apply(image, [(name, arguments[-1])])
    np.testing.assert_array_equal(image, IMAGE)


def test_a_view_of_an_image_can_be_augmented():
    turned = IMAGE.transpose(1, 0, 2)[::-1]
    turned.flags.writeable = False
    expected = augment_host.apply(np.ascontiguousarray(turned), [("ShearX", 0.2)])
    np.testing.assert_array_equal(augment_host.apply(turned, [("ShearX", 0.2)]), expected)


def test_grey_of_any_hue_stays():
    image = np.repeat(GREY, 3, axis=2)
    np.testing.assert_array_equal(augment_host.apply(image, [("Hue", 0.3)]), image)
    np.testing.assert_array_equal(augment_host.apply(GREY, [("Hue", 0.3)]), GREY)


def test_a_third_of_a_turn_makes_red_green():
    red = np.full((2, 2, 3), (255, 0, 0), np.uint8)
    np.testing.assert_array_equal(augment_host.apply(red, [("Hue", 1 / 3)])[0, 0], [0, 255, 0])


def test_equalize_equals_pillows_in_the_graph():
    expected = pillow_augmentation.apply(IMAGE, [("Equalize", None)])
    np.testing.assert_array_equal(augment_graph.apply_op(tf.constant(IMAGE), "Equalize", 0), expected)


@pytest.mark.parametrize("image", [IMAGE[..., 0], IMAGE[..., :2], IMAGE.astype(np.float32)])
def test_the_host_refuses_what_is_no_image(image):
    with pytest.raises(ValueError, match="takes uint8"):
        augment_host.apply(image, [])


# The graph's pixels


def test_both_know_every_op():
    names = {op.name for op in RAND_AUGMENT_OPS} | set(JITTER_OPS)
    assert names == set(ARGUMENTS)


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("name, argument", CASES, ids=[f"{name}:{argument}" for name, argument in CASES])
def test_graph_op_equals_the_hosts(image, name, argument):
    ours = augment_graph.apply_op(tf.constant(image), name, 0 if argument is None else argument)
    assert_same_pixels(ours, augment_host.apply(image, [(name, argument)]))


@pytest.mark.parametrize("policy", [RECIPE, JITTER], ids=["RandAugment", "ColorJitter"])
def test_graph_in_a_dataset_equals_the_host(policy):
    uniforms = np.random.default_rng(2).random((120, policy.num_draws))

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8), tf.TensorSpec([8], tf.float64)])
    def augment(image, draws):
        return augment_graph.apply(image, policy, draws)

    images = [np.roll(IMAGE, number, axis=(0, 1))[: 12 + number % 9] for number in range(len(uniforms))]
    dataset = tf.data.Dataset.from_generator(
        lambda: zip(images, uniforms, strict=True), output_signature=augment.input_signature
    )
    results = list(dataset.map(augment).as_numpy_iterator())
    assert len(results) == len(images)
    for result, image, draws in zip(results, images, uniforms, strict=True):
        assert_same_pixels(result, augment_host.apply(image, policy.choose(draws)))


@pytest.mark.parametrize("policy", [RECIPE, JITTER, RandAugment(9, 0, 3)], ids=["RandAugment", "ColorJitter", "3 ops"])
def test_graph_runs_eagerly(policy):
    for draws in np.random.default_rng(3).random((3, policy.num_draws)):
        ours = augment_graph.apply(tf.constant(GREY), policy, tf.constant(draws))
        assert_same_pixels(ours, augment_host.apply(GREY, policy.choose(draws)))


def test_only_the_chosen_op_runs(monkeypatch):
    def explode(image, _):
        with tf.control_dependencies([tf.debugging.Assert(False, ["Invert ran"])]):
            return tf.identity(image)

    monkeypatch.setitem(augment_graph.COLOR_OPS, "Invert", explode)
    policy = RandAugment(num_ops=1)
    chosen = [draws_for("Posterize"), draws_for("Invert")]
    dataset = tf.data.Dataset.from_tensor_slices(np.array(chosen))
    results = iter(dataset.map(lambda draws: augment_graph.apply(tf.constant(IMAGE), policy, draws)))
    np.testing.assert_array_equal(next(results), IMAGE & 128)
    with pytest.raises(tf.errors.InvalidArgumentError, match="Invert ran"):
        next(results)


def test_bilinear_ops_equal_tensorflow_addons():
    reference = dict(np.load(Path(__file__).parents[1] / "fixtures" / "addons_reference.npz"))
    image = tf.constant(reference.pop("image"))
    assert {key.split(":")[0] for key in reference} == {"Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"}
    for key, expected in reference.items():
        name, argument = key.split(":")
        ours = augment_graph.apply_op(image, name, float(argument), "bilinear")
        assert_same_pixels(ours, expected)


def test_bilinear_policy_chooses_as_the_bicubic_one():
    draws = tf.constant(draws_for("TranslateX", direction=0.2), tf.float64)
    bilinear = augment_graph.apply(tf.constant(IMAGE), RandAugment(num_ops=1), draws, "bilinear")
    np.testing.assert_array_equal(
        bilinear, augment_graph.apply_op(tf.constant(IMAGE), "TranslateX", -0.405, "bilinear")
    )


def test_the_graph_refuses_what_it_cannot_do():
    draws = tf.zeros(8, tf.float64)
    with pytest.raises(ValueError, match="takes uint8"):
        augment_graph.apply(tf.constant(IMAGE, tf.float32), RECIPE, draws)
    with pytest.raises(ValueError, match="interpolation must be one of"):
        augment_graph.apply(tf.constant(IMAGE), RECIPE, draws, "nearest")
