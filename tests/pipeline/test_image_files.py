"""What of an image goes into a shard; Pillow and TensorFlow are the oracles of what its pixels are."""

import base64
import io
import random
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from pipeline import image_files
from pipeline.decode import decode_crop, decode_image
from pipeline.image_files import NOTES, ImageOptions, prepare_image
from pipeline.image_headers import read_header

pytestmark = pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")

KEEP = ImageOptions()
RANDOM = np.random.default_rng(0)
NOISE = RANDOM.integers(0, 256, (19, 26, 4), dtype=np.uint8)
SMOOTH = Image.fromarray(NOISE[:4, :5]).resize((26, 19), Image.Resampling.BICUBIC)
RGB, GREY = SMOOTH.convert("RGB"), SMOOTH.convert("L")


def saved(image, kind, **options):
    file = io.BytesIO()
    image.copy().save(file, kind, **options)  # a copy: Pillow leaves settings of one format behind
    return file.getvalue()


def two_frames(image, kind):
    return saved(image, kind, save_all=True, append_images=[ImageOps.flip(image)])


def pillow_rgb(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_file(bits, colour, channels, *chunks):
    """A 16x8 PNG of random samples; Pillow writes only some of the kinds that there are."""
    rows = b"".join(b"\0" + RANDOM.bytes(2 * bits * channels) for _ in range(8))
    header = struct.pack(">IIBBBBB", 16, 8, bits, colour, 0, 0, 0)
    body = (png_chunk(b"IHDR", header), *chunks, png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def palette(bits):
    return png_chunk(b"PLTE", RANDOM.bytes(3 * 2**bits))


def transparent(size):
    return png_chunk(b"tRNS", RANDOM.bytes(size))


# 8x8 ramps: jpegtran -arithmetic, jpegtran -arithmetic -progressive, and imagecodecs.jpeg8_encode(lossless=True)
ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19iZ2hnPk1x"
    "eXBkeFxlZ2P/yQALCAAIAAgBAREA/8wABgAQEAX/2gAIAQEAAD8A3Qifke2GgID/2Q=="
)
ARITHMETIC_PROGRESSIVE = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19iZ2hnPk1x"
    "eXBkeFxlZ2P/ygALCAAIAAgBAREA/8wABAAQ/9oACAEBAAAAAeD/zAAEEAX/2gAIAQEAAQUCElFA/8wABBAF/9oACAEBAAY/Al//zAAEEAX/"
    "2gAIAQEAAT8hpiD/2gAIAQEAAAAQwP/MAAQQBf/aAAgBAQABPxDS8Yr/2Q=="
)
LOSSLESS = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/wwALCAAIAAgBAREA/8QAFgABAQEAAAAAAAAAAAAAAAAAAwYI/9oACAEBAAEAAM/oiIiJQIiIiJQIiIiJ"
    "QIiIiJQIiIiJQIiIiJQIiIiJQIiIiJ//2Q=="
)

JPEG = saved(RGB, "JPEG", quality=80)
PNG = saved(RGB, "PNG")
WEBP = saved(RGB, "WEBP")
AFTER_JFIF = JPEG[:20], JPEG[20:]

KEPT_JPEGS = {
    "4:2:0": JPEG,
    "4:4:4": saved(RGB, "JPEG", subsampling=0),
    "progressive": saved(RGB, "JPEG", progressive=True),
    "grey": saved(GREY, "JPEG"),
    "grey progressive": saved(GREY, "JPEG", progressive=True),
    "RGB inside": saved(RGB, "JPEG", keep_rgb=True),
    "restart markers": saved(RGB, "JPEG", restart_marker_blocks=1),
    "comment": saved(RGB, "JPEG", comment=b"a comment with \xff\xd9\xff\xda in it"),
    "colour profile": saved(RGB, "JPEG", icc_profile=b"profile"),
    "fill bytes": b"\xff\xff\xff".join(AFTER_JFIF),
    "bytes between segments": b"abc".join(AFTER_JFIF),
    "escaped FF between segments": b"\xff\x00".join(AFTER_JFIF),
    "restart marker between segments": b"\xff\xd0".join(AFTER_JFIF),
    "bytes after the end": JPEG + b"preview" * 9,
    "MPO": two_frames(RGB, "MPO"),
    "arithmetic": ARITHMETIC,
    "arithmetic progressive": ARITHMETIC_PROGRESSIVE,
}
KEPT_PNGS = {
    "RGB": PNG,
    "1-bit grey": png_file(1, 0, 1),
    "2-bit grey": png_file(2, 0, 1),
    "4-bit grey": png_file(4, 0, 1),
    "8-bit grey": png_file(8, 0, 1),
    "1-bit palette": png_file(1, 3, 1, palette(1)),
    "2-bit palette": png_file(2, 3, 1, palette(2)),
    "4-bit palette": png_file(4, 3, 1, palette(4)),
    "8-bit palette": png_file(8, 3, 1, palette(8)),
    "short palette": png_file(8, 3, 1, palette(4)),
    "gamma": png_file(8, 2, 3, png_chunk(b"gAMA", struct.pack(">I", 100_000))),
    "bytes after the end": PNG + b"junk",
}
KEPT_WEBPS = {
    "lossy": WEBP,
    "lossless": saved(RGB, "WEBP", lossless=True),
    "colour profile": saved(RGB, "WEBP", icc_profile=b"profile"),
}
TRANSPARENT = {
    "grey, one shade": png_file(8, 0, 1, transparent(2)),
    "RGB, one colour": png_file(8, 2, 3, transparent(6)),
    "grey and alpha": png_file(8, 4, 2),
    "RGBA": png_file(8, 6, 4),
    "palette": png_file(8, 3, 1, palette(8), transparent(256)),
    "1-bit palette": png_file(1, 3, 1, palette(1), transparent(2)),
    "WebP": saved(SMOOTH, "WEBP"),
    "lossless WebP": saved(SMOOTH, "WEBP", lossless=True),
    "lossless WebP, colours under 0 kept": saved(Image.fromarray(NOISE), "WEBP", lossless=True, exact=True),
}
KEPT = [
    *((data, "jpg", ()) for data in KEPT_JPEGS.values()),
    *((data, "png", ()) for data in KEPT_PNGS.values()),
    *((data, "webp", ()) for data in KEPT_WEBPS.values()),
    *((data, "png" if data.startswith(b"\x89PNG") else "webp", ("transparent",)) for data in TRANSPARENT.values()),
]
KEPT_NAMES = [
    *(f"{kind} {name}" for kind, files in (("JPEG", KEPT_JPEGS), ("PNG", KEPT_PNGS)) for name in files),
    *(f"WebP {name}" for name in KEPT_WEBPS),
    *(f"transparent {name}" for name in TRANSPARENT),
]


@pytest.mark.parametrize("data, extension, notes", KEPT, ids=KEPT_NAMES)
@pytest.mark.parametrize("check", ["header", "decode"])
def test_what_all_readers_agree_on_is_kept_bit_for_bit(data, extension, notes, check):
    assert prepare_image(data, ImageOptions(check=check)) == (data, extension, notes)
    np.testing.assert_array_equal(decode_image(data, 3), pillow_rgb(data))
    assert decode_image(data, 1).shape[2] == 1
    part = decode_crop(data, lambda height, width: tf.constant((1, 2, 5, 6)), 3)
    np.testing.assert_array_equal(part, pillow_rgb(data)[1:6, 2:8])


@pytest.mark.parametrize("data, extension, notes", KEPT, ids=KEPT_NAMES)
def test_the_header_read_by_hand_is_that_of_pillow(data, extension, notes):
    header, image = read_header(data), Image.open(io.BytesIO(data))
    assert (header.width, header.height) == image.size
    assert header.format == image.format.lower().replace("mpo", "jpeg")
    assert header.is_transparent == image.has_transparency_data


HIGH_BYTES = RANDOM.integers(0, 256, (19, 26), dtype=np.uint8)
DEEP = HIGH_BYTES.astype(np.uint16) * 256 + 201
DEEP_GREY = Image.fromarray(DEEP)
TIFF_DEEP = saved(DEEP_GREY, "TIFF")
PGM_DEEP = b"P5 26 19 65535\n" + DEEP.astype(">u2").tobytes()


@pytest.mark.parametrize(
    "data, notes",
    [
        (saved(DEEP_GREY, "PNG"), ("16_bit",)),
        (TIFF_DEEP, ("other_format", "16_bit")),
        (PGM_DEEP, ("other_format", "16_bit")),
    ],
    ids=["PNG", "TIFF", "PGM"],
)
def test_16_bit_grey_keeps_the_high_byte_in_a_grey_png(data, notes):
    stored = prepare_image(data, KEEP)
    assert (stored.extension, stored.notes) == ("png", (*notes, "reencoded"))
    assert Image.open(io.BytesIO(stored.data)).mode == "L"
    np.testing.assert_array_equal(decode_image(stored.data, 1)[..., 0], HIGH_BYTES)


@pytest.mark.parametrize("colour, channels", [(2, 3), (4, 2), (6, 4)])
def test_16_bit_png_of_more_channels_gives_what_tensorflow_makes_of_it(colour, channels):
    data = png_file(16, colour, channels)
    stored = prepare_image(data, KEEP)
    assert "16_bit" in stored.notes and stored.extension == "png"
    assert Image.open(io.BytesIO(stored.data)).mode == "RGB"
    np.testing.assert_array_equal(decode_image(stored.data, 3), decode_image(data, 3))


CMYK = saved(RGB.convert("CMYK"), "JPEG", quality=95)


@pytest.mark.parametrize(
    "data, notes",
    [
        (CMYK, ("cmyk",)),
        (LOSSLESS, ("unusual_jpeg",)),
        (two_frames(RGB, "PNG"), ("animated",)),
        (two_frames(RGB, "WEBP"), ("animated",)),
        (two_frames(SMOOTH, "WEBP"), ("animated", "transparent")),
        (saved(RGB, "GIF"), ("other_format",)),
        (two_frames(RGB, "GIF"), ("other_format", "animated")),
        (saved(RGB, "BMP"), ("other_format",)),
        (saved(RGB, "TIFF", compression="tiff_lzw"), ("other_format",)),
        (two_frames(RGB, "TIFF"), ("other_format", "animated")),
        (saved(SMOOTH, "TIFF"), ("other_format", "transparent")),
        (saved(RGB.convert("CMYK"), "TIFF"), ("other_format",)),
        (saved(RGB, "PPM"), ("other_format",)),
        (saved(GREY, "PPM"), ("other_format",)),
        (saved(GREY.convert("1"), "PPM"), ("other_format",)),
    ],
    ids="CMYK, lossless, APNG, WebP, WebP with alpha, GIF, GIFs, BMP, TIFF, TIFFs, TIFF RGBA, TIFF CMYK, PPM, PGM, "
    "PBM".split(", "),
)
def test_other_kinds_become_pngs_with_the_pixels_that_pillow_shows_first(data, notes):
    stored = prepare_image(data, KEEP)
    assert (stored.extension, stored.notes) == ("png", (*notes, "reencoded"))
    np.testing.assert_array_equal(decode_image(stored.data, 3), pillow_rgb(data))
    assert read_header(stored.data) == ("png", *Image.open(io.BytesIO(data)).size, (), 1, False)


def test_grey_images_of_other_formats_stay_grey():
    for image in (GREY, GREY.convert("1")):
        stored = prepare_image(saved(image, "PPM"), KEEP)
        assert Image.open(io.BytesIO(stored.data)).mode == "L"


def test_what_is_stored_is_stored_unchanged_when_it_comes_again():
    for data in (CMYK, TIFF_DEEP, saved(RGB, "GIF")):
        stored = prepare_image(data, KEEP)
        assert prepare_image(stored.data, KEEP) == (stored.data, "png", ())


@pytest.mark.parametrize(
    "name, notes",
    [
        ("n02105855_2933.JPEG", ("misnamed",)),
        ("a/b.webp", ("misnamed",)),
        ("a.gif", ("misnamed",)),
        ("a.png", ()),
        ("A.PNG", ()),
        ("a", ()),
        ("a.img", ()),
        ("", ()),
    ],
)
def test_a_png_by_another_name_is_noted(name, notes):
    assert prepare_image(PNG, KEEP, name) == (PNG, "png", notes)


# EXIF


def exif_block(orientation, order, kind="H"):
    """A TIFF structure with an orientation between two other tags, and a thumbnail, a whole JPEG, behind it."""
    value = struct.pack(order + kind, orientation).ljust(4, b"\0")
    code = {"H": 3, "I": 4}[kind]
    entry = struct.Struct(order + "HHI4s")
    entries = [
        entry.pack(0x0100, 3, 1, struct.pack(order + "H", 7).ljust(4, b"\0")),
        entry.pack(0x0112, code, 1, value),
        entry.pack(0x0213, 3, 1, struct.pack(order + "H", 1).ljust(4, b"\0")),
    ]
    start = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, 8)
    return start + struct.pack(order + "H", 3) + b"".join(entries) + bytes(4) + JPEG


def with_exif(jpeg, block):
    segment = b"Exif\0\0" + block
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(10))
def test_the_orientation_is_that_of_pillow(orientation, order):
    data = with_exif(JPEG, exif_block(orientation, order))
    assert Image.open(io.BytesIO(data)).getexif()[0x0112] == orientation
    expected = orientation if 1 <= orientation <= 8 else 1
    assert read_header(data).orientation == expected
    notes = ("exif_rotated",) if expected != 1 else ()
    assert prepare_image(data, KEEP) == (data, "jpg", notes)  # --exif=ignore


def test_an_orientation_of_another_type_is_none():
    assert read_header(with_exif(JPEG, exif_block(6, "<", "I"))).orientation == 1


def test_damaged_exif_is_upright():
    block = exif_block(6, "<")
    orientations = {size: read_header(with_exif(JPEG, block[:size])).orientation for size in range(60)}
    assert orientations[33] == 1 and orientations[34] == 6  # header 8, count 2, two entries of 12
    assert read_header(with_exif(JPEG, b"XX" + block[2:])).orientation == 1
    assert read_header(with_exif(JPEG, block[:4] + b"\xff\xff\xff\xff" + block[8:])).orientation == 1


APPLY = ImageOptions(exif="apply")


@pytest.mark.parametrize("orientation", range(2, 9))
def test_apply_turns_images_as_pillow_does(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(RGB, "PNG", exif=exif)
    stored = prepare_image(data, APPLY)
    assert (stored.extension, stored.notes) == ("png", ("exif_rotated", "reencoded"))
    np.testing.assert_array_equal(decode_image(stored.data, 3), ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert read_header(stored.data).orientation == 1


@pytest.mark.parametrize("kind, extension", [("JPEG", "jpg"), ("WEBP", "webp")])
def test_apply_keeps_the_format(kind, extension):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(RGB, kind, exif=exif, quality=90)
    stored = prepare_image(data, ImageOptions(exif="apply", quality=95))
    assert (stored.extension, stored.notes) == (extension, ("exif_rotated", "reencoded"))
    assert read_header(stored.data)[1:] == (19, 26, (), 1, False)
    assert stored.data == saved(ImageOps.exif_transpose(Image.open(io.BytesIO(data))), kind, quality=95)


def test_apply_keeps_what_is_upright():
    assert prepare_image(JPEG, APPLY) == (JPEG, "jpg", ())


def test_apply_and_resize_shrink_the_turned_image():
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = prepare_image(saved(RGB, "PNG", exif=exif), ImageOptions(exif="apply", resize_short_side=10))
    assert (read_header(stored.data).width, read_header(stored.data).height) == (10, 13)
    assert stored.notes == ("exif_rotated", "resized", "reencoded")


# Damage


@pytest.mark.parametrize("data", [b"", b"no image", b"\xff\xd8", b"%PDF-1.7", b"%!PS-Adobe-3.0 EPSF-3.0", b"RIFF"])
def test_what_is_no_image_is_refused(data):
    with pytest.raises(
        ValueError, match="it is not an image; expected one of JPEG, PNG, .*" if data else "it is empty"
    ):
        prepare_image(data, KEEP)


@pytest.mark.parametrize(
    "data, start",
    [
        (saved(GREY.crop((0, 0, 8, 8)), "JPEG"), 3),
        (saved(GREY.crop((0, 0, 8, 8)), "JPEG", progressive=True), 3),
        (with_exif(JPEG, exif_block(1, ">")), 3),
        (PNG, 8),
        (WEBP, 12),
        (saved(SMOOTH, "WEBP"), 12),
    ],
    ids=["JPEG", "progressive JPEG", "JPEG with a thumbnail", "PNG", "WebP", "WebP with alpha"],
)
def test_a_cut_at_any_byte_is_noticed_without_decoding(data, start):
    prepare_image(data, KEEP)
    for size in range(start, len(data)):
        with pytest.raises(ValueError, match="it is cut: "):
            prepare_image(data[:size], KEEP)


def test_a_cut_gif_is_refused():
    data = saved(RGB, "GIF")
    with pytest.raises(ValueError, match="it cannot be decoded"):
        prepare_image(data[:-20], KEEP)


def altered(data, place, value):
    """`data` with other bytes from an offset on."""
    return data[:place] + value + data[place + len(value) :]


FRAME = JPEG.index(b"\xff\xc0")


@pytest.mark.parametrize(
    "data, message",
    [
        (altered(JPEG, FRAME + 5, bytes(2)), r"its header is damaged \(it says 26x0 pixels\)"),
        (altered(JPEG, FRAME + 4, b"\x0c"), r"it cannot be decoded \(Pillow does not know its kind\)"),  # 12 bits
        (altered(JPEG, FRAME + 2, bytes(2)), r"its header is damaged \(segment C0 at byte \d+\)"),
        (altered(JPEG, FRAME + 1, b"\xc4"), r"its header is damaged \(pixels come before their size\)"),
        (altered(PNG, 12, b"JHDR"), r"its header is damaged \(chunk IHDR or IDAT is missing\)"),
        (altered(PNG, 20, b"\1"), r"it is damaged \(checksum of chunk IHDR at byte 8\)"),
        (altered(PNG, 33, bytes(4)), r"it is damaged \(no chunk begins at byte 45\)"),
        (altered(WEBP, 12, b"VP9 "), r"its header is damaged \(it holds no picture\)"),
        (b"RIFF\x14\0\0\0WEBPVP8 \x08\0\0\0" + bytes(8), r"its header is damaged \(a part of it is too short\)"),
        (b"P5 4 4 255\n" + bytes(15), r"it cannot be decoded \(image file is truncated"),
        (b"P5 4 x 255\n" + bytes(16), r"its header is damaged \("),
        (b"Pf 2 2 -1.0\n" + bytes(16), r"it cannot be decoded \(its pixels have 32 bits, expected 8 or 16\)"),
    ],
)
def test_damage_is_told_in_a_sentence(data, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        prepare_image(data, KEEP)


@pytest.mark.parametrize("encoder", ["keep", "jpeg"])
def test_decoding_finds_damage_that_the_structure_hides(encoder):
    options = ImageOptions(check="decode", encoder=encoder)
    without_table = altered(JPEG, JPEG.index(b"\xff\xdb"), b"\xff\xec")  # DQT renamed to APP12
    wrong_checksum = altered(PNG, len(PNG) - 14, bytes([PNG[-14] ^ 1]))  # of IDAT; Pillow alone does not see it
    half_a_webp = altered(WEBP[: len(WEBP) // 2], 4, struct.pack("<I", len(WEBP) // 2 - 8))
    for data, message in [
        (without_table, "it cannot be decoded"),
        (wrong_checksum, "it is damaged .checksum of chunk IDAT"),
        (half_a_webp, "it cannot be decoded"),
    ]:
        assert prepare_image(data, KEEP).data == data
        with pytest.raises(ValueError, match=message):
            prepare_image(data, options)


@pytest.mark.parametrize("data", [with_exif(JPEG, exif_block(3, "<")), PNG, WEBP, CMYK, saved(RGB, "GIF")])
def test_random_damage_raises_nothing_but_value_error(data):
    options = ImageOptions(check="decode", exif="apply")
    for _ in range(150):
        damaged = bytearray(data)
        for place in RANDOM.integers(0, min(len(data), 400), 2):
            damaged[place] = RANDOM.integers(256)
        try:
            stored = prepare_image(bytes(damaged), options)
        except ValueError as error:
            assert str(error).startswith(("it is ", "it cannot ", "its header is damaged ("))
        else:
            assert stored.extension in ("jpg", "png", "webp")


def test_images_are_kept_up_to_the_size_that_tensorflow_reads():
    def told(width, height):
        return altered(JPEG, FRAME + 5, struct.pack(">HH", height, width))  # its pixels are not there

    def corner(encoded):
        return decode_crop(encoded, lambda height, width: tf.constant((0, 0, 2, 3)), 3)

    kept, refused = told(14_351, 12_470), told(43_691, 4_096)  # 2**29 / 3 pixels is between them
    assert prepare_image(kept, KEEP).data == kept
    assert corner(kept).shape == (2, 3, 3)
    with pytest.raises(ValueError, match="it is too large: 43691x4096 pixels, expected at most 178,956,970"):
        prepare_image(refused, KEEP)
    with pytest.raises(tf.errors.InvalidArgumentError):
        corner(refused)


def test_large_images_of_other_formats_are_refused_too():
    with pytest.raises(ValueError, match="it is too large .Image size .* exceeds limit"):
        prepare_image(b"P5 43691 4096 255\n", KEEP)


# Encoding anew


@pytest.mark.parametrize("encoder, kind, extension", [("jpeg", "JPEG", "jpg"), ("webp", "WEBP", "webp")])
@pytest.mark.parametrize("data, notes", [(JPEG, ()), (PNG, ()), (WEBP, ()), (CMYK, ("cmyk",))])
def test_an_encoder_encodes_every_image(encoder, kind, extension, data, notes):
    stored = prepare_image(data, ImageOptions(encoder=encoder, quality=70))
    assert (stored.extension, stored.notes) == (extension, (*notes, "reencoded"))
    assert stored.data == saved(Image.fromarray(pillow_rgb(data)), kind, quality=70)
    assert decode_image(stored.data, 3).shape == (19, 26, 3)


def test_quality_changes_the_size():
    sizes = [len(prepare_image(PNG, ImageOptions(encoder="jpeg", quality=quality)).data) for quality in (1, 50, 100)]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("data", [saved(GREY, "JPEG"), png_file(4, 0, 1), png_file(8, 4, 2)])
def test_grey_images_stay_grey_jpegs(data):
    stored = prepare_image(data, ImageOptions(encoder="jpeg"))
    assert Image.open(io.BytesIO(stored.data)).mode == "L"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_no_metadata_is_copied(kind):
    exif = Image.Exif()
    exif[0x0112] = 3
    options = {"comment": b"hello"} if kind == "JPEG" else {}
    data = saved(RGB, kind, exif=exif, icc_profile=b"profile", dpi=(300, 300), **options)
    stored = prepare_image(data, ImageOptions(resize_short_side=5))
    left = Image.open(io.BytesIO(stored.data)).info
    assert not {"exif", "icc_profile", "comment", "dpi", "transparency"} & set(left)


def test_transparency_is_dropped_when_encoding_anew():
    for data in TRANSPARENT.values():
        stored = prepare_image(data, ImageOptions(resize_short_side=4))
        assert not read_header(stored.data).is_transparent
    data = TRANSPARENT["RGB, one colour"]
    expected = Image.fromarray(pillow_rgb(data)).resize((8, 4), Image.Resampling.BICUBIC)
    stored = prepare_image(data, ImageOptions(resize_short_side=4))
    np.testing.assert_array_equal(decode_image(stored.data, 3), expected)


@pytest.mark.parametrize(
    "size, short_side, expected", [((26, 19), 10, (13, 10)), ((19, 26), 10, (10, 13)), ((500, 375), 256, (341, 256))]
)
def test_the_short_side_becomes_what_was_asked(size, short_side, expected):
    # torchvision: the long side is int(short_side * long / short)
    image = RGB.resize(size)
    stored = prepare_image(saved(image, "PNG"), ImageOptions(resize_short_side=short_side))
    assert (stored.extension, stored.notes) == ("png", ("resized", "reencoded"))
    np.testing.assert_array_equal(decode_image(stored.data, 3), image.resize(expected, Image.Resampling.BICUBIC))


@pytest.mark.parametrize("data, extension", [(JPEG, "jpg"), (PNG, "png"), (WEBP, "webp"), (saved(RGB, "GIF"), "png")])
def test_resizing_keeps_the_format(data, extension):
    stored = prepare_image(data, ImageOptions(resize_short_side=10))
    assert stored.extension == extension
    assert decode_image(stored.data, 3).shape == (10, 13, 3)


@pytest.mark.parametrize("short_side", [19, 20, 1000])
def test_nothing_is_enlarged(short_side):
    assert prepare_image(JPEG, ImageOptions(resize_short_side=short_side)) == (JPEG, "jpg", ())


def test_the_original_is_kept_where_it_is_smaller():
    small = saved(RGB, "JPEG", quality=5)
    options = ImageOptions(encoder="jpeg", quality=100, skip_if_smaller=True)
    assert prepare_image(small, options) == (small, "jpg", ("kept_smaller",))
    large = saved(RGB, "JPEG", quality=100)
    stored = prepare_image(large, ImageOptions(encoder="jpeg", quality=5, skip_if_smaller=True))
    assert stored.notes == ("reencoded",) and len(stored.data) < len(large)


def test_a_smaller_original_is_not_kept_where_it_must_be_converted_or_turned():
    small = saved(RGB.convert("CMYK"), "JPEG", quality=5)
    options = ImageOptions(encoder="jpeg", quality=100, skip_if_smaller=True, exif="apply")
    assert prepare_image(small, options).notes == ("cmyk", "reencoded")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = prepare_image(saved(RGB, "JPEG", quality=5, exif=exif), options)
    assert turned.notes == ("exif_rotated", "reencoded")


def test_an_image_is_decoded_once(monkeypatch):
    loads = []
    load = image_files._load
    monkeypatch.setattr(image_files, "_load", lambda *args: loads.append(1) or load(*args))
    prepare_image(JPEG, ImageOptions(check="decode", encoder="webp", skip_if_smaller=True))
    assert len(loads) == 1
    prepare_image(JPEG, KEEP)
    assert len(loads) == 1
    monkeypatch.setattr(image_files, "_decode_to_check", lambda *args: loads.append(1))
    prepare_image(JPEG, ImageOptions(check="decode"))
    assert len(loads) == 2


def test_an_image_that_no_webp_can_hold_is_told():
    wide = saved(Image.new("L", (16_384, 1)), "PNG")
    with pytest.raises(ValueError, match="it cannot be stored as webp"):
        prepare_image(wide, ImageOptions(encoder="webp"))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"check": "full"}, "--check must be one of header, decode, received 'full'"),
        ({"encoder": "png"}, "--encoder must be one of keep, jpeg, webp, received 'png'"),
        ({"exif": "yes"}, "--exif must be one of ignore, apply, received 'yes'"),
        ({"quality": 0}, "--quality must be a whole number from 1 to 100, received 0"),
        ({"quality": 101}, "--quality must be a whole number from 1 to 100, received 101"),
        ({"quality": 9.5}, "--quality must be a whole number from 1 to 100, received 9.5"),
        ({"resize_short_side": 0}, "--resize_short_side must be a whole number of pixels from 1 on, received 0"),
        ({"resize_short_side": True}, "--resize_short_side must be a whole number of pixels from 1 on, received True"),
        ({"skip_if_smaller": "no"}, "--skip_if_smaller must be true or false, received 'no'"),
        ({"skip_if_smaller": True}, "--skip_if_smaller chooses .* expected --encoder=jpeg, .* received none of them"),
        ({"skip_if_smaller": True, "exif": "apply"}, "--skip_if_smaller chooses"),
    ],
)
def test_wrong_options_name_their_flag(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        ImageOptions(**options)


def test_quality_without_an_encoder_is_harmless():
    assert prepare_image(JPEG, ImageOptions(quality=10)).data == JPEG


def test_every_note_is_explained_and_every_explanation_is_used():
    turned = with_exif(JPEG, exif_block(6, "<"))
    stored = [
        *(prepare_image(data, KEEP) for data in (CMYK, LOSSLESS, TIFF_DEEP, two_frames(RGB, "GIF"), turned)),
        prepare_image(TRANSPARENT["RGBA"], KEEP, "a.jpg"),
        prepare_image(JPEG, ImageOptions(resize_short_side=4)),
        prepare_image(JPEG, ImageOptions(encoder="jpeg", quality=100, skip_if_smaller=True)),
    ]
    assert {note for image in stored for note in image.notes} == set(NOTES)


def test_the_check_refuses_exactly_the_jpegs_that_a_full_decode_refuses():
    rng = random.Random(0)
    seen = set()
    for options in ({}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 2}):
        whole = saved(Image.fromarray(RANDOM.integers(0, 255, (40, 50, 3), dtype=np.uint8)), "JPEG", **options)
        for _ in range(100):
            data, place = bytearray(whole), rng.randrange(20, len(whole))
            data[place : rng.choice((place + rng.randrange(3), len(data)))] = rng.randbytes(rng.randrange(8))
            outcomes = []
            for decode in (image_files._load, image_files._decode_to_check):
                try:
                    decode(bytes(data), "jpeg")
                    outcomes.append("read")
                except Exception as error:
                    outcomes.append(type(error))
            assert outcomes[0] == outcomes[1]
            seen.add(outcomes[0])
    assert len(seen) >= 2
