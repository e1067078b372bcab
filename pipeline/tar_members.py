"""The members of a tar, read strictly: damage is an error, where tarfile and webdataset end without a word.

tarfile stops at a damaged header as if the tar ended there, and so hides whatever follows; it does not miss the
mark that ends every tar, two empty blocks. Here all of a tar must be accounted for.
"""

import io
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK = tarfile.BLOCKSIZE
_TEST_CHUNK = 1 << 20
# How compressed files begin, and what unpacks them.
_COMPRESSIONS = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\0": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
}


class TarDamage(ValueError):
    """A tar is cut or damaged; the message says where, as the second half of a sentence on the tar."""


class TarCompressed(TarDamage):
    """A tar is whole perhaps, but compressed, so that its members cannot be read where they are."""


class TarMember(NamedTuple):
    """A file in a tar: its name there, the offset of its data in bytes from the tar's start, and its size."""

    name: str
    offset: int
    size: int


def tar_members(file: BinaryIO, size: int, *, offset: int = 0) -> Iterator[TarMember]:
    """Yields the files in a tar, in order; folders are left out.

    Reads headers alone and seeks over the data, so that a tar of a terabyte is listed in as many reads as it
    has members.

    Args:
        file: open for reading, with `seek`.
        size: bytes of the tar.
        offset: where in `file` the tar begins, for a tar inside a tar.

    Yields:
        Members, whose offsets count from the start of the tar.

    Raises:
        TarCompressed: it is a compressed file.
        TarDamage: at the first damage; the members before it have been yielded.
    """
    window = io.BufferedReader(_Window(file, offset, size), buffer_size=4096)
    end = 0  # of the last member
    for info in _headers(window):
        if info.size < 0 or info.offset_data < end:  # tarfile would go back and read the same for ever
            raise TarDamage(f"has a damaged header at byte {end}: {info.name!r} has {info.size} bytes")
        end = _end_of(info)
        if info.isdir():
            continue
        if not info.isreg() or info.issparse():
            raise TarDamage(f"holds {info.name!r}, which is a link or a special file; expected files alone")
        if info.offset_data + info.size > size:
            raise TarDamage(f"is cut in the data of {info.name!r}: {info.offset_data + info.size} bytes are needed")
        yield TarMember(info.name, info.offset_data, info.size)
    _check_end(window, end, size)


def _headers(window: BinaryIO) -> Iterator[tarfile.TarInfo]:
    # All that tarfile finds before it stops, whyever it does.
    archive, end = None, 0
    while True:
        try:
            if archive is None:
                archive = tarfile.open(fileobj=window, mode="r:")
            info = archive.next()
        # Sizes can be nonsense, and thousands of headers can belong to one member.
        except (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError) as error:
            if archive is None:
                _refuse_compressed(window)
            place = (
                "is no tar, or its first header is damaged"
                if archive is None
                else f"is cut or damaged after byte {end}"
            )
            raise TarDamage(f"{place} ({error})") from None
        except OSError as error:
            raise TarDamage(f"cannot be read after byte {end} ({error.strerror or error})") from None
        if info is None:
            return
        archive.members.clear()  # tarfile keeps them all, which would be a GB for a million
        end = _end_of(info)
        yield info


def _refuse_compressed(window: BinaryIO) -> None:
    window.seek(0)
    start = window.read(max(map(len, _COMPRESSIONS)))
    for magic, (name, command) in _COMPRESSIONS.items():
        if start.startswith(magic):
            raise TarCompressed(
                f"is compressed with {name}, and only plain tars can be read; unpack it first: {command}"
            )


def _end_of(info: tarfile.TarInfo) -> int:
    # Where the next header begins; a folder has no data, whatever its header says.
    return info.offset_data + (0 if info.isdir() else -(-info.size // BLOCK) * BLOCK)


def _check_end(window: BinaryIO, end: int, size: int) -> None:
    # What follows the last member that tarfile found must be empty blocks, two at least.
    if size - end < 2 * BLOCK:
        raise TarDamage(f"is cut after byte {end}: the two empty blocks that end a tar are missing")
    window.seek(end)
    while chunk := window.read(_TEST_CHUNK):
        if chunk.strip(b"\0"):
            place = window.tell() - len(chunk.lstrip(b"\0"))
            if place - end >= 2 * BLOCK:
                raise TarDamage(f"goes on at byte {place}, after its end: a second tar was appended")
            raise TarDamage(f"has a damaged header at byte {end}")


class _Window(io.RawIOBase):
    # A part of a file as a file of its own.

    def __init__(self, file: BinaryIO, offset: int, size: int):
        self.file, self.offset, self.size, self.position = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        self.position = max(0, base + position)
        return self.position

    def readinto(self, buffer) -> int:
        count = max(0, min(len(buffer), self.size - self.position))
        self.file.seek(self.offset + self.position)
        data = self.file.read(count)
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)
