"""A run that several workers carry out in one run folder: the chief writes there, all read the same."""

import contextlib
import json
import pathlib
import time
from collections.abc import Callable, Iterator

import tensorflow as tf

from keras_mae.training import run_dir
from keras_mae.training.keras_fit import WorkersModel
from keras_mae.training.workers import addresses, all_succeed, exchange, is_chief, wait_for_all

SEEN_SECONDS = 60.0  # network file systems show a new file late


@contextlib.contextmanager
def opened(folder: pathlib.Path, description: dict, strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Locks and claims the run folder for all workers: the chief does it, the others check that they see it.

    Raises:
        RunDirError: the folder holds another run, is in use, is not one that all workers share, or this worker was
            started with other flags than the chief.
        HostError: that happened to another worker.
    """
    with contextlib.ExitStack() as stack:
        with all_succeed(strategy):
            if is_chief(strategy):
                stack.enter_context(run_dir.locked(folder))
                run_dir.claim(folder, description)
        with all_succeed(strategy):
            if not is_chief(strategy):
                _check_seen(folder, description)
        yield


def check_same_step(step: int, folder: pathlib.Path, strategy: tf.distribute.Strategy) -> None:
    """Refuses to train where the workers restored different checkpoints; all of them raise it.

    Raises:
        RunDirError: with the step of each worker.
    """
    steps = [int(text) for text in exchange(strategy, str(step))]
    if len(set(steps)) > 1:
        seen = ", ".join(f"worker {number} step {seen}" for number, seen in enumerate(steps))
        raise run_dir.RunDirError(
            f"The workers see different newest checkpoints in {folder}: {seen}. --run_dir must be a folder of a file "
            "system that all of them share."
        )


@contextlib.contextmanager
def stopping_together(trainer: WorkersModel, stop_requested: Callable[[], bool]) -> Iterator[Callable[[], bool]]:
    """Lets all workers stop after the same step, when one of them is asked to; they end when the chief has saved.

    Yields:
        A function that says whether to stop after the last step: without other workers, `stop_requested` itself.
    """
    strategy = trainer.distribute_strategy
    trainer.stop_requested = stop_requested
    try:
        yield trainer.all_stop if addresses(strategy) else stop_requested
    except KeyboardInterrupt:
        if trainer.all_stop():
            wait_for_all(strategy)
        raise


def _check_seen(folder: pathlib.Path, description: dict) -> None:
    deadline = time.monotonic() + SEEN_SECONDS
    while (differences := _differences(folder, description)) and time.monotonic() < deadline:
        time.sleep(0.5)
    if differences:
        raise run_dir.RunDirError(differences)


def _differences(folder: pathlib.Path, description: dict) -> str:
    seen = run_dir.read_description(folder)
    if seen is None:
        return (
            f"This worker does not see the file {folder / run_dir.NAME} that worker 0 has written. --run_dir must be a "
            "folder of a file system that all workers share."
        )
    found = list(run_dir.differences(seen, json.loads(json.dumps(description))))
    if not found:
        return ""
    return (
        f"This worker does not take part in the run that worker 0 has begun in {folder}: {'; '.join(found)}. "
        "All workers need the same command, and a folder that they share."
    )
