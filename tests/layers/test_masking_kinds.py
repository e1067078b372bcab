"""Block and grid masks: NumPy loops that replay the very same noise, counts, shapes of what is removed, compiling."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from keras_mae.layers import (
    MASKINGS,
    GridMasking,
    block_masking,
    grid_masking,
    make_masking,
    num_visible,
    random_masking,
)
from keras_mae.layers.block_masking import smallest_area

RATIOS = {"random": 0.75, "block": 0.5, "grid": 0.75}
EVERY_KIND = pytest.mark.parametrize("kind", MASKINGS)


def numpy(outputs):
    return [ops.convert_to_numpy(x) for x in outputs]


def uniform(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, dtype="float32")


def beside(grid, row, column):
    """How many of the four patches beside this one are removed."""
    places = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
    return sum(grid[r, c] for r, c in places if 0 <= r < grid.shape[0] and 0 <= c < grid.shape[1])


def replay_blocks(noise, keep, rows, columns):
    """The block mask of one sample, try by try and patch by patch: 1 = removed. And the visible patches, in order."""
    removed = np.zeros((rows, columns), int)
    smallest = min(16, max(1, round(16 * rows * columns / 196)))
    ties, draws = noise[: rows * columns].reshape(rows, columns), noise[rows * columns :].reshape(32, 4)
    for area, aspect, top, left in draws:
        missing = rows * columns - keep - removed.sum()
        area = np.float32(smallest) + np.float32(missing - smallest) * area
        aspect = np.exp((1 - 2 * aspect) * np.float32(np.log(0.3)))
        height, width = int(np.round(np.sqrt(area * aspect))), int(np.round(np.sqrt(area / aspect)))
        if height > max(rows - 1, 1) or width > max(columns - 1, 1):
            continue
        top, left = int(top * np.float32(rows - height + 1)), int(left * np.float32(columns - width + 1))
        tried = removed.copy()
        tried[top : top + height, left : left + width] = 1
        if tried.sum() <= rows * columns - keep:
            removed = tried
    visible = [place for place in np.ndindex(rows, columns) if not removed[place]]
    order = sorted(visible, key=lambda place: np.float32(beside(removed, *place)) + ties[place])
    for place in order[keep:]:
        removed[place] = 1
    return removed.ravel(), [row * columns + column for row, column in order[:keep]]


def replay_grid(noise, rows, columns):
    """The visible patches of one sample's grid mask, in order."""
    keep = rows * columns // 4
    pattern = [(0, 0), (0, 1), (1, 0), (1, 1)][int(noise[-1] * 4)]
    groups = collections.defaultdict(list)
    for row, column in np.ndindex(rows, columns):
        whole_cell = row < rows - rows % 2 and column < columns - columns % 2
        groups[whole_cell, (row % 2, column % 2) == pattern].append(row * columns + column)
    order = [groups[True, True], groups[False, True], groups[False, False]]
    return [patch for group in order for patch in sorted(group, key=lambda patch: noise[patch])][:keep]


def assert_consistent(ids_keep, ids_restore, mask):
    """The three outputs tell the same, as `random_masking` documents them."""
    keep = ids_keep.shape[1]
    assert (ids_keep.dtype, ids_restore.dtype, mask.dtype) == ("int32", "int32", "float32")
    np.testing.assert_array_equal(np.sort(ids_restore), np.tile(np.arange(mask.shape[1]), (len(mask), 1)))
    np.testing.assert_array_equal(np.argsort(ids_restore)[:, :keep], ids_keep)
    np.testing.assert_array_equal(mask, ids_restore >= keep)


@pytest.mark.parametrize(
    "grid_size, ratio",
    [
        *(((14, 14), ratio) for ratio in (0.0, 0.4, 0.5, 0.75, 0.9)),
        *(((7, 7), ratio) for ratio in (0.5, 0.75)),
        *(((2, 2), ratio) for ratio in (0.25, 0.75)),
        *((size, 0.6) for size in ((3, 9), (1, 8), (8, 1), (5, 24))),
    ],
)
def test_block_masks_are_those_of_a_loop_over_the_same_noise(grid_size, ratio):
    num_patches = grid_size[0] * grid_size[1]
    keep, noise = num_visible(num_patches, ratio), uniform(12, num_patches + 128)
    ids_keep, ids_restore, mask = numpy(block_masking(ops.convert_to_tensor(noise), keep, grid_size))
    assert_consistent(ids_keep, ids_restore, mask)
    for sample in range(len(noise)):
        removed, visible = replay_blocks(noise[sample], keep, *grid_size)
        np.testing.assert_array_equal(mask[sample], removed)
        np.testing.assert_array_equal(ids_keep[sample], visible)


@pytest.mark.parametrize("grid_size", [(14, 14), (7, 7), (2, 2), (5, 6), (6, 5), (3, 3), (1, 9)])
def test_grid_masks_are_those_of_a_loop_over_the_same_noise(grid_size):
    num_patches = grid_size[0] * grid_size[1]
    noise = uniform(40, num_patches + 1)
    ids_keep, ids_restore, mask = numpy(grid_masking(ops.convert_to_tensor(noise), grid_size))
    assert_consistent(ids_keep, ids_restore, mask)
    np.testing.assert_array_equal(ids_keep, [replay_grid(sample, *grid_size) for sample in noise])


def test_a_block_mask_by_hand():
    # 4x4 patches, 8 to remove, 1 at least. All tries: area 1 + 7 * 3/7 = 4, aspect ratio .3 ** 0 = 1: 2x2 patches,
    # from row floor(.5 * 3) = 1 and column floor(.9 * 3) = 2. The first one removes 4, the others find nothing new.
    tries = [3 / 7, 0.5, 0.5, 0.9] * 32
    # Then the 4 of largest noise of the 6 patches with one removed neighbour. The larger noise elsewhere is ignored.
    noise = [
        *(0.9, 0.9, 0.1, 0.2),
        *(0.9, 0.3, 0.0, 0.0),
        *(0.9, 0.4, 0.0, 0.0),
        *(0.9, 0.9, 0.5, 0.6),
    ]
    expected = [
        *(0, 0, 0, 0),
        *(0, 1, 1, 1),
        *(0, 1, 1, 1),
        *(0, 0, 1, 1),
    ]
    _, _, mask = numpy(block_masking(ops.convert_to_tensor([noise + tries], "float32"), 8, (4, 4)))
    np.testing.assert_array_equal(mask[0], expected)


@pytest.mark.parametrize("num_patches, area", [(4, 1), (49, 4), (196, 16), (1024, 16)])
def test_the_smallest_rectangle_is_16_patches_or_the_same_share_of_a_small_grid(num_patches, area):
    assert smallest_area(num_patches) == area


@pytest.mark.parametrize("value", [0.0, 0.5, np.nextafter(np.float32(1), np.float32(0))])
@pytest.mark.parametrize("ratio", [0.5, 0.75])
def test_counts_are_exact_where_every_draw_is_the_same(value, ratio):
    noise = ops.full((1, 36 + 128), value, dtype="float32")
    outputs = numpy(block_masking(noise, num_visible(36, ratio), (6, 6)))
    assert_consistent(*outputs)
    assert outputs[2].sum() == 36 * ratio


@pytest.mark.parametrize("ratio, gain", [(0.5, 1.2), (0.75, 0.5)])
def test_blocks_are_contiguous(ratio, gain):
    def mean_removed_neighbours(mask):
        grids = mask.reshape(-1, 14, 14)
        pairs = (grids[:, 1:] * grids[:, :-1]).sum() + (grids[:, :, 1:] * grids[:, :, :-1]).sum()
        return 2 * pairs / grids.sum()

    keep = num_visible(196, ratio)
    blocks = numpy(block_masking(ops.convert_to_tensor(uniform(100, 196 + 128)), keep, (14, 14)))[2]
    scattered = numpy(random_masking(uniform(100, 196), keep))[2]
    # Of 4, at the border of fewer: 3.4 against 1.9 at 50%, 3.6 against 2.8 at 75%
    assert mean_removed_neighbours(blocks) > mean_removed_neighbours(scattered) + gain


def test_a_grid_mask_keeps_the_same_one_of_every_cell():
    _, _, mask = numpy(grid_masking(ops.convert_to_tensor(uniform(64, 6 * 8 + 1)), (6, 8)))
    cells = 1 - mask.reshape(-1, 3, 2, 4, 2)  # sample, row of cells, row, column of cells, column
    np.testing.assert_array_equal(cells.sum(axis=(2, 4)), 1)
    assert (cells == cells[:, :1, :, :1]).all()
    assert len(np.unique(mask, axis=0)) == 4


@pytest.mark.parametrize("draw, kept", [(0.0, 0), (0.24, 0), (0.25, 1), (0.5, 2), (0.75, 3), (0.99, 3)])
def test_the_last_draw_decides_the_patch_of_a_cell(draw, kept):
    ids_keep, _, _ = numpy(grid_masking(ops.convert_to_tensor([[0.1, 0.2, 0.3, 0.4, draw]], "float32"), (2, 2)))
    assert ids_keep.tolist() == [[kept]]


def test_an_odd_grid_keeps_as_many_as_every_other_mask():
    assert numpy(grid_masking(ops.convert_to_tensor(uniform(20, 50)), (7, 7)))[0].shape == (20, 12)  # int(49 / 4)
    noise = np.full((4, 50), 0.5, "float32")
    noise[:, -1] = [0, 0.25, 0.5, 0.75]
    visible = 1 - numpy(grid_masking(ops.convert_to_tensor(noise), (7, 7)))[2].reshape(4, 7, 7)
    np.testing.assert_array_equal(visible[:, :6, :6].sum(axis=(1, 2)), 9)
    np.testing.assert_array_equal(visible[1], np.outer([1, 0, 1, 0, 1, 0, 1], [0, 1, 0, 1, 0, 1, 0]))
    np.testing.assert_array_equal(visible[2], np.outer([0, 1, 0, 1, 0, 1, 0], [1, 0, 1, 0, 1, 0, 1]))


@EVERY_KIND
def test_compiled_masks_are_the_eager_ones(kind):
    layer = make_masking(kind, RATIOS[kind], (7, 8))
    patches, noise = ops.zeros((64, 56, 1)), tf.constant(uniform(64, layer.num_draws(56)))
    compiled = tf.function(lambda noise: layer(patches, noise=noise), jit_compile=True)
    for eager, fast in zip(numpy(layer(patches, noise=noise)), numpy(compiled(noise)), strict=True):
        np.testing.assert_array_equal(eager, fast)


@EVERY_KIND
def test_masks_are_a_function_of_the_noise(kind):
    layer, other = (make_masking(kind, RATIOS[kind], (8, 8), seed=seed) for seed in (1, 2))
    patches, noise = ops.zeros((8, 64, 1)), uniform(8, layer.num_draws(64))
    first, second = numpy(layer(patches, noise=noise)), numpy(other(patches, noise=noise[::-1]))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b[::-1])
    assert len(np.unique(first[2], axis=0)) == {"random": 8, "block": 8, "grid": 4}[kind]


@EVERY_KIND
def test_own_masks_change_with_every_call_and_repeat_with_the_seed(kind):
    first, same = (make_masking(kind, RATIOS[kind], (8, 8), seed=1) for _ in range(2))
    patches = ops.zeros((8, 64, 1))
    masks = [numpy(layer(patches))[2] for layer in (first, same, first)]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0] != masks[2]).any()


@EVERY_KIND
def test_masks_of_a_batch_of_unknown_size(kind):
    layer = make_masking(kind, RATIOS[kind], (4, 6))
    patches, noise = keras.Input((24, 5)), keras.Input((layer.num_draws(24),))
    shapes = [x.shape for x in layer(patches, noise=noise)]
    assert shapes == [(None, num_visible(24, RATIOS[kind])), (None, 24), (None, 24)]


@EVERY_KIND
def test_the_kind_makes_its_layer(kind):
    layer = make_masking(kind, RATIOS[kind], (4, 4), seed=3, name="masking")
    assert type(layer).__name__ == f"{kind.title()}Masking"
    assert (layer.name, layer.seed, layer.mask_ratio) == ("masking", 3, RATIOS[kind])


def test_an_unknown_kind_is_an_error():
    with pytest.raises(ValueError, match="must be one of random, block, grid. Received: 'blocks'"):
        make_masking("blocks", 0.5, (4, 4))


@pytest.mark.parametrize("ratio", [0.5, 0.0, 0.8])
def test_grid_masks_have_one_ratio(ratio):
    with pytest.raises(ValueError, match=f"must be 0.75 for grid masking.*mask_ratio={ratio}"):
        GridMasking(ratio, (4, 4))


@EVERY_KIND
def test_a_grid_of_which_nothing_would_stay_is_an_error(kind):
    with pytest.raises(ValueError, match="mask_ratio=0.75 leaves none of 3 patches"):
        make_masking(kind, 0.75, (1, 3))


@pytest.mark.parametrize("kind", ["random", "block"])
@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_a_ratio_outside_its_range_is_an_error_of_every_kind(kind, ratio):
    with pytest.raises(ValueError, match=f"mask_ratio is the share.*{ratio}"):
        make_masking(kind, ratio, (4, 4))


@EVERY_KIND
def test_noise_of_another_length_is_an_error(kind):
    layer = make_masking(kind, RATIOS[kind], (4, 4))
    with pytest.raises(ValueError, match=f"`noise` must have the {layer.num_draws(16)} draws.*2, 15"):
        layer(ops.zeros((2, 16, 1)), noise=uniform(2, 15))


@pytest.mark.parametrize("kind", ["block", "grid"])
def test_patches_of_another_grid_are_an_error(kind):
    layer = make_masking(kind, RATIOS[kind], (4, 4))
    with pytest.raises(ValueError, match="a grid of 4 x 4, 16. Received: 12 patches"):
        layer(ops.zeros((2, 12, 1)))
