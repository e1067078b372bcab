"""Files that are either whole or absent: write to a temporary name beside the target, fsync, rename.

A process that is killed at any moment leaves at most a hidden file `.NAME.NUMBER.tmp`, never a torn `NAME`.
"""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def temporary_path(path: str | os.PathLike) -> Path:
    """A hidden name beside `path` under which it can be written until it is whole, another one at each call.

    So two processes that write the same file never mix their bytes.
    """
    path = Path(path)
    return path.with_name(f".{path.name}.{secrets.randbelow(10**12)}.tmp")


@contextlib.contextmanager
def open_atomically(path: str | os.PathLike, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Opens `path` for writing bytes; the file appears under its name only when the block ends well.

    An exception inside the block removes the temporary file and leaves an older `path` as it was. That the name
    outlives a loss of power is sure only after `sync_folder`.

    Args:
        path: file to create or replace. Its folder must exist.
        durable: whether the bytes are on the disk before the name is. Without it, a loss of power can leave an
            empty or torn file under its name.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    temporary = temporary_path(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: str | os.PathLike) -> None:
    """Makes the names in a folder durable, as far as its file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
