"""Weights & Biases (extra `wandb`): the figures and pictures of a run, on its web page too."""

import importlib.util
import json
import pathlib

import numpy as np

from keras_mae.training.atomic import write_text

NAME = "wandb.json"  # in the run folder: which run of Weights & Biases this is


class TrackerError(RuntimeError):
    """Weights & Biases does not start."""


def check_wandb(project: str | None) -> None:
    """Raises ValueError if a project is named but the package is missing."""
    if project is not None and importlib.util.find_spec("wandb") is None:
        raise ValueError("--wandb_project needs the package wandb, which is missing: pip install 'keras-mae[wandb]'")


class WandbTracker:
    """One run on Weights & Biases for one run folder, however often that is gone on with.

    A run that was killed sends the steps after its last checkpoint twice, equal ones. So `step` is a figure of its own,
    and the x-axis of the others: Weights & Biases would drop rows of earlier steps.

    Args:
        run_dir: the run folder.
        project: where to; another one than before begins a new run there.
        config: what to show of the run, JSON values.

    Raises:
        TrackerError: nobody is logged in, or there is no connection.
    """

    def __init__(self, run_dir: pathlib.Path, project: str, config: dict):
        import wandb

        path = run_dir / NAME
        known = json.loads(path.read_text()) if path.exists() else {}
        try:
            self._run = wandb.init(
                project=project,
                name=run_dir.resolve().name,
                id=known["id"] if known.get("project") == project else None,
                resume="allow",
                dir=str(run_dir),
                config=config,
                settings=wandb.Settings(console="off"),
            )
        except wandb.Error as error:
            raise TrackerError(f"Weights & Biases does not start: {error} WANDB_MODE=offline does without.") from error
        write_text(path, json.dumps({"project": project, "id": self._run.id}) + "\n")
        self._run.define_metric("*", step_metric="step")
        self._image = wandb.Image

    def scalars(self, step: int, figures: dict[str, float]) -> None:
        self._run.log({"step": step, **figures})

    def images(self, step: int, images: dict) -> None:
        pictures = {name: [self._image(_shown(image)) for image in batch] for name, batch in images.items()}
        self._run.log({"step": step, **pictures})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


def _shown(image) -> np.ndarray:
    image = np.asarray(image)
    return image if image.dtype == np.uint8 else (image >> 8).astype(np.uint8)
