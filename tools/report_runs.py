"""What run folders hold, for tools.report: how far each run is, its curves, and how runs differ."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Sequence

from keras_mae.training.metrics_log import read_rows
from keras_mae.training.run_dir import read_description

RISING = ("accuracy", "knn")  # in the name of a figure of which more is better


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder, read.

    Attributes:
        folder: path as it was given.
        name: short, another one for each run of a report.
        description: of recipe.json.
        rows: of metrics.jsonl.
    """

    folder: pathlib.Path
    name: str
    description: dict
    rows: list[dict]

    @property
    def steps(self) -> int:
        """The last step that has a row."""
        return max((row["step"] for row in self.rows), default=0)

    @property
    def total_steps(self) -> int:
        return self.description["total_steps"]

    @property
    def is_finished(self) -> bool:
        """Whether the run has reached its end and has written its models."""
        return self.steps >= self.total_steps and (self.folder / "export").exists()

    def epochs(self, step: int) -> float:
        """A step in passes over the training split."""
        return step * self.description["recipe"]["batch_size"] / self.description["data"]["samples"]

    def curve(self, figure: str) -> tuple[list[int], list[float]]:
        """Steps and values of the rows that have a figure."""
        rows = [row for row in self.rows if figure in row]
        return [row["step"] for row in rows], [row[figure] for row in rows]


def is_run(path: str | os.PathLike) -> bool:
    """Whether a path is a run folder."""
    return pathlib.Path(path, "recipe.json").is_file()


def read_runs(paths: Sequence[str | os.PathLike]) -> list[Run]:
    """Reads run folders; a folder given twice counts once.

    Raises:
        RunDirError: a recipe.json is damaged.
    """
    folders = list(dict.fromkeys(pathlib.Path(path) for path in paths))
    return [
        Run(folder, name, read_description(folder) or {}, read_rows(folder / "metrics.jsonl"))
        for folder, name in zip(folders, _short_names(folders), strict=True)
    ]


def figures_of(runs: Iterable[Run]) -> list[str]:
    """All figures that a run has rows of, in the order of their first rows."""
    return list(dict.fromkeys(name for run in runs for row in run.rows for name in row if name != "step"))


def best_of(run: Run, figure: str) -> tuple[float, int]:
    """The best value of a figure, and its step: the highest accuracy, of all else the lowest."""
    steps, values = run.curve(figure)
    choose = max if any(word in figure for word in RISING) else min
    best = choose(values)
    return best, steps[values.index(best)]


def differing_fields(runs: Sequence[Run]) -> dict[str, list]:
    """The fields of recipe and data in which runs differ, each with the value of every run (None: it has none)."""
    flat = [
        {"command": run.description["command"], **run.description["recipe"], **run.description["data"]} for run in runs
    ]
    fields = dict.fromkeys(name for fields in flat for name in fields)
    values = {name: [fields.get(name) for fields in flat] for name in fields}
    return {name: found for name, found in values.items() if any(value != found[0] for value in found)}


def _short_names(folders: Sequence[pathlib.Path]) -> list[str]:
    """Of each path as many of its last parts as tell it from the others."""
    parts = [folder.resolve().parts for folder in folders]
    names = []
    for own in parts:
        others = [other for other in parts if other != own]
        count = next((n for n in range(1, len(own)) if all(other[-n:] != own[-n:] for other in others)), len(own))
        names.append("/".join(own[-count:]))
    return names
