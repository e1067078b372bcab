"""Encoded samples to batches, by Python threads that decode without Python's lock.

The thread that asks for batches plans them and hands groups of samples to the decoding threads, several batches ahead;
each thread writes its images straight into the batch. Python itself does little for an image (tools.benchmark measures
how little), so one process can keep many cores busy. This module imports no TensorFlow.
"""

import collections
import itertools
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from pipeline.host_decode import DecodeError
from pipeline.host_draws import draw_rows, sample_seeds
from pipeline.philox import purpose_tag
from pipeline.recycled_memory import RecycledMemory
from pipeline.stats import CorruptSampleError, ReadingStats
from pipeline.stream_reader import Rows

# Samples of a task: with fewer, handing over tasks costs time; with more, threads wait for each other.
GROUP_SAMPLES = 8


class Batch(NamedTuple):
    """A batch as `pipeline.load` gives it: `labels` int32 (B,), `weights` float32 (B,): 0 where it is filled up."""

    features: dict[str, np.ndarray]
    labels: np.ndarray
    weights: np.ndarray


class _Pending(NamedTuple):
    batch: Batch
    samples: int
    tasks: list[Future]

    def is_done(self) -> bool:
        return all(task.done() for task in self.tasks)


class BatchMaker:
    """Makes batches of rows.

    Args:
        view: function of an encoded image, its seed, int64 (2,), and the image to fill, (*image_shape) of `dtype`.
        image_shape: (height, width, channels).
        dtype: of the images' numbers.
        seed: of the run.
        noise: draws per sample, by the name of the feature.
        stats: counts, and limits what may be skipped.
        num_threads: that decode.
    """

    def __init__(
        self,
        view: Callable[[memoryview, np.ndarray, np.ndarray], None],
        image_shape: tuple[int, int, int],
        *,
        dtype: str = "uint8",
        seed: int,
        noise: Mapping[str, int],
        stats: ReadingStats,
        num_threads: int,
    ):
        self._view = view
        self._image_shape = image_shape
        self._dtype = dtype
        self._seed = seed
        self._noise = noise
        self._stats = stats
        self._num_threads = num_threads
        self._memory = RecycledMemory()

    def batches(self, plan: Generator[list[Rows]], batch_size: int) -> Iterator[Batch]:
        """One batch for each list of rows in `plan`, in its order; filled up to `batch_size` at weight 0.

        A sample that cannot be decoded and may be skipped is replaced by a copy of the nearest good one, at weight 0.

        Raises:
            ReadingError: see `host_reading.BlockLoader.load`.
            CorruptSampleError: more samples cannot be decoded than may be skipped.
        """
        ahead = max(2, -(-2 * self._num_threads * GROUP_SAMPLES // batch_size))
        pending: collections.deque[_Pending] = collections.deque()
        threads = ThreadPoolExecutor(self._num_threads, thread_name_prefix="decode")
        try:
            for rows in plan:
                pending.append(self._start(rows, batch_size, threads))
                if len(pending) > ahead:
                    yield self._finish(pending, ahead)
            while pending:
                yield self._finish(pending, ahead)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            plan.close()

    def _start(self, rows: list[Rows], batch_size: int, threads: ThreadPoolExecutor) -> _Pending:
        index, labels, epoch = (np.zeros(batch_size, kind) for kind in (np.int64, np.int32, np.int64))
        row = 0
        for block, begin, end in rows:
            part = slice(row, row := row + end - begin)
            index[part], labels[part], epoch[part] = block.index[begin:end], block.label[begin:end], block.epoch
        seeds = sample_seeds(self._seed, epoch, index)
        images = self._memory.array((batch_size, *self._image_shape), self._dtype)
        features = {"image": images, "index": index}
        features |= {name: np.empty((batch_size, count), np.float32) for name, count in self._noise.items()}
        weights = np.zeros(batch_size, np.float32)
        weights[:row] = 1
        tasks = [threads.submit(self._draw_noise, seeds, features)] if self._noise else []
        row = 0
        for block, begin, end in rows:
            for first in range(begin, end, GROUP_SAMPLES):
                group = Rows(block, first, min(first + GROUP_SAMPLES, end))
                part = slice(row, row := row + group.end - first)
                tasks.append(threads.submit(self._decode, group, seeds[part], images[part], weights[part]))
        return _Pending(Batch(features, labels, weights), row, tasks)

    def _draw_noise(self, seeds: np.ndarray, features: dict[str, np.ndarray]) -> None:
        for name in self._noise:
            draw_rows(seeds, purpose_tag(f"noise/{name}"), features[name])

    def _decode(self, group: Rows, seeds: np.ndarray, images: np.ndarray, weights: np.ndarray) -> None:
        begin, view, block = time.thread_time(), self._view, group.block
        for row, sample in enumerate(range(group.begin, group.end)):
            try:
                view(block.encoded(sample), seeds[row], images[row])
            except DecodeError as error:
                self._stats.add_corrupt(block.name(sample), str(error))
                weights[row] = 0
        self._stats.add_decoded(len(seeds), time.thread_time() - begin)

    def _finish(self, pending: collections.deque[_Pending], ahead: int) -> Batch:
        ready = sum(1 for _ in itertools.takewhile(_Pending.is_done, pending))
        self._stats.set_queue(min(ready, ahead), ahead)
        batch, samples, tasks = pending.popleft()
        for task in tasks:
            task.result()
        if samples and not batch.weights.any():
            raise CorruptSampleError("None of the samples of a batch can be decoded")
        good = np.flatnonzero(batch.weights)
        columns = [*batch.features.values(), batch.labels]
        if samples == 0:
            for column in columns:
                column[...] = 0
            return batch
        for row in np.flatnonzero(batch.weights == 0):
            nearest = good[np.argmin(np.abs(good - row))]
            for column in columns:
                column[row] = column[nearest]
        return batch
