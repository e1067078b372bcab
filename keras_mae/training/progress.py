"""The line that shows how far a training is."""

import math
import sys
import time


class Progress:
    """A line with step, ETA and figures: rewritten in place on a terminal, every 15 s elsewhere.

    Args:
        total_steps: steps of the whole run.
    """

    def __init__(self, total_steps: int):
        self.total_steps = total_steps
        self.terminal = sys.stderr.isatty()
        self.interval = 0.2 if self.terminal else 15.0
        self.shown = 0.0
        self.first = None
        self.rate = 0.0

    def show(self, step: int, text: str) -> None:
        """Shows the line if it is time to. The first step of the process, which compiles, does not count."""
        now = time.monotonic()
        if self.first is None:
            self.first = (now, step)
        self.rate = (step - self.first[1]) / max(now - self.first[0], 1e-9)
        if now - self.shown < self.interval and step < self.total_steps:
            return
        self.shown = now
        seconds = (self.total_steps - step) / self.rate if self.rate else math.inf
        eta = (
            "?"
            if math.isinf(seconds)
            else f"{int(seconds // 3600)}:{int(seconds // 60 % 60):02d}:{int(seconds % 60):02d}"
        )
        line = f"step {step}/{self.total_steps}  {text}  ETA {eta}"
        sys.stderr.write(f"\r{line:<79}" if self.terminal else line + "\n")
        sys.stderr.flush()

    def close(self) -> None:
        """Ends the line on a terminal."""
        if self.terminal:
            sys.stderr.write("\n")
