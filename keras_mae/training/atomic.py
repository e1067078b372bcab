"""Small text files that are whole or not there."""

import os
import pathlib


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes beside the name, flushes to the disk, then renames."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
