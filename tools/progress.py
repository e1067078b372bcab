"""One line on stderr about long work: how fast, how far, how much longer."""

import collections
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TextIO


@contextlib.contextmanager
def announced(line: str, after: float = 2.0, stream: TextIO | None = None) -> Iterator[None]:
    """Says what is going on if the block takes longer than a moment.

    Args:
        line: what to say.
        after: seconds.
        stream: where to say it; None: stderr.
    """
    timer = threading.Timer(after, lambda: print(line, file=sys.stderr if stream is None else stream, flush=True))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


class Progress:
    """Counts finished work and shows it, after a moment of silence and not too often.

    Args:
        samples: images in all.
        num_bytes: bytes in all; 0 where none are counted.
        stream: where to show it. On a terminal the line is overwritten, elsewhere each one is a new line.
        clock: seconds that only grow.
        unit: what `samples` counts.
    """

    def __init__(
        self,
        samples: int,
        num_bytes: int,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        unit: str = "images",
    ):
        self.samples, self.num_bytes = samples, num_bytes
        self.stream = sys.stderr if stream is None else stream
        self.clock = clock
        self.unit = unit
        self.done_samples = self.done_bytes = 0
        self.counts = collections.Counter()
        self.start = clock()
        self.on_terminal = self.stream.isatty()
        self.interval = 0.5 if self.on_terminal else 10.0  # seconds
        self.next_line = self.start + 2.0
        self.shown = False

    def add(self, samples: int, num_bytes: int, counts: Mapping[str, int] | None = None) -> None:
        """Counts work that was finished since the last call, and shows a line if it is time for one.

        Args:
            samples: images.
            num_bytes: their bytes.
            counts: other things to count and show by name, such as {"skipped": 2}.
        """
        self.done_samples += samples
        self.done_bytes += num_bytes
        self.counts.update(counts or {})
        if self.clock() >= self.next_line:
            self.next_line = self.clock() + self.interval
            self._show()

    def close(self) -> None:
        """Ends the line on a terminal, so that what is printed next begins a new one."""
        if self.shown and self.on_terminal:
            self.stream.write("\n")

    def _show(self) -> None:
        seconds = max(self.clock() - self.start, 1e-9)
        # By bytes, where they are known.
        done, total = (self.done_bytes, self.num_bytes) if self.num_bytes else (self.done_samples, self.samples)
        line = f"{self.done_samples}/{self.samples} {self.unit}, {self.done_samples / seconds:.0f} {self.unit}/s, "
        if self.num_bytes:
            line += f"{self.done_bytes / 1e6 / seconds:.1f} MB/s, "
        line += f"{_duration((total - done) * seconds / max(done, 1))} left"
        line += "".join(f", {count} {name}" for name, count in self.counts.items() if count)
        self.stream.write(f"\r{line:<78}" if self.on_terminal else f"{line}\n")
        self.stream.flush()
        self.shown = True


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
