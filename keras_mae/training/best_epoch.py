"""Keeps the weights with which an evaluation gave its highest figure, the first of equals, through kills and resumes.

They lie beside the checkpoints, in `best-00000500.npz` for the evaluation after step 500. A checkpoint of a step is
written after the evaluation of that step, so a run that goes back to it repeats all later evaluations: what they had
found is forgotten, and is found again. For that the best as of each checkpoint stays.
"""

import json
import math
import pathlib
import sys
from collections.abc import Callable

import numpy as np

from keras_mae.training.atomic import write_text
from keras_mae.training.callbacks import StepCallback
from keras_mae.training.checkpoint_file import DamagedCheckpointError, read_checkpoint, write_checkpoint
from keras_mae.training.checkpoints import Checkpoints, assign, by_path

RESULT = "best.json"


class BestEpoch(StepCallback):
    """Watches an evaluation. As a callback it counts steps; it stands before the evaluation that it watches.

    Args:
        checkpoints: of the run; `start_step` is the one that was restored.
        model: whose weights are kept, as the evaluation sees them (averages, where it takes those).
        metric: name of the figure; the higher the better.
        steps_per_epoch: to say the epoch.
    """

    def __init__(
        self, start_step, total_steps, *, checkpoints: Checkpoints, model, metric: str, steps_per_epoch: float
    ):
        super().__init__(start_step, total_steps)
        self.checkpoints = checkpoints
        self.kept_model = model
        self.metric = metric
        self.steps_per_epoch = steps_per_epoch
        for path in (*checkpoints.folder.glob("best-*.tmp"), *self._paths(after=start_step)):
            path.unlink()
        self.result = self._read()[0]

    def after_step(self, logs):
        pass  # the step is counted

    def watched(self, evaluate: Callable[[], dict]) -> Callable[[], dict]:
        """The same evaluation, after which the weights are kept if it is the best so far."""

        def evaluate_and_keep():
            results = evaluate()
            self._consider(results[self.metric])
            return results

        return evaluate_and_keep

    def is_exported(self, folder: pathlib.Path) -> bool:
        """Whether there is nothing left for `export` to do."""
        return self.result is None or (folder / RESULT).exists()

    def export(self, write: Callable, folder: pathlib.Path) -> None:
        """Gives the model the kept weights and exports it; `best.json`, with step, epoch and figure, comes last.

        Args:
            write: (model, folder) -> None.
            folder: where to.
        """
        result, arrays = self._read()
        if result is None:
            return
        assign(self.kept_model.weights, arrays, source=f"the best epoch in {self.checkpoints.folder}")
        write(self.kept_model, folder)
        write_text(folder / RESULT, json.dumps(result, indent=2) + "\n")
        self._remove_unneeded()

    def _consider(self, value: float) -> None:
        highest = -math.inf if self.result is None else self.result[f"val_{self.metric}"]
        if not value > highest:  # so that NaN is never the best
            return
        result = {"step": self.step, "epoch": self.step / self.steps_per_epoch, f"val_{self.metric}": value}
        arrays = {path: np.asarray(v) for path, v in by_path(self.kept_model.weights).items()}
        self.checkpoints.folder.mkdir(parents=True, exist_ok=True)
        path = self.checkpoints.folder / f"best-{self.step:08d}.npz"
        try:
            write_checkpoint(path, arrays, result)
        except OSError as error:
            print(
                f"\nWARNING: {path} could not be written: {error.strerror or error}. Training goes on; the weights of "
                f"step {self.step}, the best so far, are lost.",
                file=sys.stderr,
            )
            return
        self.result = result
        self._remove_unneeded()

    def _remove_unneeded(self) -> None:
        saved = [_step(path) for path in self.checkpoints.paths()]
        kept = {_step(path): path for path in self._paths()}
        # A checkpoint that is being written now is newer than all saved ones.
        needed = {step for step in kept if not saved or step >= saved[-1]}
        for step in saved:
            needed |= {max((s for s in kept if s <= step), default=step)}
        for step in kept.keys() - needed:
            kept[step].unlink()

    def _paths(self, after: int = -1) -> list[pathlib.Path]:
        return sorted(path for path in self.checkpoints.folder.glob("best-*.npz") if _step(path) > after)

    def _read(self) -> tuple[dict | None, dict]:
        """Figures and weights of the best so far; of the one before, if a file is damaged."""
        for path in reversed(self._paths()):
            try:
                return read_checkpoint(path)
            except DamagedCheckpointError as error:
                print(f"WARNING: {path} is damaged ({error}); the best before it is taken.", file=sys.stderr)
        return None, {}


def _step(path: pathlib.Path) -> int:
    return int(path.stem.rpartition("-")[2])
