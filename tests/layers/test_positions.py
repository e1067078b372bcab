import math

import numpy as np
import pytest

from keras_mae.layers import PositionEmbedding, sincos_position_table


def table_in_loops(rows, columns, dim):
    table = [[0.0] * dim]
    for row in range(rows):
        for column in range(columns):
            omega = [10000 ** (-i / (dim / 4)) for i in range(dim // 4)]
            parts = [f(place * w) for place in (column, row) for f in (math.sin, math.cos) for w in omega]
            table.append(parts)
    return np.array(table)


@pytest.mark.parametrize("grid, dim", [((3, 3), 8), ((2, 5), 16), ((14, 14), 64)])
def test_table_is_that_of_the_loop(grid, dim):
    table = sincos_position_table(grid, dim)
    assert table.dtype == "float32"
    np.testing.assert_allclose(table, table_in_loops(*grid, dim), atol=1e-7)


def test_table_by_hand_column_first():
    # Width 8: omega = (1, 10000^(-1/2) = .01). Grid (2, 3): patch 5 is row 1, column 2.
    table = sincos_position_table((2, 3), 8)
    assert table.shape == (7, 8)
    np.testing.assert_array_equal(table[0], np.zeros(8))  # class token
    np.testing.assert_array_equal(table[1], [0, 0, 1, 1, 0, 0, 1, 1])  # row 0, column 0
    expected = [
        *(0.9092974268, 0.0199986667),  # sin 2, sin .02: the column comes first
        *(-0.4161468365, 0.9998000067),  # cos 2, cos .02
        *(0.8414709848, 0.0099998333),  # sin 1, sin .01: then the row
        *(0.5403023059, 0.9999500004),  # cos 1, cos .01
    ]
    np.testing.assert_allclose(table[6], expected, atol=1e-7)


def test_width_must_be_divisible_by_four():
    with pytest.raises(ValueError, match="divisible by 4.*embed_dim=6"):
        sincos_position_table((2, 2), 6)


def test_layer_starts_with_the_table_and_picks_rows():
    layer = PositionEmbedding((2, 3), 8)
    table = sincos_position_table((2, 3), 8)
    class_row, patches = layer(np.array([[4, 0], [1, 5]]))
    np.testing.assert_array_equal(class_row, table[:1])
    np.testing.assert_array_equal(patches, [[table[5], table[1]], [table[2], table[6]]])


def test_layer_without_ids_gives_all_rows():
    layer = PositionEmbedding((2, 3), 8)
    layer.build()
    np.testing.assert_array_equal(layer()[1], sincos_position_table((2, 3), 8)[1:])
