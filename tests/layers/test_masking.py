import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from keras_mae.layers import RandomMasking, gather_tokens, num_visible, random_masking


def numpy(outputs):
    return [ops.convert_to_numpy(x) for x in outputs]


@pytest.mark.parametrize(
    "num_patches, ratio, expected",
    [
        (196, 0.75, 49),
        (196, 0.5, 98),
        (256, 0.75, 64),
        (10, 0.75, 2),
        (16, 0.0, 16),
        (4, 0.75, 1),
        (49, 0.9, 4),
    ],
)
def test_exactly_the_floor_of_the_share_stays(num_patches, ratio, expected):
    assert num_visible(num_patches, ratio) == expected
    ids_keep, _, mask = numpy(RandomMasking(ratio)(ops.zeros((3, num_patches, 1))))
    assert ids_keep.shape == (3, expected)
    np.testing.assert_array_equal(mask.sum(axis=1), 3 * [num_patches - expected])


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, float("nan")])
def test_ratio_outside_its_range_is_an_error(ratio):
    with pytest.raises(ValueError, match=f"mask_ratio is the share.*{ratio}"):
        num_visible(16, ratio)
    with pytest.raises(ValueError, match="mask_ratio"):
        RandomMasking(ratio)


def test_ratio_that_leaves_no_patch_is_an_error():
    with pytest.raises(ValueError, match="mask_ratio=0.95 leaves none of 16 patches"):
        num_visible(16, 0.95)


def test_small_noise_stays_and_mask_is_one_where_removed():
    noise = np.array([[0.3, 0.1, 0.9, 0.2], [0.5, 0.8, 0.7, 0.6]], "float32")
    ids_keep, ids_restore, mask = numpy(random_masking(noise, keep=2))
    np.testing.assert_array_equal(ids_keep, [[1, 3], [0, 3]])
    np.testing.assert_array_equal(mask, [[1, 0, 1, 0], [0, 1, 1, 0]])
    np.testing.assert_array_equal(ids_restore, [[2, 0, 3, 1], [0, 3, 2, 1]])


def test_restore_order_inverts_shuffle():
    noise = np.random.uniform(size=(5, 20)).astype("float32")
    ids_keep, ids_restore, mask = numpy(random_masking(noise, keep=7))
    shuffled = np.argsort(noise, axis=1, kind="stable")
    np.testing.assert_array_equal(ids_keep, shuffled[:, :7])
    np.testing.assert_array_equal(np.take_along_axis(shuffled, ids_restore, 1), np.tile(np.arange(20), (5, 1)))
    np.testing.assert_array_equal(np.take_along_axis(mask, ids_keep, 1), np.zeros((5, 7)))


@pytest.mark.parametrize("compiled", [False, True])
def test_ties_go_to_the_patch_that_comes_first(compiled):
    noise = np.array([[0.5] * 40, [0.5] * 20 + [0.1] * 20, [0.9, 0.1] * 20], "float32")
    masking = tf.function(lambda n: random_masking(n, keep=10), jit_compile=True) if compiled else None
    ids_keep, _, mask = numpy(masking(noise) if compiled else random_masking(noise, keep=10))
    np.testing.assert_array_equal(ids_keep, [np.arange(10), np.arange(20, 30), np.arange(1, 20, 2)])
    np.testing.assert_array_equal(mask.sum(axis=1), [30, 30, 30])


def test_layer_follows_the_noise_it_is_given():
    noise = np.random.uniform(size=(2, 8)).astype("float32")
    given = numpy(RandomMasking(0.5, seed=1)(ops.zeros((2, 8, 3)), noise=noise))
    for a, b in zip(given, numpy(random_masking(noise, 4)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_own_masks_differ_between_samples_and_calls_and_repeat_with_the_seed():
    patches = ops.zeros((4, 64, 1))
    first, same = RandomMasking(0.75, seed=1), RandomMasking(0.75, seed=1)
    masks = [ops.convert_to_numpy(layer(patches)[2]) for layer in (first, same, first)]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert len(np.unique(np.concatenate([masks[0], masks[2]]), axis=0)) == 8


def test_every_patch_is_removed_equally_often():
    share = ops.convert_to_numpy(RandomMasking(0.75, seed=1)(ops.zeros((4000, 16, 1)))[2]).mean(axis=0)
    np.testing.assert_allclose(share, 0.75, atol=4 * np.sqrt(0.75 * 0.25 / 4000))  # 4 standard errors


def test_gather_tokens_is_take_along_axis():
    tokens = np.random.standard_normal((3, 6, 4)).astype("float32")
    ids = np.random.randint(0, 6, (3, 5)).astype("int32")  # repeats allowed
    picked = gather_tokens(ops.convert_to_tensor(tokens), ops.convert_to_tensor(ids))
    np.testing.assert_array_equal(picked, np.take_along_axis(tokens, ids[:, :, None], axis=1))


def test_gradient_of_gather_tokens_adds_up_repeats():
    tokens = tf.constant(np.random.standard_normal((2, 4, 3)).astype("float32"))
    with tf.GradientTape() as tape:
        tape.watch(tokens)
        loss = tf.reduce_sum(gather_tokens(tokens, tf.constant([[1, 1], [0, 3]])))
    counts = [[0, 2, 0, 0], [1, 0, 0, 1]]
    np.testing.assert_array_equal(
        tf.convert_to_tensor(tape.gradient(loss, tokens)), np.repeat(counts, 3).reshape(2, 4, 3)
    )
