"""Which sample comes when: a pure function of (shard set, split, seed, epoch).

Training reads the endless sequence epoch 0, epoch 1, ...; global batch t is its positions t * batch_size ..
t * batch_size + batch_size - 1. Every epoch holds every sample exactly once, so a batch may span two epochs
and nothing is dropped.

An epoch is shuffled by blocks: the shards are permuted, each group of `BLOCK_SHARDS` consecutive ones is a
block, and the samples of a block are permuted together. A reader so holds a few shards, not the split, and
can plan (and seek to) any block without planning those before it. A split of up to `BLOCK_SHARDS` shards is
shuffled completely.

Permutations sort raw Philox output, which NumPy keeps the same between versions (`Generator.permutation` it
does not). This module imports no TensorFlow.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

BLOCK_SHARDS = 8


def permutation(count: int, *, seed: int, epoch: int, stream: int) -> np.ndarray:
    """A permutation of 0 .. count - 1 that (seed, epoch, stream) determine.

    Args:
        count: length.
        seed: of the run.
        epoch: number of the epoch.
        stream: tells apart the permutations of one epoch: 0 its shards, 1 + b the samples of its block b.

    Returns:
        int64 (count,).
    """
    key = np.array([seed, epoch], np.uint64)
    # Drawing counts up the counter's first word, so streams that differ in the last one never overlap.
    counter = np.array([0, 0, 0, stream], np.uint64)
    return np.argsort(np.random.Philox(key=key, counter=counter).random_raw(count), kind="stable")


@functools.lru_cache(maxsize=4)
def _shard_permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    shards = permutation(count, seed=seed, epoch=epoch, stream=0)
    shards.setflags(write=False)
    return shards


class Block(NamedTuple):
    """A part of an epoch that is read together.

    Attributes:
        epoch: number of the epoch it belongs to.
        shards: int64 (num_shards,): the shards to read, as numbers in the manifest.
        slot: int64 (samples,): per sample, in the order of reading, which of `shards` holds it.
        row: int64 (samples,): per sample, its place in that shard.
        index: int64 (samples,): per sample, its number in the split.
    """

    epoch: int
    shards: np.ndarray
    slot: np.ndarray
    row: np.ndarray
    index: np.ndarray


class ShuffledOrder:
    """The endless, shuffled sequence of a split's samples, for training.

    Blocks are numbered through all epochs: block b is block b % num_blocks of epoch b // num_blocks.

    Args:
        shard_samples: number of samples of each shard, in manifest order.
        seed: of the run, from 0 to 2**63 - 1.

    Raises:
        ValueError: the split is empty, or the seed out of range.
    """

    def __init__(self, shard_samples: Sequence[int], seed: int):
        if not 0 <= seed < 2**63:
            raise ValueError(f"`seed` must be an integer from 0 to 2**63 - 1. Received: {seed}")
        self.seed = seed
        self.shard_samples = np.asarray(shard_samples, np.int64)
        self.samples = int(self.shard_samples.sum())
        if self.samples == 0:
            raise ValueError("The split holds no samples; training needs at least one")
        self.shards_per_block = min(BLOCK_SHARDS, len(self.shard_samples))
        self.num_blocks = -(-len(self.shard_samples) // self.shards_per_block)
        self.end = None
        self._first_index = np.cumsum(self.shard_samples) - self.shard_samples

    def locate(self, position: int) -> tuple[int, int]:
        """The block that holds a position of the endless sequence, and the position's place in that block."""
        epoch, rest = divmod(position, self.samples)
        shards = _shard_permutation(len(self.shard_samples), self.seed, epoch)
        starts = np.arange(0, len(shards), self.shards_per_block)
        ends = np.cumsum(np.add.reduceat(self.shard_samples[shards], starts))
        block = int(np.searchsorted(ends, rest, side="right"))
        return epoch * self.num_blocks + block, rest - (int(ends[block - 1]) if block else 0)

    def block(self, number: int) -> Block:
        """Plans one block of the endless sequence."""
        epoch, block = divmod(number, self.num_blocks)
        start = block * self.shards_per_block
        shards = _shard_permutation(len(self.shard_samples), self.seed, epoch)
        shards = shards[start : start + self.shards_per_block]
        planned = _block_in_manifest_order(epoch, shards, self.shard_samples, self._first_index)
        order = permutation(len(planned.index), seed=self.seed, epoch=epoch, stream=1 + block)
        return planned._replace(slot=planned.slot[order], row=planned.row[order], index=planned.index[order])


class ManifestOrder:
    """One pass over a split in the manifest's order, for evaluation; a block is one shard.

    Args:
        shard_samples: number of samples of each shard, in manifest order.

    Raises:
        ValueError: the split is empty.
    """

    def __init__(self, shard_samples: Sequence[int]):
        self.shard_samples = np.asarray(shard_samples, np.int64)
        self.samples = int(self.shard_samples.sum())
        if self.samples == 0:
            raise ValueError("The split holds no samples; evaluation needs at least one")
        self.shards_per_block = 1
        self.num_blocks = len(self.shard_samples)
        self.end = self.num_blocks
        self._first_index = np.cumsum(self.shard_samples) - self.shard_samples

    def locate(self, position: int) -> tuple[int, int]:
        """The block that holds a position, and the position's place in that block."""
        block = int(np.searchsorted(np.cumsum(self.shard_samples), position, side="right"))
        return block, position - int(self._first_index[block])

    def block(self, number: int) -> Block:
        """Plans one block: all samples of shard `number`."""
        return _block_in_manifest_order(0, np.array([number]), self.shard_samples, self._first_index)


def _block_in_manifest_order(
    epoch: int, shards: np.ndarray, shard_samples: np.ndarray, first_index: np.ndarray
) -> Block:
    counts = shard_samples[shards]  # (num_shards,)
    slot = np.repeat(np.arange(len(shards)), counts)  # (samples,)
    row = np.arange(len(slot)) - np.repeat(np.cumsum(counts) - counts, counts)
    return Block(epoch, shards, slot, row, first_index[shards][slot] + row)


@dataclasses.dataclass(frozen=True)
class ReadingState:
    """Where a training run is in its data; small, so that a checkpoint can carry it.

    Attributes:
        seed: of the run.
        epoch: number of the epoch that the next sample belongs to.
        position: number of samples of that epoch already read.
    """

    seed: int
    epoch: int
    position: int

    @classmethod
    def from_step(cls, step: int, *, batch_size: int, samples: int, seed: int) -> "ReadingState":
        """The state after `step` global batches of `batch_size` from a split of `samples`."""
        return cls(seed, *divmod(step * batch_size, samples))

    def step(self, *, batch_size: int, samples: int) -> int:
        """The number of global batches read.

        Raises:
            ValueError: the state is not on a border between batches of this size.
        """
        position = self.epoch * samples + self.position
        if position % batch_size:
            raise ValueError(
                f"The reading state {self.to_dict()} is {position} samples into the data, which is no whole "
                f"number of batches of {batch_size}; go on with the batch size that it was written with"
            )
        return position // batch_size

    def to_dict(self) -> dict[str, int]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> "ReadingState":
        """Inverse of `to_dict`.

        Raises:
            ValueError: a field is missing, unknown, negative or no integer.
        """
        fields = [field.name for field in dataclasses.fields(cls)]
        whole = all(isinstance(value, int) and value >= 0 for value in state.values())
        if sorted(state) != sorted(fields) or not whole:
            raise ValueError(
                f"A reading state has the fields {', '.join(fields)}, integers from 0 on. Received: {state}"
            )
        return cls(**state)
