"""Ctrl-C and SIGTERM during training: finish the step, save, stop."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Notes the first signal instead of obeying it; a second one ends the process as usual.

    Yields:
        A function that says whether a signal has come.
    """
    received = threading.Event()
    previous = {}

    def note(number, frame):
        os.write(2, b"\nfinishing this step, then saving and stopping; once more to stop at once\n")
        received.set()
        restore()

    def restore():
        for number, handler in previous.items():
            signal.signal(number, handler)

    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield received.is_set
    finally:
        restore()
