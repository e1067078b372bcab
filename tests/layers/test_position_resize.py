"""Resizing of position tables against loops, hand-computed numbers, and PyTorch (marker `parity`)."""

import itertools
import math

import numpy as np
import pytest

from keras_mae.layers.position_resize import position_table_of_grid, resize_position_table
from keras_mae.layers.positions import sincos_position_table

GRIDS = [((3, 3), (5, 5)), ((5, 5), (3, 3)), ((2, 5), (7, 3)), ((4, 4), (4, 9)), ((1, 4), (3, 4)), ((14, 14), (28, 28))]


def random_table(grid, dim=4):
    return np.random.default_rng(0).standard_normal((1 + grid[0] * grid[1], dim)).astype("float32")


def kernel(x, a=-0.75):
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def resize_in_loops(table, from_grid, to_grid):
    """Sixteen taps for every output patch."""
    image = table[1:].reshape(*from_grid, -1).astype("float64")
    rows = []
    for place in itertools.product(range(to_grid[0]), range(to_grid[1])):
        center = [(i + 0.5) * old / new - 0.5 for i, old, new in zip(place, from_grid, to_grid, strict=True)]
        value = 0
        for tap in itertools.product(range(-1, 3), repeat=2):
            at = [math.floor(c) + t for c, t in zip(center, tap, strict=True)]
            inside = tuple(min(max(i, 0), n - 1) for i, n in zip(at, from_grid, strict=True))
            value = value + kernel(center[0] - at[0]) * kernel(center[1] - at[1]) * image[inside]
        rows.append(value)
    return np.stack([table[0], *rows])


@pytest.mark.parametrize("from_grid, to_grid", GRIDS)
def test_resizing_is_that_of_the_loop(from_grid, to_grid):
    table = random_table(from_grid)
    resized = resize_position_table(table, from_grid, to_grid)
    assert resized.dtype == "float32"
    np.testing.assert_allclose(resized, resize_in_loops(table, from_grid, to_grid), atol=1e-6)


def test_resizing_by_hand():
    # One row of patches 0, 1 to 4 columns. Column 0 lies at -.25: taps at -2 and -1 and 0 repeat the edge 0, the tap at
    # 1 (distance 1.25) weighs -.75 * (1.953125 - 7.8125 + 10 - 4) = -.10546875. Column 1 lies at .25: tap 1 weighs
    # k(.75) = 1.25 * .421875 - 2.25 * .5625 + 1 = .26171875, tap 2 repeats the edge 1 with k(1.75) = -.03515625.
    table = np.array([[7.0], [0.0], [1.0]])
    expected = [7, -0.10546875, 0.26171875 - 0.03515625, 1 - 0.2265625, 1 + 0.10546875]
    np.testing.assert_allclose(resize_position_table(table, (1, 2), (1, 4))[:, 0], expected, atol=1e-7)


@pytest.mark.parametrize("from_grid, to_grid", GRIDS)
def test_class_row_and_constants_stay(from_grid, to_grid):
    table = random_table(from_grid)
    np.testing.assert_array_equal(resize_position_table(table, from_grid, to_grid)[0], table[0])
    table[1:] = [1, -2, 3, 0]
    resized = resize_position_table(table, from_grid, to_grid)
    np.testing.assert_allclose(resized[1:], np.broadcast_to(table[1], resized[1:].shape), atol=1e-6)


def test_equal_grids_keep_the_table():
    table = random_table((2, 8))
    np.testing.assert_allclose(resize_position_table(table, (2, 8), (2, 8)), table, atol=1e-7)
    for positions in ("resize", "recompute"):
        np.testing.assert_array_equal(position_table_of_grid(table, (2, 8), [2, 8], positions), table)


def test_as_many_patches_in_another_shape_are_resized():
    table = random_table((2, 8))
    resized = position_table_of_grid(table, (2, 8), (4, 4))
    np.testing.assert_array_equal(resized, resize_position_table(table, (2, 8), (4, 4)))
    assert np.abs(resized - table).max() > 0.1


def test_recomputing_gives_the_table_of_the_new_grid():
    table = position_table_of_grid(random_table((2, 3), dim=8), (2, 3), (3, 5), "recompute")
    np.testing.assert_array_equal(table, sincos_position_table((3, 5), 8))


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"of 3x3 patches has 10 rows.*Received: shape \(7, 4\)"):
        resize_position_table(random_table((2, 3)), (3, 3), (4, 4))
    with pytest.raises(ValueError, match="one of: resize, recompute. Received: 'stretch'"):
        position_table_of_grid(random_table((2, 3)), (2, 3), (4, 4), "stretch")


@pytest.mark.parity
@pytest.mark.parametrize("from_grid, to_grid", GRIDS)
def test_equal_to_torch(from_grid, to_grid):
    torch = pytest.importorskip("torch")
    table = random_table(from_grid)
    image = torch.tensor(table[1:].reshape(1, *from_grid, -1)).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(image, size=to_grid, mode="bicubic", align_corners=False)
    expected = expected.permute(0, 2, 3, 1).reshape(-1, table.shape[1]).numpy()
    np.testing.assert_allclose(resize_position_table(table, from_grid, to_grid)[1:], expected, atol=2e-6)
