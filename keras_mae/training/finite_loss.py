"""Stops a run whose loss is no number, and says which samples it was computed of."""

import json
import math
import pathlib
from collections.abc import Callable

from keras_mae.training.atomic import write_text
from keras_mae.training.callbacks import StepCallback

NAME = "non_finite_loss.json"
NUM_NAMED = 8  # samples in the message; the file has all


class NonFiniteLossError(RuntimeError):
    """The loss is NaN or infinite: training stops, the last checkpoint stays as it was."""


class FiniteLoss(StepCallback):
    """Raises at the first loss that is NaN or infinite, before anything of that step is logged or saved.

    Stands first in the list. Keras has the loss as a number already, so that looking at it costs nothing.

    Args:
        run_dir: gets `non_finite_loss.json` then: step, loss and all samples of the batch.
        batch_samples: number of a batch, from 0 -> numbers of its samples in the split; None where nobody knows them.
    """

    def __init__(
        self, start_step, total_steps, *, run_dir: pathlib.Path, batch_samples: Callable[[int], list[int]] | None = None
    ):
        super().__init__(start_step, total_steps)
        self.path = run_dir / NAME
        self.batch_samples = batch_samples

    def after_step(self, logs):
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"The loss of step {self.step} is {loss}. {self._describe_batch(loss)}Try --precision=float32, with "
                "which this run may go on; or, in another --run_dir, a smaller --base_learning_rate, a longer warmup "
                "or --clip_global_norm=1. The last checkpoint is untouched."
            )

    def _describe_batch(self, loss: float) -> str:
        if self.batch_samples is None:
            return ""
        batch = self.step - 1
        samples = self.batch_samples(batch)
        content = {"step": self.step, "batch": batch, "loss": str(loss), "samples": samples}
        write_text(self.path, json.dumps(content) + "\n")
        named = ", ".join(map(str, samples[:NUM_NAMED]))
        more = f" ... and {len(samples) - NUM_NAMED} more" if len(samples) > NUM_NAMED else ""
        return f"Its batch holds the samples {named}{more} of the split (all of them: {self.path}). "
