"""What studies of many trainings share: each step is a command of this project, in a process of its own."""

import ctypes
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

PR_SET_PDEATHSIG = 1  # of Linux' prctl: the signal that a process gets when its parent is gone


class StepError(Exception):
    """A command of a study failed; the message is its last word."""


def run_step(words: Sequence[str]) -> None:
    """Prints and runs a command of this project in a process of its own, which Ctrl-C asks to save and stop.

    On Linux it does not outlive this process, however that ends: started again, a study has its folders to itself.

    Raises:
        StepError: it failed; it has said why.
        KeyboardInterrupt: it, or this process, was interrupted.
    """
    print(f"\n$ python {shlex.join(words)}", flush=True)
    process = subprocess.Popen(
        [sys.executable, *words],
        stderr=subprocess.PIPE,
        text=True,
        errors="backslashreplace",
        start_new_session=True,
        preexec_fn=_end_with_parent(),
    )
    with process.stderr:
        try:
            last = pass_on(process.stderr)
            code = process.wait()
        except BaseException:
            process.terminate()
            try:
                pass_on(process.stderr)
            except BaseException:  # asked once more: at once
                process.kill()
                raise
            finally:
                process.wait()
            raise
    if code == 130:
        raise KeyboardInterrupt
    if code:
        how = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
        raise StepError(f"{words[1]}: {last.removeprefix('ERROR: ') if last else how}")


def _end_with_parent():
    # What the child runs before it becomes the command. Everything is loaded before the fork.
    if not sys.platform.startswith("linux"):
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def ask():
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was gone before
            os._exit(1)

    return ask


def pass_on(stream: TextIO) -> str:
    """Writes the lines of a stream to stderr until it ends; returns the one that says what went wrong, or the last."""
    last = ""
    for line in stream:
        sys.stderr.write(line)
        if line.startswith("ERROR: ") or (line.strip() and not last.startswith("ERROR: ")):
            last = line.strip()
    return last


def setting_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """In words, what the setting of a study is now and was not when its finished steps ran."""
    for name, value in new.items():
        if old.get(name) != value:
            yield f"{name} was {old.get(name)!r}, received {value!r}"
