"""Files that are either whole or absent: write to a temporary name beside the target, fsync, rename.

A process that is killed at any moment leaves at most a hidden file `.NAME.tmp`, never a torn `NAME`.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def temporary_path(path: str | os.PathLike) -> Path:
    """The hidden name beside `path` under which it is written until it is whole."""
    path = Path(path)
    return path.with_name(f".{path.name}.tmp")


@contextlib.contextmanager
def open_atomically(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Opens `path` for writing bytes; the file appears under its name only when the block ends well.

    An exception inside the block removes the temporary file and leaves an older `path` as it was.

    Args:
        path: file to create or replace. Its folder must exist.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    temporary = temporary_path(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    # The rename itself is durable only after the folder is synced; some file systems refuse to sync folders.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
