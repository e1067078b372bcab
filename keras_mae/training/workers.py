"""What the workers of one run, which all compute the same steps, have to say to each other.

Under a strategy of one process everything here is at once and alone: it is the chief, and agrees with itself.
"""

import contextlib
import re
from collections.abc import Iterator

import numpy as np
import tensorflow as tf


class HostError(RuntimeError):
    """Another worker of the run has stopped, or failed, so this one cannot go on."""


def addresses(strategy: tf.distribute.Strategy) -> list[str]:
    """HOST:PORT of all workers; empty for a strategy of one process."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return []
    return strategy.cluster_resolver.cluster_spec().job_tasks("worker")


def worker_number(strategy: tf.distribute.Strategy) -> int:
    """Number of this worker, from 0."""
    return strategy.cluster_resolver.task_id if addresses(strategy) else 0


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one, of those that compute the same, that prints and writes the results."""
    return worker_number(strategy) == 0


def num_own_replicas(strategy: tf.distribute.Strategy) -> int:
    """How many of the replicas compute in this process."""
    return strategy.num_replicas_in_sync // max(len(addresses(strategy)), 1)


def exchange(strategy: tf.distribute.Strategy, text: str) -> list[str]:
    """The texts of all workers; returns when all have called it.

    They travel as a sum of float32 numbers, the one message that every kind of device and network can carry.
    """
    number, count = worker_number(strategy), len(addresses(strategy))
    if not count:
        return [text]
    content = np.frombuffer(text.encode(), np.uint8)
    lengths = _sum_of_rows(strategy, number, count, np.array([len(content)], np.float32))
    longest = int(lengths.max())
    if not longest:
        return [""] * count
    rows = _sum_of_rows(strategy, number, count, np.pad(content, (0, longest - len(content))).astype(np.float32))
    sizes = lengths[:, 0].astype(int)
    return [bytes(row[:size].astype(np.uint8)).decode() for row, size in zip(rows, sizes, strict=True)]


def wait_for_all(strategy: tf.distribute.Strategy) -> None:
    """Returns when all workers have come here."""
    exchange(strategy, "")


@contextlib.contextmanager
def all_succeed(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """A part of the run that all workers end together: where it raises in one of them, it does in all.

    Raises:
        HostError: it raised in another worker; with its sentence.
    """
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    sentences = exchange(strategy, "" if failure is None else str(failure) or type(failure).__name__)
    if failure is not None:
        raise failure
    for number, sentence in enumerate(sentences):
        if sentence:
            raise HostError(f"Worker {number} cannot go on: {sentence}")


@contextlib.contextmanager
def named_host_errors() -> Iterator[None]:
    """Turns what TensorFlow raises when another worker is gone into one sentence; other errors pass.

    Raises:
        HostError: about 10 seconds after the other worker stopped.
    """
    try:
        yield
    except tf.errors.OpError as error:
        if "Collective ops is aborted" not in error.message:
            raise
        # Workers pass on what they hear from each other; the first one named is the one that is gone.
        stopped = re.search(r"/task:(\d+)(?: while |$)", error.message, flags=re.MULTILINE)
        raise HostError(
            f"Worker {stopped[1] if stopped else 'unknown'} has stopped or cannot be reached: its own output says why. "
            "Run the command again on all workers."
        ) from error


def _sum_of_rows(strategy, number: int, count: int, row: np.ndarray) -> np.ndarray:
    # (count, length): the rows of all workers; each worker adds its own to zeros.
    table = np.zeros((count, len(row)), np.float32)
    table[number] = row
    values = strategy.experimental_distribute_values_from_function(lambda context: tf.constant(table))
    return np.asarray(strategy.reduce("SUM", values, axis=None)) / num_own_replicas(strategy)
