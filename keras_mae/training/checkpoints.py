"""The checkpoints of a run: a folder of files `step-00000100.npz`, of which the newest few stay.

A file that is damaged is passed over for the one before. The run that goes on from that one renames the damaged file to
`step-00000100.npz.damaged`, where it counts no longer and can be looked at; training never deletes it.
"""

import dataclasses
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from keras_mae.training.checkpoint_file import DamagedCheckpointError, read_checkpoint, write_checkpoint


class CheckpointError(ValueError):
    """A checkpoint that does not fit the model it is loaded into, cannot be read, or could not be written."""


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: where the files `step-00000100.npz` lie.
        keep: number of newest checkpoints that stay. While one is written, the disk holds one more.
    """

    folder: pathlib.Path
    keep: int = 2

    def paths(self) -> list[pathlib.Path]:
        """All checkpoints that were finished, oldest first."""
        return sorted((p for p in self.folder.glob("step-*.npz") if _step(p) is not None), key=_step)

    def save(self, step: int, variables: Sequence, state: dict) -> pathlib.Path:
        """Writes the checkpoint of `step` as the variables are now, and waits for it; see `write`."""
        return self.write(step, {path: np.asarray(v) for path, v in by_path(variables).items()}, state)

    def write(
        self, step: int, arrays: Mapping[str, np.ndarray], state: dict, rest: Callable[[float], None] | None = None
    ) -> pathlib.Path:
        """Writes the checkpoint of `step`; only once it is whole, removes older ones than the newest `keep`.

        Args:
            step: updates done.
            arrays: variables by their paths.
            state: JSON values.
            rest: see `write_checkpoint`.

        Raises:
            OSError: the disk is full, or the folder cannot be written; the other checkpoints are as they were.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:08d}.npz"
        write_checkpoint(path, arrays, {**state, "step": step}, rest)
        older = [p for p in self.paths() if _step(p) < step]
        for old in older[: max(0, len(older) + 1 - self.keep)]:
            old.unlink(missing_ok=True)
        return path

    def clean(self, step: int) -> None:
        """Removes what killed runs were writing, and renames what is newer than `step`, from which a run goes on.

        Only damaged checkpoints are newer. To be called by the one process that will write here.
        """
        for path in self.folder.glob("step-*.tmp"):
            path.unlink(missing_ok=True)
        for path in self.paths():
            if _step(path) > step:
                path.rename(path.with_name(path.name + ".damaged"))

    def newest(self) -> tuple[dict, dict[str, np.ndarray]] | None:
        """State and arrays of the newest checkpoint that is whole; damaged ones are named on stderr.

        Returns:
            None where there is no checkpoint.

        Raises:
            CheckpointError: all checkpoints are damaged.
        """
        damaged = {}
        for path in reversed(self.paths()):
            try:
                state, arrays = read_checkpoint(path)
                if state["step"] != _step(path):
                    raise DamagedCheckpointError(f"it is of step {state['step']}")
            except DamagedCheckpointError as error:
                damaged[path.name] = error
                continue
            for name, error in damaged.items():
                print(f"WARNING: {self.folder / name} is damaged ({error}); {path.name} is taken.", file=sys.stderr)
            return state, arrays
        if damaged:
            reasons = "; ".join(f"{name}: {error}" for name, error in damaged.items())
            raise CheckpointError(
                f"No checkpoint in {self.folder} can be read ({reasons}). Bring back a copy of one, or train anew in "
                "another folder."
            )
        return None

    def restore(self, variables: Sequence) -> dict | None:
        """Loads the newest whole checkpoint into `variables`.

        Returns:
            Its state, or None where there is no checkpoint.

        Raises:
            CheckpointError: the checkpoint's variables are not these, or all checkpoints are damaged.
        """
        newest = self.newest()
        if newest is None:
            return None
        state, arrays = newest
        assign(variables, arrays, source=f"the checkpoint of step {state['step']} in {self.folder}")
        return state


def own_weights(model) -> list:
    """The weights of a model, without those of a masked autoencoder's target, which its own file holds."""
    target = getattr(model, "target", None)
    fixed = set() if target is None else {id(weight) for weight in target.weights}
    return [weight for weight in model.weights if id(weight) not in fixed]


def by_path(variables: Sequence) -> dict:
    """The variables by their paths, under which a checkpoint holds them.

    Raises:
        CheckpointError: two variables share a path.
    """
    named = {v.path: v for v in variables}
    if len(named) != len(variables):
        paths = [v.path for v in variables]
        shared = sorted({path for path in paths if paths.count(path) > 1})
        raise CheckpointError(f"Variables share a path; a checkpoint could not tell them apart: {shared[:8]}")
    return named


def assign(variables: Sequence, arrays: Mapping[str, np.ndarray], source: str) -> None:
    """Assigns `arrays` to the variables of the same path.

    Raises:
        CheckpointError: a path is missing on either side, or a shape differs; nothing is assigned then.
    """
    named = by_path(variables)
    missing = sorted(set(named) ^ set(arrays))
    if missing:
        raise CheckpointError(f"{source} holds other variables than the model. Only on one side: {missing[:8]}")
    for path, v in named.items():
        if tuple(v.shape) != arrays[path].shape:
            raise CheckpointError(
                f"{source}: {path} has another shape. Expected: {tuple(v.shape)}. Received: {arrays[path].shape}"
            )
    for path, v in named.items():
        v.assign(arrays[path])


def _step(path: pathlib.Path) -> int | None:
    # None of a file whose name only looks like a checkpoint's
    number = re.fullmatch(r"step-(\d+)\.npz", path.name)
    return int(number[1]) if number else None
