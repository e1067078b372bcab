"""Which sample goes where: shuffling, setting some aside for validation, cutting into shards.

Pure functions of numbers, sizes, labels and the seed, on NumPy columns: 16 bytes a sample, wherever the bytes of
the images are. So a global permutation of a terabyte needs no more memory than its list, and shards read their
images from wherever they lie, inside an archive too. This module imports no TensorFlow.
"""

import tarfile

import numpy as np

from pipeline.tar_members import BLOCK


def shuffled(num_samples: int, seed: int) -> np.ndarray:
    """A permutation of `num_samples` positions, int64, that depends on their number and the seed alone.

    It is the order of the raw 64-bit output of a Philox generator, which NumPy keeps the same in all versions
    (it does not promise that for `Generator.permutation`).

    Args:
        num_samples: number of positions.
        seed: 0 to 2**64 - 1.
    """
    return np.argsort(np.random.Philox(key=seed).random_raw(num_samples), kind="stable")


def hold_out(positions: np.ndarray, labels: np.ndarray | None, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Sets a share of each class aside, so that both parts have the classes in the same proportions.

    In total the nearest whole number of `fraction * len(positions)` is set aside; within a class it is the exact
    share rounded down or up (largest remainders up). The last image of a class is never set aside, so that no
    class loses all its training images. Samples without labels count as one class.

    Args:
        positions: shuffled samples; the first ones of each class are set aside.
        labels: of all samples, by position; None: they have none.
        fraction: in (0, 1).

    Returns:
        The positions that stay, and those set aside, each in the order of `positions`.
    """
    own = np.zeros(len(positions), np.int64) if labels is None else labels[positions].astype(np.int64)
    counts = np.bincount(own)
    quotas = _quotas(counts, fraction)
    # Rank of each sample within its class, in the order of `positions`.
    by_class = np.argsort(own, kind="stable")
    starts = np.cumsum(counts) - counts
    rank = np.empty(len(own), np.int64)
    rank[by_class] = np.arange(len(own)) - starts[own[by_class]]
    is_held_out = rank < quotas[own]
    return positions[~is_held_out], positions[is_held_out]


def _quotas(counts: np.ndarray, fraction: float) -> np.ndarray:
    # (classes,): how many of each are set aside.
    shares = fraction * counts
    most = np.maximum(counts - 1, 0)
    quotas = np.minimum(shares.astype(np.int64), most)
    left = round(fraction * int(counts.sum())) - int(quotas.sum())
    may_grow = quotas < np.minimum(shares, most)
    by_remainder = np.argsort(np.floor(shares) - shares, kind="stable")  # largest first
    quotas[by_remainder[may_grow[by_remainder]][: max(left, 0)]] += 1
    return quotas


def cut_into_shards(tar_bytes: np.ndarray, target_bytes: int, max_samples: int | None = None) -> list[range]:
    """Cuts a sequence of samples into shards, in order.

    Args:
        tar_bytes: int64 (samples,): what each sample takes in a tar, in the order in which they are written.
        target_bytes: no tar is larger, except one that holds a single sample.
        max_samples: no tar holds more samples; None: as many as fit.

    Returns:
        For each shard the range of its samples' numbers; every range holds at least one.
    """
    ends = np.cumsum(tar_bytes)
    # A tar ends with two empty blocks, and is filled up to whole records.
    room = target_bytes // tarfile.RECORDSIZE * tarfile.RECORDSIZE - 2 * BLOCK
    shards, start, before = [], 0, 0
    while start < len(tar_bytes):
        stop = max(int(np.searchsorted(ends, before + room, side="right")), start + 1)
        if max_samples is not None:
            stop = min(stop, start + max_samples)
        shards.append(range(start, stop))
        start, before = stop, int(ends[stop - 1])
    return shards
