"""Writes checkpoints in a thread while training goes on.

Training waits only for a copy of the variables in host memory, which the thread then writes: .2 to .4 s for ViT-B
(1.3 GB with AdamW's slots) on two busy cores. The copy's memory stays for the next one: to fill fresh memory can take
seconds.

A full disk does not end training: the failure is named on stderr, older checkpoints stay, and the next one tries again.
Only where nothing follows, at the end of a run, a state that cannot be saved is an error.
"""

import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from keras_mae.training.checkpoints import CheckpointError, Checkpoints, by_path

COPY_THREADS = min(4, os.cpu_count() or 1)
LAST_TRIES = 3
REST = 4  # times as long as a piece took, the thread rests before the next: steps come first


class CheckpointWriter:
    """One checkpoint at a time, written in a thread. A context: leaving it waits for the thread.

    Args:
        checkpoints: where to.
        variables: all variables to save.
        pause: seconds between the tries of `save`.

    Attributes:
        failed_at: `time.monotonic()` of the last write, if it failed; else None.

    Raises:
        CheckpointError: two variables share a path.
    """

    def __init__(self, checkpoints: Checkpoints, variables: Sequence, *, pause: float = 20.0):
        self.checkpoints = checkpoints
        self.pause = pause
        self.failed_at: float | None = None
        self._variables = by_path(variables)
        self._copies: dict[str, np.ndarray] = {}
        self._hurry = threading.Event()  # set once somebody waits for the thread
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._task: Future = self._thread.submit(self._allocate)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._hurry.set()
        self._thread.shutdown(wait=True)

    @property
    def is_free(self) -> bool:
        """Whether the thread has nothing to do; a fault of it (not a failure to write) is raised here."""
        if self._task.done():
            self._task.result()
        return self._task.done()

    def start(self, step: int, state: dict) -> None:
        """Copies the variables and lets the thread write the copy; waits for the write before, if it is not done."""
        self._task.result()
        self._copy()
        self._task = self._thread.submit(self._write, step, state)

    def save(self, step: int, state: dict) -> None:
        """Saves the last state of a run, and waits until it is on the disk; tries that several times.

        Raises:
            CheckpointError: all tries failed.
        """
        self._hurry.set()
        self._task.result()
        self._copy()
        for tried in range(LAST_TRIES):
            time.sleep(self.pause if tried else 0)
            self._task = self._thread.submit(self._write, step, state)
            error = self._task.result()
            if error is None:
                return
        paths = self.checkpoints.paths()
        raise CheckpointError(
            f"The state of step {step} could not be saved in {self.checkpoints.folder}: {error.strerror or error}. "
            f"The newest checkpoint is {paths[-1].name if paths else 'none'}. Make room, then run the same command "
            "again."
        )

    def _allocate(self) -> None:
        copies = {path: np.empty(tuple(v.shape), v.dtype) for path, v in self._variables.items()}
        for copy in copies.values():
            copy.fill(0)  # the system gives memory when it is first written to
        self._copies = copies

    def _copy(self) -> None:
        # What TensorFlow reads from a variable is safe from later updates, but to hold all of it while the thread
        # writes would make each update ask for new memory, on accelerators for the device's.
        values = (tf.convert_to_tensor(v.value) for v in self._variables.values())
        with ThreadPoolExecutor(COPY_THREADS, "copy") as threads:
            list(threads.map(_copy_into, self._copies.values(), values))

    def _write(self, step: int, state: dict) -> OSError | None:
        try:
            self.checkpoints.write(step, self._copies, state, self._rest)
        except OSError as error:
            self.failed_at = time.monotonic()
            print(
                f"\nWARNING: the checkpoint of step {step} could not be written to {self.checkpoints.folder}: "
                f"{error.strerror or error}. Older ones are untouched; it is tried again later.",
                file=sys.stderr,
            )
            return error
        self.failed_at = None
        return None

    def _rest(self, seconds: float) -> None:
        self._hurry.wait(REST * seconds)


def _copy_into(copy: np.ndarray, value) -> None:
    np.copyto(copy, np.asarray(memoryview(value)))
