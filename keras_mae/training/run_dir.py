"""A run folder: which run it holds, and whether a command may go on with it."""

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator

# What may differ when a run goes on: its length, which may only grow, and how it is logged.
GROWING = "total_steps"
FREE = (
    "steps",
    "epochs",
    "log_every_steps",
    "checkpoint_every_steps",
    "eval_every_epochs",
    "keep_checkpoints",
)


class RunDirError(ValueError):
    """The run folder holds another run, or is in use."""


@contextlib.contextmanager
def locked(run_dir: pathlib.Path) -> Iterator[None]:
    """Keeps a second process out of the folder; the lock dies with the process.

    Raises:
        RunDirError: another process holds it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunDirError(f"{run_dir} is in use by another process that trains in it.") from None
        yield


def claim(run_dir: pathlib.Path, description: dict) -> bool:
    """Writes `recipe.json` of a new run, or checks that the folder holds this very run.

    Args:
        run_dir: the run folder.
        description: {"command", "recipe": {field: value}, "data": {...}, ...}, JSON values.

    Returns:
        Whether the run was there already.

    Raises:
        RunDirError: the folder holds a run that differs in a field that may not change; names fields and values.
    """
    path = run_dir / "recipe.json"
    description = json.loads(json.dumps(description))
    resumed = path.exists()
    if resumed:
        differences = list(_differences(json.loads(path.read_text()), description))
        if differences:
            raise RunDirError(
                f"{run_dir} holds another run: {'; '.join(differences)}. Choose another --run_dir, or repeat the "
                "run's own flags (recipe.json has them)."
            )
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(description, indent=2) + "\n")
    os.replace(temporary, path)
    return resumed


def _differences(old: dict, new: dict, prefix: str = "") -> Iterator[str]:
    for name in sorted(set(old) | set(new)):
        before, now = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            yield from _differences(before, now, f"{prefix}{name}.")
        elif name == GROWING:
            if now < before:
                yield f"{prefix}{name} may grow, not shrink: the run has {before}, received {now}"
        elif before != now and name not in FREE:
            yield f"{prefix}{name} of the run is {before!r}, received {now!r}"
