"""One line on stderr about long work: how fast, how far, how much longer."""

import sys
import time
from collections.abc import Callable
from typing import TextIO


class Progress:
    """Counts finished work and shows it, after a moment of silence and not too often.

    Args:
        samples: images in all.
        num_bytes: bytes in all.
        stream: where to show it. On a terminal the line is overwritten, elsewhere each one is a new line.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        samples: int,
        num_bytes: int,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.samples, self.num_bytes = samples, num_bytes
        self.stream = sys.stderr if stream is None else stream
        self.clock = clock
        self.done_samples = self.done_bytes = 0
        self.start = clock()
        self.on_terminal = self.stream.isatty()
        self.interval = 0.5 if self.on_terminal else 10.0  # seconds
        self.next_line = self.start + 2.0
        self.shown = False

    def add(self, samples: int, num_bytes: int) -> None:
        """Counts work that was finished since the last call, and shows a line if it is time for one."""
        self.done_samples += samples
        self.done_bytes += num_bytes
        if self.clock() >= self.next_line:
            self.next_line = self.clock() + self.interval
            self._show()

    def close(self) -> None:
        """Ends the line on a terminal, so that what is printed next begins a new one."""
        if self.shown and self.on_terminal:
            self.stream.write("\n")

    def _show(self) -> None:
        seconds = max(self.clock() - self.start, 1e-9)
        left = (self.num_bytes - self.done_bytes) * seconds / max(self.done_bytes, 1)
        line = (
            f"{self.done_samples}/{self.samples} images, {self.done_samples / seconds:.0f} images/s, "
            f"{self.done_bytes / 1e6 / seconds:.1f} MB/s, {_duration(left)} left"
        )
        self.stream.write(f"\r{line:<78}" if self.on_terminal else f"{line}\n")
        self.stream.flush()
        self.shown = True


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
