"""Independent tasks on several processes, that end with their parent and stop cleanly at the first error."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any

from keras_mae.commandline import CommandError


def available_cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_tasks(function: Callable, tasks: Sequence[tuple], workers: int) -> Iterator[tuple[int, Any]]:
    """Calls `function(*task)` for every task, and yields (number of the task, result) as they end.

    At the first exception, or when the caller stops iterating, no further task is begun; those that run are
    waited for, so that nothing is still being written afterwards.

    Args:
        function: a function of a module, so that other processes can import it.
        tasks: its arguments, for each call.
        workers: processes. 1 means this one.

    Raises:
        CommandError: a worker ended without a result, for example because the machine ran out of memory.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        for number, task in enumerate(tasks):
            yield number, function(*task)
        return
    # "spawn": a forked copy of a process that runs threads (TensorFlow, a notebook) can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker) as pool:
        try:
            numbers = {pool.submit(function, *task): number for number, task in enumerate(tasks)}
            for future in as_completed(numbers):
                yield numbers[future], future.result()
        except BrokenProcessPool:
            raise CommandError(
                "a worker process ended without a result: it was killed (memory?), or it could not import "
                "the running script (which needs `if __name__ == '__main__':`). Use fewer workers"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _begin_worker() -> None:
    # Ctrl-C reaches every process of a terminal: the parent decides what follows.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
