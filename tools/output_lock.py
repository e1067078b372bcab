"""One writer at a time: a lock on a folder that ends with the process that holds it, however that ends."""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from keras_mae.commandline import CommandError
from pipeline.locations import is_url

LOCK_NAME = ".make_shards.lock"
# Workers of a process that was killed hold its lock for a moment longer, until they have noticed.
PATIENCE = 1.0  # seconds


@contextlib.contextmanager
def locked(folder: str | os.PathLike, log: Callable[[str], None] = print) -> Iterator[None]:
    """Holds the lock of an existing local folder while the block runs.

    The lock is the operating system's (flock), so a process that is killed leaves none behind. Object stores
    have no locks; there, nothing is held.

    Args:
        folder: the folder that the block writes to.
        log: is given the line to tell the user where the file system has no locks.

    Raises:
        CommandError: another process holds the lock.
        OSError: the folder cannot be written.
    """
    if is_url(folder):
        yield
        return
    path = Path(folder, LOCK_NAME)
    descriptor = _acquire(path, folder, log)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path, folder: str | os.PathLike, log: Callable[[str], None]) -> int:
    deadline = time.monotonic() + PATIENCE
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            raise CommandError(
                f"another process is writing to {folder} at this moment; wait for it to end, or choose another folder"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
                os.close(descriptor)
                raise
            log(f"the file system of {folder} has no locks: do not write to it twice at once")
            return descriptor
        with contextlib.suppress(FileNotFoundError):
            # The file could have been removed, by the process that held the lock, after it was opened here.
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)
