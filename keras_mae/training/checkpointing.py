"""When a run saves its state: every so many steps or minutes, at the end, and when it is asked to stop."""

import time
from collections.abc import Callable

from keras_mae.training.callbacks import StepCallback
from keras_mae.training.checkpoint_writer import CheckpointWriter

RETRY_SECONDS = 60.0  # after a checkpoint that could not be written


class Checkpointing(StepCallback):
    """Starts checkpoints, which are written while the next steps run; the last one is waited for.

    A checkpoint that is due while another is being written comes after the first step at which the writer is free.
    Stands last in the list, after all logs of its step.

    Args:
        writer: writes them; None where another worker of the run does.
        every_steps: steps between checkpoints.
        every_minutes: minutes after the last checkpoint at which one is due as well; None: only by steps.
        state: step -> what else to save.
        stop_requested: whether to save after this step, and to stop.
    """

    def __init__(
        self,
        start_step,
        total_steps,
        *,
        writer: CheckpointWriter | None,
        every_steps: int,
        every_minutes: float | None,
        state: Callable[[int], dict],
        stop_requested: Callable[[], bool],
    ):
        super().__init__(start_step, total_steps)
        self.writer = writer
        self.every_steps = every_steps
        self.every_seconds = float("inf") if every_minutes is None else 60 * every_minutes
        self.state = state
        self.stop_requested = stop_requested
        self.overdue = False

    def on_train_begin(self, logs=None):
        self.last_time = time.monotonic()

    def after_step(self, logs):
        stop, last = self.stop_requested(), self.step == self.total_steps
        if self.writer is not None:
            self._save(wait=stop or last)
        if stop and not last:
            raise KeyboardInterrupt

    def _save(self, wait: bool) -> None:
        if wait:
            self.writer.save(self.step, self.state(self.step))
            return
        self.overdue = self.overdue or self._is_time()
        if self.overdue and self.writer.is_free:
            self.writer.start(self.step, self.state(self.step))
            self.overdue, self.last_time = False, time.monotonic()

    def _is_time(self) -> bool:
        now, failed_at = time.monotonic(), self.writer.failed_at
        return (
            self.step % self.every_steps == 0
            or now - self.last_time >= self.every_seconds
            or (failed_at is not None and now - failed_at >= RETRY_SECONDS)
        )
