"""`--profile_steps`: a trace of some steps, for TensorBoard's profiler."""

import os
from collections.abc import Sequence

import tensorflow as tf

from keras_mae.training.callbacks import StepCallback


class ProfilingError(ValueError):
    """The run has no such steps to profile."""


def parse_profile_steps(words: Sequence[str] | None) -> tuple[int, int] | None:
    """First and last step of `--profile_steps=100,110`; None for none.

    Raises:
        ProfilingError: anything but two steps in order.
    """
    if words is None:
        return None
    try:
        first, last = (int(word) for word in words)
    except ValueError:
        first, last = 0, 0
    if not 1 <= first <= last:
        raise ProfilingError(
            "profile_steps takes the first and the last step to trace, counted from 1, such as 100,110. "
            f"Received: {','.join(words)}"
        )
    return first, last


def check_profile_steps(steps: tuple[int, int] | None, total_steps: int) -> None:
    """Raises ProfilingError if the run ends before the last of these steps."""
    if steps is not None and steps[1] > total_steps:
        raise ProfilingError(
            f"profile_steps must lie within the run, which has {total_steps} steps. Received: {steps[0]},{steps[1]}"
        )


class Profiling(StepCallback):
    """Traces the processors from the beginning of one step to the end of another.

    A run that goes on behind the first of these steps traces the others; behind the last one, none.

    Args:
        steps: first and last one.
        folder: of TensorBoard.
    """

    def __init__(self, start_step, total_steps, *, steps: tuple[int, int], folder: str | os.PathLike):
        super().__init__(start_step, total_steps)
        self.steps = steps
        self.folder = folder
        self.is_tracing = False
        self.mark = None

    def on_train_batch_begin(self, batch, logs=None):
        first, last = self.steps
        if not first <= self.step + 1 <= last:
            return
        if not self.is_tracing:
            tf.profiler.experimental.start(str(self.folder))
            self.is_tracing = True
        self.mark = tf.profiler.experimental.Trace("train", step_num=self.step + 1, _r=1)
        self.mark.__enter__()

    def after_step(self, logs):
        if not self.is_tracing:
            return
        self.mark.__exit__(None, None, None)
        if self.step == self.steps[1]:
            tf.profiler.experimental.stop()
            self.is_tracing = False
            print(f"\n{self.folder}: a trace of the steps {self.steps[0]} to {self.steps[1]}", flush=True)
