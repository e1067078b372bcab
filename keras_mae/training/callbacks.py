"""What the callbacks of a run share: they count steps of the whole run."""

import keras


class StepCallback(keras.callbacks.Callback):
    """Counts steps of the whole run (from 1), resumed ones included.

    Args:
        start_step: steps done before this `fit`.
        total_steps: steps of the whole run.
    """

    def __init__(self, start_step: int, total_steps: int):
        super().__init__()
        self.start_step = start_step
        self.step = start_step
        self.total_steps = total_steps

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        self.after_step(logs)

    def is_due(self, every: int) -> bool:
        """True at each multiple of `every`, and at the run's last step."""
        return self.step % every == 0 or self.step == self.total_steps

    def after_step(self, logs):
        raise TypeError("A StepCallback defines after_step.")
