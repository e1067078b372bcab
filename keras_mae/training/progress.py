"""The line that shows how far a training is."""

import math
import shutil
import sys
import time
from collections.abc import Callable


class Progress:
    """A line with step, figures and ETA: rewritten in place on a terminal, every 15 s elsewhere.

    Args:
        total_steps: steps of the whole run.

    Attributes:
        rate: steps a second of this process, without its first step, which compiles.
    """

    def __init__(self, total_steps: int):
        self.total_steps = total_steps
        self.terminal = sys.stderr.isatty()
        self.interval = 0.2 if self.terminal else 15.0
        self.shown = 0.0
        self.first = None
        self.rate = 0.0

    def update(self, step: int, describe: Callable[[], str]) -> None:
        """Shows the line if it is time to.

        Args:
            step: steps done, of the whole run.
            describe: gives the figures; called only for a line that is shown, when `rate` is up to date.
        """
        now = time.monotonic()
        if self.first is None:
            self.first = (now, step)
        self.rate = (step - self.first[1]) / max(now - self.first[0], 1e-9)
        if now - self.shown < self.interval and step < self.total_steps:
            return
        self.shown = now
        seconds = (self.total_steps - step) / self.rate if self.rate else math.inf
        self._write(f"step {step}/{self.total_steps}  {describe()}  ETA {duration_text(seconds)}")

    def close(self) -> None:
        """Ends the line on a terminal."""
        if self.terminal:
            sys.stderr.write("\n")

    def _write(self, line: str) -> None:
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be rewritten
            sys.stderr.write(f"\r{line[:width]:<{width}}")
        else:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()


def duration_text(seconds: float) -> str:
    """Seconds as hours:minutes:seconds, "?" for infinity."""
    if math.isinf(seconds):
        return "?"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
