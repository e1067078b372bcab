"""The rows of training figures, and the progress line."""

import sys
import time
from collections.abc import Callable

from keras_mae.training.callbacks import StepCallback
from keras_mae.training.memory import peak_memory
from keras_mae.training.progress import Progress
from keras_mae.training.run_log import RunLog

# Share of the time that steps wait for their batch, from which on it is worth a word.
INPUT_BOUND = 0.2


class StepLog(StepCallback):
    """Logs the step's own loss and how fast training is, and shows progress.

    Rates are of the time in steps: evaluations, pictures and checkpoints between them are counted as `pause_seconds`.

    Args:
        log: where rows go.
        every: steps between rows.
        schedule: step (from 0) -> learning rate.
        batch_size: global batch, for images/s.
        samples: of the training split, for the epoch.
        reading: gives figures of the input pipeline, name -> number, to be logged too.
    """

    def __init__(
        self,
        start_step,
        total_steps,
        *,
        log: RunLog,
        every,
        schedule,
        batch_size,
        samples,
        reading: Callable[[], dict[str, float]] = dict,
    ):
        super().__init__(start_step, total_steps)
        self.log = log
        self.every = every
        self.schedule = schedule
        self.batch_size = batch_size
        self.samples = samples
        self.reading = reading
        self.progress = Progress(total_steps)
        self.data_wait = 0.0
        self.advised = False

    def on_train_begin(self, logs=None):
        self.last_end = time.monotonic()
        self.began = self.last_end - self.log.last("seconds", 0.0)
        self._start_row()

    def on_train_batch_begin(self, batch, logs=None):
        self.pause += time.monotonic() - self.last_end

    def after_step(self, logs):
        self.last_end = now = time.monotonic()  # what follows is a pause, writing the row too
        if self.is_due(self.every):
            self.log.scalars(self.step, self._figures(float(logs["loss"]), now))
            self._advise(first_row=self.row_step == self.start_step)
            self._start_row()
        self.progress.update(self.step, lambda: self._describe(float(logs["loss"])))

    def _start_row(self) -> None:
        self.row_step, self.row_wait = self.step, self.model.data_wait_seconds
        self.row_began, self.pause = self.last_end, 0.0

    def _figures(self, loss: float, now: float) -> dict[str, float]:
        elapsed = max(now - self.row_began - self.pause, 1e-9)
        images = (self.step - self.row_step) * self.batch_size
        self.data_wait = (self.model.data_wait_seconds - self.row_wait) / elapsed
        return {
            "epoch": self.step * self.batch_size / self.samples,
            "loss": loss,
            "learning_rate": float(self.schedule(self.step - 1)),
            "images_per_second": round(images / elapsed, 2),
            "data_wait": round(self.data_wait, 4),
            "pause_seconds": round(self.pause, 3),
            "seconds": round(now - self.began, 3),
            **peak_memory(),
            **self.reading(),
        }

    def _describe(self, loss: float) -> str:
        memory = peak_memory()
        parts = [
            f"loss {loss:.4f}",
            f"lr {float(self.schedule(self.step - 1)):.2e}",
            f"{self.batch_size * self.progress.rate:.1f} images/s",
            f"data wait {self.data_wait:.0%}",
            f"memory {memory['memory_gb']:.1f} GB",
        ]
        if "gpu_memory_gb" in memory:
            parts.append(f"GPU {memory['gpu_memory_gb']:.1f} GB")
        return "  ".join(parts)

    def _advise(self, first_row: bool) -> None:
        # The first row holds the time in which the reader starts.
        if first_row or self.advised or self.data_wait < INPUT_BOUND:
            return
        self.advised = True
        print(
            f"\nNOTE: {self.data_wait:.0%} of the time training waits for images. Give the process more processors "
            "(--num_threads), store the images smaller (make_shards --resize_short_side), or decode on other machines "
            "too (--data_service).",
            file=sys.stderr,
        )

    def on_train_end(self, logs=None):
        self.progress.close()
