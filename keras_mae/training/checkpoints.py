"""Checkpoints that are whole or not there: one file each, written beside its name, flushed, then renamed.

A checkpoint holds every variable of model and optimizer by its path, and a JSON state (step, place in the data).
"""

import dataclasses
import json
import os
import pathlib
import re
import zipfile
from collections.abc import Sequence

import numpy as np
from absl import logging

STATE = "__state__"


class CheckpointError(ValueError):
    """A checkpoint that does not fit the model it is loaded into."""


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: where the files `step-00000100.npz` lie.
        keep: number of newest checkpoints that stay.
    """

    folder: pathlib.Path
    keep: int = 2

    def paths(self) -> list[pathlib.Path]:
        """All whole checkpoints, oldest first."""
        return sorted(p for p in self.folder.glob("step-*.npz") if re.fullmatch(r"step-\d+\.npz", p.name))

    def save(self, step: int, variables: Sequence, state: dict) -> pathlib.Path:
        """Writes the checkpoint of `step`, then removes what is older than the newest `keep`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays = {v.path: np.asarray(v) for v in variables}
        if len(arrays) != len(variables):
            raise CheckpointError("Two variables share a path; a checkpoint could not tell them apart.")
        arrays[STATE] = np.asarray(json.dumps({**state, "step": step}))
        path = self.folder / f"step-{step:08d}.npz"
        temporary = path.with_suffix(".tmp")
        try:
            with open(temporary, "wb") as file:
                np.savez(file, **arrays)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        for old in self.paths()[: -self.keep]:
            old.unlink()
        return path

    def newest(self) -> tuple[dict, dict[str, np.ndarray]] | None:
        """State and arrays of the newest checkpoint that can be read; a damaged one is named and passed over.

        Returns:
            None where there is no checkpoint.

        Raises:
            CheckpointError: all checkpoints are damaged.
        """
        paths = self.paths()
        for path in reversed(paths):
            try:
                arrays = read_arrays(path)
                return json.loads(str(arrays.pop(STATE))), arrays
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                logging.warning("Checkpoint %s is damaged (%s); taking the one before.", path, error)
        if paths:
            raise CheckpointError(f"None of the checkpoints in {self.folder} can be read: {[p.name for p in paths]}")
        return None

    def restore(self, variables: Sequence) -> dict | None:
        """Loads the newest readable checkpoint into `variables`.

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


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint file by name; reading checks each one's CRC."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def assign(variables: Sequence, arrays: dict[str, np.ndarray], source: str) -> None:
    """Assigns `arrays` to the variables of the same path.

    Raises:
        CheckpointError: a path is missing on either side, or a shape differs; nothing is assigned then.
    """
    missing = sorted({v.path for v in variables} ^ set(arrays))
    if missing:
        raise CheckpointError(f"{source} holds other variables than the model. Only on one side: {missing[:8]}")
    for v in variables:
        if tuple(v.shape) != arrays[v.path].shape:
            raise CheckpointError(
                f"{source}: {v.path} has another shape. Expected: {tuple(v.shape)}. Received: {arrays[v.path].shape}"
            )
    for v in variables:
        v.assign(arrays[v.path])
