"""What the structure of a JPEG, PNG or WebP file says, read by hand: no pixel is decoded.

Copying a data set checks every file, so this walk must cost next to nothing beside reading it: a photograph
takes about a fifth of what opening it with Pillow does. It also sees what Pillow opens without a word and a
reader stumbles over later: files that are cut, and kinds that TensorFlow does not read as Pillow does. The
formats: JPEG, ITU-T T.81 annex B, and TIFF 6.0 for the EXIF in it; PNG, third edition; WebP, RFC 9649.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

_PNG_START = b"\x89PNG\r\n\x1a\n"

# JPEG markers that no length follows: TEM, RST0-RST7, and 00, which is no marker
_ALONE = frozenset((0x00, 0x01, *range(0xD0, 0xD8)))
_SOI, _EOI, _SOS, _APP1 = 0xD8, 0xD9, 0xDA, 0xE1
# SOF0 to SOF15, without DHT, JPG and DAC, which lie between them
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Baseline, extended and progressive, Huffman and arithmetic: what libjpeg decodes in every program. Lossless and
# hierarchical are left.
_COMMON_FRAMES = frozenset((0xC0, 0xC1, 0xC2, 0xC9, 0xCA))

_PNG_ALPHA = (4, 6)  # colour types
_WEBP_ANIMATION, _WEBP_ALPHA = 0x02, 0x10  # flags of VP8X

_ORIENTATION_TAG, _SHORT = 0x0112, 3
_IFD_ENTRY = {order: struct.Struct(order + "HHIH2x") for order in "<>"}


class ImageHeader(NamedTuple):
    """What is known of an image before its pixels are decoded.

    Attributes:
        format: in small letters, such as "jpeg", "png" or "webp".
        width: pixels, as stored.
        height: pixels, as stored.
        obstacles: why a reader cannot take the file as it is: words of `image_files.NOTES`.
        orientation: of EXIF, 1 (upright) to 8; 1 where it is not given.
        is_transparent: whether there is an alpha channel, or one transparent colour.
    """

    format: str
    width: int
    height: int
    obstacles: tuple[str, ...] = ()
    orientation: int = 1
    is_transparent: bool = False


def read_header(data: bytes, *, checksums: bool = False) -> ImageHeader | None:
    """The header of a JPEG, PNG or WebP file, after a look at whether the file is whole.

    Bytes after the image's end are no fault: cameras put previews there, and readers skip them.

    Args:
        data: the file.
        checksums: whether to compare the checksums of all of a PNG; TensorFlow does when it decodes, and Pillow
            does not. The other formats have none.

    Returns:
        The header, or None for any other format.

    Raises:
        ValueError: the file is cut or its header damaged; the message is what to say about "it".
    """
    try:
        if data.startswith(b"\xff\xd8\xff"):
            header = _read_jpeg(data)
        elif data.startswith(_PNG_START):
            header = _read_png(data, checksums)
        elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            header = _read_webp(data)
        else:
            return None
    except (IndexError, struct.error):
        raise ValueError("its header is damaged (a part of it is too short)") from None
    if header.width < 1 or header.height < 1:
        raise ValueError(f"its header is damaged (it says {header.width}x{header.height} pixels)")
    return header


def _read_jpeg(data: bytes) -> ImageHeader:
    frame, orientation, scan = None, 1, None
    for marker, start, end in _jpeg_segments(data):
        if marker == _SOS:
            scan = end
        elif marker in _FRAMES:
            frame = marker, *data[start : start + 6]
        elif marker == _APP1 and data.startswith(b"Exif\0\0", start):
            orientation = _exif_orientation(data[start + 6 : end])
    # From the first scan on, FF D9 is the end and nothing else: in coded data 00 follows FF.
    if scan is None or data.rfind(b"\xff\xd9", scan) < 0:
        raise ValueError("it is cut: the marker of its end is missing")
    if frame is None:
        raise ValueError("its header is damaged (pixels come before their size)")
    marker, bits, high, low, wide_high, wide_low, channels = frame
    obstacles = ()
    if marker not in _COMMON_FRAMES or bits != 8 or channels not in (1, 3, 4):
        obstacles = ("unusual_jpeg",)
    elif channels == 4:
        obstacles = ("cmyk",)
    return ImageHeader("jpeg", wide_high << 8 | wide_low, high << 8 | low, obstacles, orientation)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    # (marker, start and end of the data) of each segment that has data, up to the first scan or a cut.
    position, last = 2, len(data) - 4
    while 0 <= (position := data.find(b"\xff", position)) <= last:  # libjpeg skips what lies between segments
        marker = data[position + 1]
        if marker == 0xFF:  # this byte is a filler
            position += 1
            continue
        if marker in _ALONE:
            position += 2
            continue
        length = data[position + 2] << 8 | data[position + 3]
        if length < 2 or marker == _SOI or marker == _EOI:
            raise ValueError(f"its header is damaged (segment {marker:02X} at byte {position})")
        yield marker, position + 4, position + 2 + length
        if marker == _SOS:
            return
        position += 2 + length


def _exif_orientation(exif: bytes) -> int:
    # The tag in the first directory of a TIFF structure; 1 where there is none, or it is damaged.
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return 1
    (start,) = struct.unpack_from(order + "I", exif, 4)
    (count,) = struct.unpack(order + "H", exif[start : start + 2].ljust(2, b"\0"))
    entries = exif[start + 2 : start + 2 + 12 * count]
    for tag, kind, _, value in _IFD_ENTRY[order].iter_unpack(entries[: len(entries) // 12 * 12]):
        if tag == _ORIENTATION_TAG:
            return value if kind == _SHORT and 1 <= value <= 8 else 1
    return 1


def _read_png(data: bytes, checksums: bool) -> ImageHeader:
    chunks = _png_chunks(data, checksums)
    if next(iter(chunks)) != b"IHDR" or len(chunks[b"IHDR"]) != 13 or b"IDAT" not in chunks:
        raise ValueError("its header is damaged (chunk IHDR or IDAT is missing)")
    width, height, bits, colour = struct.unpack_from(">IIBB", chunks[b"IHDR"])
    return ImageHeader(
        "png",
        width,
        height,
        (("16_bit",) if bits == 16 else ()) + (("animated",) if b"acTL" in chunks else ()),
        _exif_orientation(chunks.get(b"eXIf", b"")),
        colour in _PNG_ALPHA or b"tRNS" in chunks,
    )


def _png_chunks(data: bytes, checksums: bool) -> dict[bytes, bytes]:
    # Kind -> data of the first chunk of each kind; of IDAT nothing. Up to IEND, which must be there.
    chunks, position, view = {}, len(_PNG_START), memoryview(data)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        start, end = position + 8, position + 8 + length
        if not kind.isalpha():
            raise ValueError(f"it is damaged (no chunk begins at byte {position})")
        # A small first letter: readers do without the chunk. That of the header is always compared.
        if end + 4 <= len(data) and ((checksums and kind[:1].isupper()) or kind == b"IHDR"):
            if zlib.crc32(view[position + 4 : end]) != int.from_bytes(data[end : end + 4]):
                raise ValueError(f"it is damaged (checksum of chunk {kind.decode()} at byte {position})")
        if kind not in chunks:
            chunks[kind] = b"" if kind == b"IDAT" else data[start:end]
        if kind == b"IEND":
            return chunks
        position = end + 4
    raise ValueError("it is cut: the chunk IEND is missing")


def _read_webp(data: bytes) -> ImageHeader:
    end = 8 + int.from_bytes(data[4:8], "little")
    if len(data) < end:
        raise ValueError(f"it is cut: it has {len(data)} bytes of {end}")
    chunks, position = {}, 12
    while position + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, position)
        chunks.setdefault(kind, position + 8)
        position += 8 + length + length % 2
    extended, lossy, lossless, exif = (chunks.get(kind) for kind in (b"VP8X", b"VP8 ", b"VP8L", b"EXIF"))
    flags = data[extended] if extended else 0
    if extended and (lossy or lossless or flags & _WEBP_ANIMATION):
        width, height = (1 + int.from_bytes(data[extended + i : extended + i + 3], "little") for i in (4, 7))
    elif lossy:
        width, height = (size & 0x3FFF for size in struct.unpack_from("<HH", data, lossy + 6))
    elif lossless:
        (bits,) = struct.unpack_from("<I", data, lossless + 1)
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        flags = _WEBP_ALPHA if bits >> 28 & 1 else 0
    else:
        raise ValueError("its header is damaged (it holds no picture)")
    orientation = _exif_orientation(data[exif:end].removeprefix(b"Exif\0\0")) if exif else 1
    obstacles = ("animated",) if flags & _WEBP_ANIMATION else ()
    return ImageHeader("webp", width, height, obstacles, orientation, bool(flags & _WEBP_ALPHA))
