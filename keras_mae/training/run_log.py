"""Where the figures and pictures of a run go: one place for all callbacks."""

import pathlib
from typing import Protocol

import tensorflow as tf

from keras_mae.training.metrics_log import append_row, read_rows

NAME = "metrics.jsonl"
NOT_DRAWN = ("epoch",)  # in metrics.jsonl only: as a curve it is a straight line


class Tracker(Protocol):
    """An experiment tracker, such as `WandbTracker`."""

    def scalars(self, step: int, figures: dict[str, float]) -> None:
        """Takes what a row of metrics.jsonl has."""

    def images(self, step: int, images: dict) -> None:
        """Takes uint8 images (count, height, width, channels) by name."""

    def close(self, failed: bool) -> None:
        """Sends the rest."""


class NoLog:
    """Stands in for `RunLog` in workers that write nothing."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        pass

    def scalars(self, step: int, figures: dict[str, float]) -> None:
        """Drops them."""


class RunLog:
    """Writes to `metrics.jsonl`, to TensorBoard, and to an experiment tracker where there is one.

    A context: what is still in memory is written at its end.

    Args:
        run_dir: the run folder.
        tracker: None for none.
    """

    def __init__(self, run_dir: pathlib.Path, tracker: Tracker | None = None):
        self.path = run_dir / NAME
        self.tracker = tracker
        self.tensorboard_dir = run_dir / "tensorboard"
        self.writer = tf.summary.create_file_writer(str(self.tensorboard_dir))

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self.writer.close()
        if self.tracker is not None:
            self.tracker.close(failed=kind is not None)

    def scalars(self, step: int, figures: dict[str, float]) -> None:
        """Writes a row of figures by name."""
        append_row(self.path, {"step": step, **figures})
        with self.writer.as_default(step=step):
            for name in figures.keys() - set(NOT_DRAWN):
                tf.summary.scalar(name, figures[name])
        if self.tracker is not None:
            self.tracker.scalars(step, figures)

    def images(self, step: int, images: dict) -> None:
        """Writes uint8 images (count, height, width, channels) by name."""
        with self.writer.as_default(step=step):
            for name, pictures in images.items():
                tf.summary.image(name, pictures, max_outputs=len(pictures))
        if self.tracker is not None:
            self.tracker.images(step, images)

    def last(self, name: str, default: float) -> float:
        """The newest value of a figure, of an earlier process of this run perhaps."""
        values = [row[name] for row in read_rows(self.path) if name in row]
        return values[-1] if values else default
