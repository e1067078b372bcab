"""Images as NumPy arrays in `.npy` files: any number of channels, of 8 or 16 bits each.

The format is NumPy's (`numpy.lib.format`), versions 1 to 3. The header is a Python dictionary; its three values are
looked for by hand, so nothing of a file from elsewhere is ever evaluated or unpickled. Taken are uint8 and
little-endian uint16, (H, W) or (H, W, C), in C order, the channels last. This module imports no TensorFlow.
"""

import functools
import re
from typing import NamedTuple

import numpy as np

MAGIC = b"\x93NUMPY"
# What NumPy calls the types that are taken: uint8 has no byte order, whatever other writers say.
DTYPES = {"|u1": "uint8", "<u1": "uint8", ">u1": "uint8", "<u2": "uint16"}
# Parts of the header, for Python and for TensorFlow (RE2) alike.
DESCR = r"""['"]descr['"]\s*:\s*['"]([^'"]*)['"]"""
C_ORDER = r"""['"]fortran_order['"]\s*:\s*False"""
SHAPE = r"""['"]shape['"]\s*:\s*\(\s*([0-9]{1,9})\s*,\s*([0-9]{1,9})\s*(?:,\s*([0-9]{1,9})\s*)?,?\s*\)"""
# NumPy refuses longer ones, too.
MAX_HEADER_BYTES = 10_000
# TensorFlow counts the bytes of a text in int32.
_MAX_BYTES = 2**31 - 1
# Bytes of a row of the tile in `crop_resize`.
MAX_NARROW_CHANNELS = 192
_SHOWN = 120  # characters of a header


class ArrayKind(NamedTuple):
    """What all arrays of a shard set have in common: `dtype`, "uint8" or "uint16", and the number of `channels`."""

    dtype: str
    channels: int

    def __str__(self) -> str:
        return f"{self.dtype} of {self.channels} channel{'s' if self.channels > 1 else ''}"


class ArrayHeader(NamedTuple):
    """What a file says before its numbers.

    Attributes:
        kind: type and channels.
        height: pixels.
        width: pixels.
        offset: bytes before the numbers.
    """

    kind: ArrayKind
    height: int
    width: int
    offset: int


def is_array(data: bytes | memoryview) -> bool:
    """Whether a file begins as `.npy` files do."""
    return data[: len(MAGIC)] == MAGIC


def only_arrays_have(channels: int, dtype: str) -> bool:
    """Whether pictures such as JPEGs are never decoded to so many channels, or to this type."""
    return dtype != "uint8" or channels not in (1, 3)


def is_wide(channels: int, dtype: str) -> bool:
    """Whether images are resized by `crop_resize_wide`: of 16 bits, or of more channels than `crop_resize` takes."""
    return dtype != "uint8" or channels > MAX_NARROW_CHANNELS


def read_array_header(data: bytes | memoryview, *, size: int | None = None) -> ArrayHeader:
    """The header of a `.npy` file, after a look at whether the file has as many bytes as it says.

    Args:
        data: the file, or at least 16 + `MAX_HEADER_BYTES` of it.
        size: bytes of the file; None: of `data`.

    Raises:
        ValueError: it is no array that is taken, or a damaged one; the message is what to say about "it".
    """
    size = len(data) if size is None else size
    if not is_array(data):
        raise ValueError("it is not an array: a .npy file begins with \\x93NUMPY")
    start = 10 if data[6:7] == b"\x01" else 12
    length = int.from_bytes(data[8:start], "little")
    if len(data) >= start and (data[6] not in (1, 2, 3) or length > MAX_HEADER_BYTES):
        raise ValueError(f"its header is damaged (version {data[6]}, {length} bytes)")
    if size < start + length:
        raise ValueError(f"it is cut: it ends after {size} bytes, in its header")
    kind, height, width = _parse(bytes(data[start : start + length]))
    header = ArrayHeader(kind, height, width, start + length)
    expected, received = height * width * kind.channels * np.dtype(kind.dtype).itemsize, size - header.offset
    if expected > _MAX_BYTES:
        raise ValueError(f"it is too large: it says {expected:,} bytes of numbers, expected at most {_MAX_BYTES:,}")
    if received != expected:
        what = "is cut: it has" if received < expected else "has bytes after its end:"
        shape = (height, width, kind.channels)
        raise ValueError(f"it {what} {received} bytes of numbers, expected {expected} for {kind.dtype} {shape}")
    return header


def array_kind(data: bytes) -> ArrayKind | None:
    """The kind of a `.npy` file; None for any other file.

    Raises:
        ValueError: as for `read_array_header`.
    """
    return read_array_header(data).kind if is_array(data) else None


@functools.lru_cache(maxsize=1024)  # images of one size have the same header
def _parse(header: bytes) -> tuple[ArrayKind, int, int]:
    text = header.decode("latin-1")
    shown = text.strip()[:_SHOWN]
    if (descr := re.search(DESCR, text)) is None:
        raise ValueError(f"its header tells no plain type of numbers: {shown!r}")
    if "O" in descr[1]:
        raise ValueError(
            f"it holds Python objects (dtype {descr[1]!r}), which are never read; expected uint8 or uint16"
        )
    if descr[1] not in DTYPES:
        hint = "; save array.astype('<u2')" if descr[1] == ">u2" else ""
        raise ValueError(f"it has dtype {descr[1]!r}, expected uint8 ('|u1') or little-endian uint16 ('<u2'){hint}")
    if not re.search(C_ORDER, text):
        raise ValueError(f"it is not in C order; save numpy.ascontiguousarray(array). Its header: {shown!r}")
    shape = re.search(SHAPE, text)
    sizes = [int(side) for side in shape.groups("1")] if shape else [0]
    if 0 in sizes:
        raise ValueError(f"it has no shape of an image; expected (H, W) or (H, W, C), all above 0, received {shown!r}")
    height, width, channels = sizes
    return ArrayKind(DTYPES[descr[1]], channels), height, width


def read_array(data: bytes | memoryview) -> np.ndarray:
    """The pixels of a `.npy` file: (H, W, C), read-only; they lie in `data` where its alignment allows it.

    Raises:
        ValueError: as for `read_array_header`.
    """
    kind, height, width, offset = read_array_header(data)
    pixels = np.frombuffer(data, kind.dtype, offset=offset).reshape(height, width, kind.channels)
    if not pixels.flags.aligned:
        pixels = pixels.copy()
    pixels.flags.writeable = False
    return pixels
