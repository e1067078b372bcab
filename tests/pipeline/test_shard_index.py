"""The index of a shard: DALI's format, round trips, and a clear error for each kind of damage."""

import pytest

from pipeline.manifest import ManifestError
from pipeline.shard_index import Member, index_bytes, parse_label, read_index, split_name

ROWS = [
    [Member("cls", 512, 1, "00000000.cls"), Member("jpg", 1536, 700, "00000000.jpg")],
    [Member("cls", 3072, 2, "00000001.cls"), Member("png", 4096, 90, "00000001.png")],
]


def test_an_index_is_written_in_the_format_of_dali(tmp_path):
    # Its version 1.2: https://docs.nvidia.com/deeplearning/dali, fn.readers.webdataset, index files.
    (tmp_path / "a.idx").write_bytes(index_bytes(ROWS))
    assert (tmp_path / "a.idx").read_text() == (
        "v1.2 2\ncls 512 1 00000000.cls jpg 1536 700 00000000.jpg\ncls 3072 2 00000001.cls png 4096 90 00000001.png\n"
    )


def test_an_index_reads_back_what_was_written(tmp_path):
    (tmp_path / "a.idx").write_bytes(index_bytes(ROWS))
    index = read_index(tmp_path / "a.idx", 2)
    assert index.keys == ("00000000", "00000001")
    assert index.extensions == ("jpg", "png")
    columns = (index.image_offset, index.image_size, index.label_offset, index.label_size)
    assert [column.dtype.name for column in columns] == ["int64"] * 4
    assert [column.tolist() for column in columns] == [[1536, 4096], [700, 90], [512, 3072], [1, 2]]


def test_samples_without_labels_and_of_any_width_share_an_index(tmp_path):
    rows = [
        [Member("jpg", 512, 7, "00000000.jpg"), Member("json", 1536, 9, "00000000.json")],
        [Member("cls", 2560, 1, "00000001.cls"), Member("webp", 3584, 8, "00000001.webp")],
        [Member("png", 4608, 6, "00000002.png")],
    ]
    (tmp_path / "a.idx").write_bytes(index_bytes(rows))
    index = read_index(tmp_path / "a.idx", 3)
    assert index.extensions == ("jpg", "webp", "png")
    assert index.image_offset.tolist() == [512, 3584, 4608]
    assert (index.label_offset.tolist(), index.label_size.tolist()) == ([0, 2560, 0], [0, 1, 0])


def test_an_index_of_no_samples_is_empty(tmp_path):
    (tmp_path / "a.idx").write_bytes(index_bytes([]))
    assert read_index(tmp_path / "a.idx", 0).image_offset.shape == (0,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line should be 'v1.2 1', received ''"),
        ("v1.1 1\njpg 512 7 0.jpg\n", "received 'v1.1 1'"),
        ("v1.2 2\njpg 512 7 0.jpg\n", "received 'v1.2 2'"),
        ("v1.2 1\n", "expected 1 samples, received 0"),
        ("v1.2 1\njpg 512 7 0.jp", "cut or edited"),
        ("v1.2 1\njpg 512 7\n", "extension offset size name"),
        ("v1.2 1\njpg 512 x 0.jpg\n", "extension offset size name"),
        ("v1.2 1\njpg -512 7 0.jpg\n", "extension offset size name"),
        ("v1.2 1\njpg 512 -7 0.jpg\n", "extension offset size name"),
        (f"v1.2 1\njpg {1 << 63} 7 0.jpg\n", "extension offset size name"),
        pytest.param(f"v1.2 1\njpg {'9' * 5000} 7 0.jpg\n", "extension offset size name", id="5000 digits"),
        ("v1.2 1\ncls 512 1 0.cls\n", "sample 0 needs an image"),
        ("v1.2 1\ncls 512 1 0.cls cls 1536 1 0.cls jpg 2560 7 0.jpg\n", "at most one label"),
        ("v1.2 1\ncls 512 1 1.cls jpg 1536 7 0.jpg\n", "should have members '1.EXTENSION', received '0.jpg'"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path, text, message):
    path = tmp_path / "a.idx"
    path.write_text(text)
    with pytest.raises(ManifestError, match=message):
        read_index(path, 1)


def test_a_missing_index_file_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="a.idx does not exist: expected the index"):
        read_index(tmp_path / "a.idx", 1)


def test_members_must_lie_within_the_tar(tmp_path):
    (tmp_path / "a.idx").write_bytes(index_bytes(ROWS))  # the last byte is number 4185
    assert read_index(tmp_path / "a.idx", 2, tar_bytes=4186).image_size.tolist() == [700, 90]
    with pytest.raises(ManifestError, match="a.idx is damaged: it points outside its tar, which has 4185 bytes"):
        read_index(tmp_path / "a.idx", 2, tar_bytes=4185)


def test_labels_are_found_in_upper_case_too(tmp_path):
    (tmp_path / "a.idx").write_text("v1.2 1\nCLS 512 2 0.CLS JPG 1536 7 0.JPG\n")
    index = read_index(tmp_path / "a.idx", 1)
    assert (index.label_offset.tolist(), index.label_size.tolist()) == ([512], [2])


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (b"0", 0),
        (b" 12\n", 12),
        (b"999999999", 999_999_999),
        *((text, None) for text in (b"", b"-1", b"1.0", b"cat", "\u0663".encode(), b"1" * 10)),
        pytest.param(b"9" * 5000, None, id="5000 digits"),
    ],
)
def test_a_label_is_a_number_from_0_on(text, label):
    assert parse_label(text) == label


def test_a_png_beside_a_jpeg_is_no_image(tmp_path):
    (tmp_path / "a.idx").write_text("v1.2 2\nJPEG 512 7 0.JPEG png 1536 5 0.png\npng 2560 6 1.png webp 3584 8 1.webp\n")
    index = read_index(tmp_path / "a.idx", 2)
    assert index.extensions == ("jpeg", "webp")
    assert index.image_size.tolist() == [7, 8]


def test_names_with_dots_folders_blanks_and_bytes_that_are_no_text(tmp_path):
    names = ["a.b/c d.seg.png", "a.b/c d.jpg", "50%\udcff.jpg"]
    rows = [[Member(split_name(name)[1], 512, 7, name) for name in group] for group in (names[:2], names[2:])]
    (tmp_path / "a.idx").write_bytes(index_bytes(rows))
    assert [split_name(name) for name in names] == [
        ("a.b/c d", "seg.png"),
        ("a.b/c d", "jpg"),
        ("50%\udcff", "jpg"),
    ]
    assert read_index(tmp_path / "a.idx", 2).keys == ("a.b/c%20d", "50%25\udcff")
