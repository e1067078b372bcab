"""Shuffling a source's samples, and setting some aside for validation: pure functions of samples and seed."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from pipeline.sources import Item


def shuffle_items(items: Sequence[Item], seed: int) -> list[Item]:
    """All items in an order that depends on their number and the seed alone.

    The order is that of the raw 64-bit output of a Philox generator, which numpy keeps the same in all
    versions (it does not promise that for `Generator.permutation`).

    Args:
        items: samples in a fixed order (a source's listing is sorted by path).
        seed: 0 to 2**64 - 1.
    """
    draws = np.random.Philox(key=seed).random_raw(len(items))
    return [items[i] for i in np.argsort(draws, kind="stable")]


def hold_out(items: Sequence[Item], fraction: float) -> tuple[list[Item], list[Item]]:
    """Sets a share of each class aside, so that both parts have the classes in the same proportions.

    In total the nearest whole number of `fraction * len(items)` is set aside; within a class it is the exact
    share rounded down or up (largest remainders up). The last image of a class is never set aside, so that no
    class loses all its training images. Items without labels count as one class.

    Args:
        items: shuffled samples; the first ones of each class are set aside.
        fraction: in (0, 1).

    Returns:
        The samples that stay, and those set aside, each in the order of `items`.
    """
    quotas = _quotas(Counter(item.label for item in items), fraction)
    kept, held_out = [], []
    for item in items:
        if quotas[item.label] > 0:
            quotas[item.label] -= 1
            held_out.append(item)
        else:
            kept.append(item)
    return kept, held_out


def _quotas(counts: Counter, fraction: float) -> dict:
    shares = {label: fraction * count for label, count in counts.items()}
    quotas = {label: min(int(share), counts[label] - 1) for label, share in shares.items()}
    left = round(fraction * counts.total()) - sum(quotas.values())
    by_remainder = sorted(shares, key=lambda label: int(shares[label]) - shares[label])  # largest first
    for label in by_remainder:
        if left > 0 and quotas[label] < min(shares[label], counts[label] - 1):
            quotas[label] += 1
            left -= 1
    return quotas
