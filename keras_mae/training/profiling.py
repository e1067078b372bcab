"""`--profile_steps`: a trace of some steps, for TensorBoard's profiler."""

import os

import tensorflow as tf

from keras_mae.training.callbacks import StepCallback


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
