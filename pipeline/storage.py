"""Folders that shards are written to and read from: local ones, or any that fsspec has a URL for.

Local files are written under a temporary name, synced and renamed. Object stores show a file only when it is
whole, so there it is put in one piece from a local temporary file. This module imports no TensorFlow, and
fsspec only for URLs.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from pipeline import atomic
from pipeline.locations import is_url, is_web, join, open_filesystem


@contextlib.contextmanager
def open_atomically(path: str | os.PathLike, *, durable: bool = True, large: bool = False) -> Iterator[BinaryIO]:
    """Opens a file, local or behind a URL, for writing bytes; it appears only when the block ends well.

    Args:
        path: file to create or replace. Its folder must exist.
        durable, large: see `atomic.open_atomically`.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    if not is_url(path):
        with atomic.open_atomically(path, durable=durable, large=large) as file:
            yield file
        return
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, "file")
        with open(local, "wb") as file:
            yield file
        system, remote = open_filesystem(path)
        system.put_file(local, remote)


def write_atomically(path: str | os.PathLike, data: bytes, *, durable: bool = True) -> None:
    """Writes a file in one piece; see `open_atomically`."""
    with open_atomically(path, durable=durable) as file:
        file.write(data)


def sync_folder(folder: str | os.PathLike) -> None:
    """Makes the names of files in a folder outlive a loss of power; object stores do so by themselves."""
    if not is_url(folder):
        atomic.sync_folder(folder)


def exists(path: str | os.PathLike) -> bool:
    """Whether there is a file or folder."""
    if not is_url(path):
        return os.path.exists(path)
    system, remote = open_filesystem(path)
    return system.exists(remote)


def is_folder(path: str | os.PathLike) -> bool:
    """Whether there is a folder. A web server has none: there, the answer is yes."""
    if not is_url(path):
        return os.path.isdir(path)
    if is_web(path):
        return True
    system, remote = open_filesystem(path)
    return system.isdir(remote)


def make_folder(path: str | os.PathLike) -> None:
    """Makes a folder, and those above it, unless it is there. Object stores need none."""
    if not is_url(path):
        os.makedirs(path, exist_ok=True)
        return
    system, remote = open_filesystem(path)
    system.makedirs(remote, exist_ok=True)


def list_names(folder: str | os.PathLike) -> list[str]:
    """The names of all files and folders in a folder, sorted; none where it does not exist."""
    if not is_url(folder):
        return sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return sorted(name for name, _ in _list_url(folder))


def file_sizes(folder: str | os.PathLike, names: Iterable[str]) -> dict[str, int]:
    """Bytes of each of the named files that exists in a folder."""
    sizes = {}
    if not is_url(folder):
        for name in names:
            path = Path(folder, name)
            if path.is_file():
                sizes[name] = path.stat().st_size
        return sizes
    listed = {} if is_web(folder) else dict(_list_url(folder))
    system, remote = open_filesystem(folder)
    for name in names:
        size = listed.get(name)
        if is_web(folder):
            with contextlib.suppress(FileNotFoundError):
                size = system.info(join(folder, name)).get("size")
        if size is not None:
            sizes[name] = int(size)
    return sizes


def remove(path: str | os.PathLike) -> None:
    """Removes a file if there is one."""
    if not is_url(path):
        Path(path).unlink(missing_ok=True)
        return
    system, remote = open_filesystem(path)
    with contextlib.suppress(FileNotFoundError):
        system.rm_file(remote)


def remove_folder(path: str | os.PathLike) -> None:
    """Removes a folder and all that is in it, if there is one."""
    if not is_url(path):
        if os.path.isdir(path):
            shutil.rmtree(path)
        return
    system, remote = open_filesystem(path)
    with contextlib.suppress(FileNotFoundError):
        system.rm(remote, recursive=True)


def _list_url(folder: str | os.PathLike) -> list[tuple[str, int | None]]:
    # Names and sizes; a listing that was kept from before could miss what another process wrote.
    system, remote = open_filesystem(folder)
    system.invalidate_cache(remote)
    try:
        entries = system.ls(remote, detail=True)
    except FileNotFoundError:
        return []
    return [(entry["name"].rstrip("/").rsplit("/", 1)[-1], entry.get("size")) for entry in entries]
