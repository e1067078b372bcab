"""What of an encoded image goes into a shard: its bytes as they came, or others that every reader takes alike.

By default (encoder "keep") an image is kept bit for bit where `pipeline.decode` (TensorFlow) and Pillow read the
same pixels from it: JPEG, grey or colour, of any common coding, an MPO's further pictures included; PNG of up to
8 bits, palettes and transparency included; WebP with one frame. The extension follows the contents, not the name.
The others become PNGs, without loss of what can be kept:

    CMYK JPEG               RGB by Pillow's formula; TensorFlow has another
    lossless JPEG           TensorFlow does not read it
    16-bit PNG, PGM, TIFF   the high byte; Pillow would clip 16-bit grey, so that most of it becomes white
    more than one frame     the first one; TensorFlow crashes on some animated WebPs
    GIF, BMP, TIFF, PPM     what Pillow shows, a TIFF turned upright; in grey where the image is

Arrays (`.npy`, see `array_files`) are kept bit for bit, too. All other formats are refused, so that no unusual part of
Pillow ever runs on a file from the web.

Where images are encoded anew (--encoder, --resize_short_side, --exif=apply), the result is 8-bit grey or RGB without
transparency, metadata or colour profile. Readers ignore profiles and the EXIF orientation whether or not they
are there, so dropping them changes no pixel that is trained on. JPEGs have 4:2:0 chroma; WebPs are lossy, of
lossless ones too. The same bytes and options give the same result with the same versions of Pillow and its
libraries, not with all versions.

check "header" notices files that are cut and headers that are damaged. "decode" also decodes everything and
compares a PNG's checksums, as TensorFlow does. Neither sees most damage inside the pixels of a JPEG or a WebP,
such as a flipped bit or a piece that is missing: libjpeg and libwebp show wrong colours there and report no
error, and the formats hold no checksum.
"""

import contextlib
import dataclasses
import io
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from pipeline.array_files import is_array, read_array_header
from pipeline.image_headers import ImageHeader, read_header

# 178,956,970: TensorFlow refuses JPEGs of 2**29 samples, and Pillow all images of more pixels than this.
MAX_PIXELS = (2**29 - 1) // 3

# What `StoredImage.notes` can hold, and what it says of an image
NOTES = {
    "misnamed": "its name ends like that of another format; the extension in the shard follows its contents",
    "other_format": "GIF, BMP, TIFF or PPM; stored as PNG",
    "cmyk": "a CMYK JPEG; converted to RGB as Pillow does it",
    "unusual_jpeg": "a lossless JPEG, which TensorFlow does not read; converted",
    "16_bit": "more than 8 bits a channel; the high byte is kept",
    "animated": "more than one frame or page; the first is stored",
    "transparent": "it has transparency, which readers drop: the colours beneath it show",
    "exif_rotated": "its EXIF orientation is not upright; --exif=apply turns it, and readers ignore the tag",
    "resized": "shrunk to --resize_short_side",
    "reencoded": "stored with other bytes than it came with",
    "kept_smaller": "kept as it came: encoded anew it would take more bytes",
}

_EXTENSION_OF = {"jpeg": "jpg", "png": "png", "webp": "webp"}
_FORMAT_OF_SUFFIX = {
    **dict.fromkeys(("jpg", "jpeg", "jpe", "jfif", "mpo"), "jpeg"),
    **dict.fromkeys(("png", "apng"), "png"),
    "webp": "webp",
    "gif": "gif",
    "bmp": "bmp",
    **dict.fromkeys(("tif", "tiff"), "tiff"),
    **dict.fromkeys(("ppm", "pgm", "pbm", "pnm"), "ppm"),
    "npy": "npy",
}
_OTHER_FORMATS = ("GIF", "BMP", "TIFF", "PPM")

# EXIF orientation -> what turns the image upright
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_CHOICES = {"check": ("header", "decode"), "encoder": ("keep", "jpeg", "webp"), "exif": ("ignore", "apply")}


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """How images are checked, and in which form they are stored. The fields are flags of `tools.make_shards`.

    Args:
        check: "header": what the structure of the file says; "decode": all pixels too, milliseconds an image
            instead of microseconds.
        encoder: "keep": bytes as they came, where readers agree on them; "jpeg" or "webp": all are encoded anew.
        quality: of images that are encoded anew, 1 to 100.
        resize_short_side: pixels; images whose short side is longer are shrunk to it (bicubic, antialiased), in
            the format that they came in unless `encoder` says another. None: no image is shrunk.
        skip_if_smaller: keep an image as it came, its size included, where that takes fewer bytes than encoded
            anew; but not where it must be converted or turned.
        exif: "ignore": as readers do; "apply": turn images upright as their EXIF orientation says.

    Raises:
        ValueError: a value is out of its range; the message names its flag.
    """

    check: str = "header"
    encoder: str = "keep"
    quality: int = 90
    resize_short_side: int | None = None
    skip_if_smaller: bool = False
    exif: str = "ignore"

    def __post_init__(self):
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"--{name} must be one of {', '.join(choices)}, received {getattr(self, name)!r}")
        if type(self.quality) is not int or not 1 <= self.quality <= 100:
            raise ValueError(f"--quality must be a whole number from 1 to 100, received {self.quality!r}")
        side = self.resize_short_side
        if side is not None and (type(side) is not int or side < 1):
            raise ValueError(f"--resize_short_side must be a whole number of pixels from 1 on, received {side!r}")
        if type(self.skip_if_smaller) is not bool:
            raise ValueError(f"--skip_if_smaller must be true or false, received {self.skip_if_smaller!r}")
        if self.skip_if_smaller and self.encoder == "keep" and side is None:
            raise ValueError(
                "--skip_if_smaller chooses between an image as it came and encoded anew, but nothing is encoded anew: "
                "expected --encoder=jpeg, --encoder=webp or --resize_short_side with it, received none of them"
            )


class StoredImage(NamedTuple):
    """An image as it goes into a shard.

    Attributes:
        data: the encoded image.
        extension: "jpg", "png", "webp" or "npy", as the bytes are.
        notes: what there is to say about it, words of `NOTES`.
    """

    data: bytes
    extension: str
    notes: tuple[str, ...]


def prepare_image(data: bytes, options: ImageOptions, name: str = "") -> StoredImage:
    """Checks an encoded image, and encodes it anew where it must be or where the options ask for it.

    Args:
        data: the file's bytes.
        options: see `ImageOptions`.
        name: what the image was called, to notice a suffix that is not that of its contents.

    Raises:
        ValueError: it is no image, or a damaged one; the message is what to say about "it".
    """
    if not data:
        raise ValueError("it is empty")
    if is_array(data):
        read_array_header(data)
        return StoredImage(data, "npy", _notes_on_name("npy", name))
    header = read_header(data, checksums=options.check == "decode") or _other_header(data)
    if header.width * header.height > MAX_PIXELS:
        raise ValueError(f"it is too large: {header.width}x{header.height} pixels, expected at most {MAX_PIXELS:,}")
    notes = _notes(header, name)
    side = options.resize_short_side
    is_shrunk = side is not None and min(header.width, header.height) > side
    is_turned = options.exif == "apply" and header.orientation != 1
    may_be_kept = not header.obstacles and not is_turned
    if may_be_kept and options.encoder == "keep" and not is_shrunk:
        if options.check == "decode":
            with _pillow("it cannot be decoded"):
                _decode_to_check(data, header.format)
        return StoredImage(data, _EXTENSION_OF[header.format], notes)
    encoded, format = _encode_anew(data, header, options, is_turned, is_shrunk)
    if options.skip_if_smaller and may_be_kept and len(data) < len(encoded):
        return StoredImage(data, _EXTENSION_OF[header.format], (*notes, "kept_smaller"))
    notes += ("resized", "reencoded") if is_shrunk else ("reencoded",)
    return StoredImage(encoded, _EXTENSION_OF[format], notes)


def _notes(header: ImageHeader, name: str) -> tuple[str, ...]:
    notes = header.obstacles
    if header.is_transparent:
        notes += ("transparent",)
    if header.orientation != 1:
        notes += ("exif_rotated",)
    return notes + _notes_on_name(header.format, name)


def _notes_on_name(format: str, name: str) -> tuple[str, ...]:
    suffix = name.rpartition(".")[2].lower()
    return ("misnamed",) if _FORMAT_OF_SUFFIX.get(suffix, format) != format else ()


def _other_header(data: bytes) -> ImageHeader:
    # The header of an image that is none of JPEG, PNG and WebP.
    expected = ", ".join(("JPEG", "PNG", "WebP", *_OTHER_FORMATS))
    with _pillow("its header is damaged", unknown=f"it is not an image; expected one of {expected}"):
        with Image.open(io.BytesIO(data), formats=_OTHER_FORMATS) as image:
            obstacles = ("other_format",)
            if image.mode.startswith("I"):  # "I;16" and its likes; 32 bits are refused when they are decoded
                obstacles += ("16_bit",)
            if getattr(image, "is_animated", False):
                obstacles += ("animated",)
            return ImageHeader(image.format.lower(), *image.size, obstacles, is_transparent=image.has_transparency_data)


def _encode_anew(
    data: bytes, header: ImageHeader, options: ImageOptions, is_turned: bool, is_shrunk: bool
) -> tuple[bytes, str]:
    # The new bytes and their format.
    with _pillow("it cannot be decoded"):
        image = _grey_or_rgb(_load(data, header.format))
    if is_turned:
        image = image.transpose(_TURN[header.orientation])
    if is_shrunk:
        image = _shrink(image, options.resize_short_side)
    format = options.encoder
    if format == "keep":
        format = "png" if header.obstacles else header.format
    return _encode(image, format, options.quality), format


@contextlib.contextmanager
def _pillow(failure: str, unknown: str = "it cannot be decoded (Pillow does not know its kind)") -> Iterator[None]:
    # Runs Pillow without its warnings, which are of large images and of dropped transparency, both wanted here.
    # Whatever it raises, and its plugins raise many kinds, becomes a sentence.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UnidentifiedImageError:
        raise ValueError(unknown) from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"it is too large ({error})") from None
    except Exception as error:
        raise ValueError(f"{failure} ({error})") from None


def _decode_to_check(data: bytes, format: str) -> None:
    # All coded data are decoded. Of a JPEG, pixels are made of the grey part alone and at an eighth of its size:
    # nothing can fail after the coefficients are there, and this takes two thirds of the time.
    image = Image.open(io.BytesIO(data), formats=(format.upper(),))
    if format == "jpeg":
        image.draft("L", (1, 1))
    image.load()


def _load(data: bytes, format: str) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=(format.upper(),))
    image.load()
    return image


def _grey_or_rgb(image: Image.Image) -> Image.Image:
    # 8 bits a channel, without transparency and metadata, which Pillow would save again.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        high_bytes = image.tobytes("raw", "I;16B")[::2]
        return Image.frombytes("L", image.size, high_bytes)
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits, expected 8 or 16")
    image = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    image.info = {}
    return image


def _shrink(image: Image.Image, short_side: int) -> Image.Image:
    # Sides as torchvision's Resize rounds them.
    width, height = image.size
    long_side = int(short_side * max(width, height) / min(width, height))
    size = (short_side, long_side) if width <= height else (long_side, short_side)
    return image.resize(size, Image.Resampling.BICUBIC)


def _encode(image: Image.Image, format: str, quality: int) -> bytes:
    options = {
        "jpeg": {"quality": quality, "subsampling": "4:2:0"},
        "webp": {"quality": quality, "method": 4},
        "png": {},
    }[format]
    file = io.BytesIO()
    with _pillow(f"it cannot be stored as {format}"):
        image.save(file, format, **options)
    return file.getvalue()
