"""Shuffling, holding out and cutting into shards: pure functions of numbers, labels, sizes and the seed."""

from collections import Counter

import numpy as np
import pytest

from pipeline.splitting import cut_into_shards, hold_out, shuffled


def labels_of(*counts):
    return np.repeat(np.arange(len(counts)), counts).astype(np.int32)


def test_shuffle_is_a_permutation_that_follows_the_seed():
    first = shuffled(50, 0).tolist()
    assert sorted(first) == list(range(50)) != first
    assert shuffled(50, 0).tolist() == first
    assert shuffled(50, 1).tolist() != first


def test_shuffle_never_changes():
    # Worked out once with numpy 2.4; a shard set made again must have the same bytes years later.
    draws = np.random.Philox(key=0).random_raw(6).tolist()
    assert shuffled(6, 0).tolist() == sorted(range(6), key=draws.__getitem__) == [0, 2, 1, 5, 4, 3]


def test_hold_out_takes_the_same_share_of_each_class():
    labels = labels_of(50, 30, 20)
    kept, held_out = hold_out(shuffled(100, 0), labels, 0.1)
    assert Counter(labels[held_out].tolist()) == {0: 5, 1: 3, 2: 2}
    assert Counter(labels[kept].tolist()) == {0: 45, 1: 27, 2: 18}


def test_hold_out_takes_the_first_of_each_class_and_keeps_the_order():
    labels, positions = labels_of(7, 5), shuffled(12, 3)
    kept, held_out = hold_out(positions, labels, 0.3)
    taken, expected = Counter(), []
    for position in positions.tolist():
        if taken[labels[position]] < 2:  # .3 of 7 and of 5 are 2.1 and 1.5, together 3.6: 2 and 2
            taken[labels[position]] += 1
            expected.append(position)
    assert held_out.tolist() == expected
    assert kept.tolist() == [position for position in positions.tolist() if position not in expected]


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.99])
def test_every_class_keeps_an_image(fraction):
    labels = labels_of(1, 2, 9)
    kept, _ = hold_out(np.arange(12), labels, fraction)
    assert set(labels[kept].tolist()) == {0, 1, 2}


def test_shares_below_one_image_add_up_over_classes():
    labels = labels_of(*[4] * 10)
    _, held_out = hold_out(np.arange(40), labels, 0.1)
    assert len(held_out) == 4 and max(Counter(labels[held_out].tolist()).values()) == 1


def test_unlabelled_samples_are_held_out_as_one_class():
    positions = shuffled(20, 0)
    _, held_out = hold_out(positions, None, 0.25)
    assert held_out.tolist() == positions[:5].tolist()


def test_shards_hold_every_sample_once_and_as_many_as_fit():
    tar_bytes = np.random.default_rng(0).integers(1, 20, 100) * 512
    target = 40_960
    shards = cut_into_shards(tar_bytes, target)
    assert [number for shard in shards for number in shard] == list(range(100))
    for shard in shards:
        used = int(tar_bytes[shard.start : shard.stop].sum()) + 1024
        assert used <= target
        assert shard.stop == 100 or used + tar_bytes[shard.stop] > target


def test_a_sample_larger_than_the_target_has_a_shard_of_its_own():
    assert cut_into_shards(np.array([1024, 99_840, 1024]), 20_480) == [range(0, 1), range(1, 2), range(2, 3)]


def test_a_target_that_is_no_whole_number_of_tar_records_is_kept_too():
    # Tars come in records of 10,240 bytes: below 20,480 only one record is left, 9,216 bytes of members.
    assert cut_into_shards(np.array([5120, 5120]), 20_479) == [range(0, 1), range(1, 2)]


def test_shards_hold_no_more_samples_than_asked_for():
    assert cut_into_shards(np.zeros(5, np.int64), 10**6, 2) == [range(0, 2), range(2, 4), range(4, 5)]
