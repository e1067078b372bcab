"""What is computed every so many steps of a training: evaluations and pictures."""

from collections.abc import Callable

from keras_mae.training.callbacks import StepCallback
from keras_mae.training.run_log import RunLog


class Evaluation(StepCallback):
    """Runs `evaluate` every so many steps and logs its numbers as `val_...`.

    Args:
        log: where rows go.
        every: steps between evaluations; one follows the last step too.
        evaluate: gives name -> number.
    """

    def __init__(self, start_step, total_steps, *, log: RunLog, every, evaluate: Callable[[], dict]):
        super().__init__(start_step, total_steps)
        self.log = log
        self.every = every
        self.evaluate = evaluate

    def after_step(self, logs):
        if self.is_due(self.every):
            results = {f"val_{name}": value for name, value in self.evaluate().items() if name != "samples"}
            self.log.scalars(self.step, results)


class Images(StepCallback):
    """Logs pictures every so many steps.

    Args:
        log: where pictures go.
        every: steps between pictures; the last step has some too.
        draw: gives name -> uint8 images (count, height, width, channels).
    """

    def __init__(self, start_step, total_steps, *, log: RunLog, every, draw: Callable[[], dict]):
        super().__init__(start_step, total_steps)
        self.log = log
        self.every = every
        self.draw = draw

    def after_step(self, logs):
        if self.is_due(self.every):
            self.log.images(self.step, self.draw())
