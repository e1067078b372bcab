"""`metrics.jsonl`: one JSON object a line, cut back to the checkpoint when a run is resumed."""

import json
import pathlib

from keras_mae.training.atomic import write_text


def read_rows(path: pathlib.Path) -> list[dict]:
    """All whole rows of a log; a torn last line, as a killed run leaves it, is passed over."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def cut_back(path: pathlib.Path, step: int) -> None:
    """Drops the rows after `step` and a torn last line; the file is replaced as a whole."""
    rows = [row for row in read_rows(path) if row["step"] <= step]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def append_row(path: pathlib.Path, row: dict) -> None:
    """Adds a row and hands it to the operating system at once, so that a killed process loses nothing."""
    with open(path, "a") as file:
        file.write(json.dumps(row) + "\n")
