"""A run folder: which run it holds, and whether a command may go on with it."""

import contextlib
import fcntl
import json
import pathlib
from collections.abc import Iterator

from keras_mae.recipes.durations import INTERVALS, names_of
from keras_mae.training.atomic import write_text
from keras_mae.training.model_assets import INSIDE

NAME = "recipe.json"

# What may differ when a run goes on: its length, which may only grow, and how it is logged.
GROWING = "total_steps"
FREE = (
    "epochs",
    "steps",
    "images",
    *(name for what in INTERVALS for name in names_of(what)),
    "checkpoint_every_minutes",
    "keep_checkpoints",
    "knn_every_epochs",
    "knn_samples",
    "remat",
    "accumulation_steps",
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


def claim(run_dir: pathlib.Path, description: dict) -> None:
    """Writes `recipe.json` of a new run, or checks that the folder holds this very run.

    A run that has no checkpoint yet has nothing to lose: its recipe is replaced.

    Args:
        run_dir: the run folder.
        description: {"command", "recipe": {field: value}, "data": {...}, ...}, JSON values.

    Raises:
        RunDirError: the folder holds a run that differs in a field that may not change; names fields and values.
    """
    description = json.loads(json.dumps(description))
    old = read_description(run_dir)
    if old is not None and any((run_dir / "checkpoints").glob("step-*.npz")):
        found = list(differences(old, description))
        if found:
            raise RunDirError(
                f"{run_dir} holds another run: {'; '.join(found)}. Choose another --run_dir, or repeat the "
                "run's own flags (recipe.json has them)."
            )
    write_text(run_dir / NAME, json.dumps(description, indent=2) + "\n")


def read_description(run_dir: pathlib.Path) -> dict | None:
    """What `claim` wrote; None where the folder holds no run.

    Raises:
        RunDirError: recipe.json is damaged.
    """
    path = run_dir / NAME
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise RunDirError(f"{path} is damaged: {error}.") from None


def description_above(path: pathlib.Path) -> dict | None:
    """The description of the run that a path lies in: a run folder, its export, or a model in there.

    A SavedModel has its run's description inside, and an export folder has such a SavedModel, wherever it was copied.
    """
    parent, *above = path.resolve().parents[:3]
    places = (path, path / INSIDE, path / "saved_model" / INSIDE, parent, parent / "saved_model" / INSIDE, *above)
    for place in places:
        description = read_description(place)
        if description is not None:
            return description
    return None


def differences(old: dict, new: dict, prefix: str = "") -> Iterator[str]:
    """In words, what keeps the run of one description from going on as that of another."""
    for name in sorted(set(old) | set(new)):
        before, now = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            yield from differences(before, now, f"{prefix}{name}.")
        elif name == GROWING:
            if now < before:
                yield f"{prefix}{name} may grow, not shrink: the run has {before}, received {now}"
        elif before != now and name not in FREE:
            yield f"{prefix}{name} of the run is {before!r}, received {now!r}"
