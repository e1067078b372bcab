"""Files that are either whole or absent: write to a temporary name beside the target, fsync, rename.

A process that is killed at any moment leaves at most a hidden file `.NAME.NUMBER.tmp`, never a torn `NAME`.
"""

import contextlib
import os
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

SYNC_BYTES, SYNC_PAUSE = 8_000_000, 0.02  # seconds


def temporary_path(path: str | os.PathLike) -> Path:
    """A hidden name beside `path` under which it can be written until it is whole, another one at each call.

    So two processes that write the same file never mix their bytes.
    """
    path = Path(path)
    return path.with_name(f".{path.name}.{secrets.randbelow(10**12)}.tmp")


@contextlib.contextmanager
def open_atomically(path: str | os.PathLike, *, durable: bool = True, large: bool = False) -> Iterator[BinaryIO]:
    """Opens `path` for writing bytes; the file appears under its name only when the block ends well.

    An exception inside the block removes the temporary file and leaves an older `path` as it was. That the name
    outlives a loss of power is sure only after `sync_folder`.

    Args:
        path: file to create or replace. Its folder must exist.
        durable: whether the bytes are on the disk before the name is. Without it, a loss of power can leave an
            empty or torn file under its name.
        large: whether the file is so large that the disk should begin before all of it has been written.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    temporary = temporary_path(path)
    try:
        with open(temporary, "wb") as file:
            with _writing_behind(file) if durable and large else contextlib.nullcontext():
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


@contextlib.contextmanager
def _writing_behind(file: BinaryIO) -> Iterator[None]:
    # A thread sends what has been written to the disk from time to time. Otherwise the disk would wait while the
    # processor works, and the processor while the last fsync does all of it at once.
    stop, errors = threading.Event(), []

    def sync() -> None:
        synced = 0
        while not stop.wait(SYNC_PAUSE) and not errors:
            written = os.fstat(file.fileno()).st_size
            if written - synced >= SYNC_BYTES:
                try:
                    os.fdatasync(file.fileno())
                except OSError as error:
                    errors.append(error)
                synced = written

    thread = threading.Thread(target=sync, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if errors:  # the system reports each only once: a later fsync would know nothing of it
        raise errors[0]
