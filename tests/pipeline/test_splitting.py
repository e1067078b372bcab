"""Shuffling and holding out: pure functions of samples and seed."""

from collections import Counter

import numpy as np
import pytest

from pipeline.sources import Item
from pipeline.splitting import hold_out, shuffle_items


def make_items(**counts):
    return [Item(f"{name}/{i}.jpg", 1, label) for label, (name, n) in enumerate(counts.items()) for i in range(n)]


def test_shuffle_is_a_permutation_that_follows_the_seed():
    items = make_items(cat=50)
    first = shuffle_items(items, 0)
    assert set(first) == set(items) and first != items
    assert shuffle_items(items, 0) == first
    assert shuffle_items(items, 1) != first


def test_shuffle_never_changes():
    # Worked out once with numpy 2.4; a shard set made again must have the same bytes years later.
    order = [item.path for item in shuffle_items(make_items(x=6), 0)]
    draws = np.random.Philox(key=0).random_raw(6).tolist()
    assert order == [f"x/{i}.jpg" for i in sorted(range(6), key=draws.__getitem__)]
    assert order == ["x/0.jpg", "x/2.jpg", "x/1.jpg", "x/5.jpg", "x/4.jpg", "x/3.jpg"]


def test_hold_out_takes_the_same_share_of_each_class():
    kept, held_out = hold_out(shuffle_items(make_items(cat=50, dog=30, cow=20), 0), 0.1)
    assert Counter(item.label for item in held_out) == {0: 5, 1: 3, 2: 2}
    assert Counter(item.label for item in kept) == {0: 45, 1: 27, 2: 18}


def test_hold_out_keeps_every_sample_once_and_in_order():
    items = shuffle_items(make_items(cat=7, dog=5), 3)
    kept, held_out = hold_out(items, 0.3)
    assert kept == [item for item in items if item not in held_out]
    assert set(kept) | set(held_out) == set(items) and len(kept) + len(held_out) == 12


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.99])
def test_every_class_keeps_an_image(fraction):
    kept, _ = hold_out(make_items(one=1, two=2, many=9), fraction)
    assert {item.label for item in kept} == {0, 1, 2}


def test_shares_below_one_image_add_up_over_classes():
    _, held_out = hold_out(make_items(**{f"c{i}": 4 for i in range(10)}), 0.1)
    counts = Counter(item.label for item in held_out)
    assert len(held_out) == 4 and max(counts.values()) == 1


def test_unlabelled_items_are_held_out_as_one_class():
    items = [Item(f"{i}.jpg", 1, None) for i in range(20)]
    _, held_out = hold_out(items, 0.25)
    assert held_out == items[:5]
