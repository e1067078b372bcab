"""Commands that a benchmark runs: timed, bounded, ended with all that they started, their memory watched."""

import contextlib
import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence

from keras_mae.commandline import CommandError

LIMIT_SECONDS = 3600
# Seconds between two looks at the memory of processes: often at first, so that short work is seen too.
_FIRST_PAUSE, _LONGEST_PAUSE, _GROWTH = 0.01, 0.2, 1.1
_SECONDS_TO_DIE = 5
# What is loaded into any process that has imported it.
_TENSORFLOW_LIBRARY = b"libtensorflow"


def timed(words: Sequence[str]) -> tuple[float, str]:
    """Runs a command; returns seconds from before its start to after its end, and what it printed.

    Raises:
        CommandError: it failed, or took longer than an hour.
    """
    start = time.perf_counter()
    with started(words) as process:
        printed = finish(process)
    return time.perf_counter() - start, printed


@contextlib.contextmanager
def started(words: Sequence[str]) -> Iterator[subprocess.Popen]:
    """A command that runs, in a process group of its own; the block is to `finish` it.

    If the block raises instead, Ctrl-C included, all processes of the group are killed.
    """
    # As where a command is used every day: its modules have been compiled before.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
    )
    try:
        yield process
    except BaseException:
        if process.returncode is None:  # not waited for yet, so that the number is still its own
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            _wait_for_group(process.pid)
        raise


def _wait_for_group(group: int) -> None:
    # Its processes may hold files in a folder that is about to be deleted.
    deadline = time.monotonic() + _SECONDS_TO_DIE
    with contextlib.suppress(OSError):  # nobody is left
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.01)


def finish(process: subprocess.Popen) -> str:
    """Waits for a command, and returns what it printed.

    Raises:
        CommandError: it failed, or took longer than an hour.
    """
    command = shlex.join(process.args)
    try:
        printed, complaints = process.communicate(timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        raise CommandError(f"this command took longer than {LIMIT_SECONDS} s: {command}") from None
    if process.returncode:
        last = complaints.strip().rpartition("\n")[2] or f"exit code {process.returncode}"
        raise CommandError(f"this command failed, {last}: {command}")
    return printed


class MemoryWatch:
    """Watches the processes of a group while a `with` block runs: peak memory, and whether TensorFlow is loaded.

    Needs Linux; elsewhere it finds no process. What happens in the last fifth of a second of a process may be missed.

    Args:
        group: number of the process group, which is that of the process that leads it.

    Attributes:
        peak_bytes: for each process by number, the most memory that it ever had in RAM (VmHWM), what it shares with
            its parent included.
        has_tensorflow: whether one of them had TensorFlow's library loaded.
    """

    def __init__(self, group: int):
        self.group = group
        self.peak_bytes: dict[int, int] = {}
        self.has_tensorflow = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        pause = _FIRST_PAUSE
        while not self._ended.wait(pause):
            pause = min(pause * _GROWTH, _LONGEST_PAUSE)
            for process in _processes_of(self.group):
                with contextlib.suppress(OSError, StopIteration):  # it has just ended
                    self._look_at(process)

    def _look_at(self, process: int) -> None:
        with open(f"/proc/{process}/status", "rb") as lines:
            line = next(line for line in lines if line.startswith(b"VmHWM:"))
        self.peak_bytes[process] = int(line.split()[1]) * 1024
        with open(f"/proc/{process}/maps", "rb") as file:
            self.has_tensorflow |= _TENSORFLOW_LIBRARY in file.read()


def _processes_of(group: int) -> list[int]:
    found = []
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if name.isdecimal():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                # "number (name) state parent group ...", where the name may hold anything
                if int(file.read().rpartition(b")")[2].split()[2]) == group:
                    found.append(int(name))
    return found
