"""The members of a tar: what tarfile lists where a tar is whole, and an error wherever it is not."""

import bz2
import gzip
import io
import itertools
import lzma
import os
import random
import shutil
import subprocess
import tarfile

import pytest

from pipeline.tar_members import BLOCK, TarCompressed, TarDamage, tar_members

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
SIZES = (0, 1, 511, 512, 513, 3000)
LONG_NAME = "folder/" * 20 + "image.jpg"  # 149 characters: in two fields in USTAR, a header of its own elsewhere


def make_tar(files, format=tarfile.GNU_FORMAT):
    """(name, contents) as the bytes of a tar; contents None: a folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            info.size = len(data or b"")
            tar.addfile(info, io.BytesIO(data or b""))
    return buffer.getvalue()


def plain_files(format=tarfile.GNU_FORMAT):
    """A tar of files of many sizes, without folders."""
    return make_tar([(f"{number}.jpg", b"x" * size) for number, size in enumerate(SIZES)], format)


def members_of(data, **window):
    return list(tar_members(io.BytesIO(data), window.pop("size", len(data)), **window))


def listed_by_tarfile(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(info.name, info.offset_data, info.size) for info in tar if info.isfile()]


def end_of(data):
    """Where the last file of a tar ends, in whole blocks; two empty blocks must follow."""
    _, offset, size = listed_by_tarfile(data)[-1]
    return offset + -(-size // BLOCK) * BLOCK


def refuse(data, match):
    with pytest.raises(TarDamage, match=match):
        members_of(data)


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("name", ["a.jpg", "a/b.c.jpg", LONG_NAME, "\u00fc/\u732b.jpg", "x" * 99, "x" * 100])
def test_members_are_those_that_tarfile_lists(format, name):
    data = make_tar([("first", b"1"), ("folder", None), (name, b"y" * 700), ("empty", b""), ("last", b"2")], format)
    members = members_of(data)
    assert members == listed_by_tarfile(data)
    assert [member.name for member in members] == ["first", name, "empty", "last"]
    assert data[members[1].offset : members[1].offset + members[1].size] == b"y" * 700


@pytest.mark.parametrize("format", FORMATS)
def test_members_are_those_that_tar_writes(tmp_path, format):
    if not shutil.which("tar"):
        pytest.skip("there is no tar")
    for name in ("a.jpg", "b/c.jpg", LONG_NAME):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(name.encode() * 30)
    command = ["tar", f"--format={format}", "-cf", str(tmp_path / "x.tar"), "-C", str(tmp_path / "in"), "."]
    subprocess.run(command, check=True)
    data = (tmp_path / "x.tar").read_bytes()
    assert members_of(data) == listed_by_tarfile(data)
    contents = {name.removeprefix("./"): data[offset : offset + size] for name, offset, size in members_of(data)}
    assert contents == {name: name.encode() * 30 for name in ("a.jpg", "b/c.jpg", LONG_NAME)}


def test_large_members_are_not_read(tmp_path):
    size = 16 << 30  # a sparse file: 16 GB on paper
    header = tarfile.TarInfo("huge")
    header.size = size
    with open(tmp_path / "x.tar", "wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.seek(BLOCK + size)
        file.write(make_tar([("after", b"1")]))
    with open(tmp_path / "x.tar", "rb") as file:
        members = list(tar_members(file, os.fstat(file.fileno()).st_size))
    assert members == [("huge", BLOCK, size), ("after", 2 * BLOCK + size, 1)]


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_every_cut_is_an_error(format):
    data = make_tar([("a.jpg", b"x" * 700), (LONG_NAME, b"y" * 1024), ("b.jpg", b""), ("c.jpg", b"z")], format)
    needed = end_of(data) + 2 * BLOCK
    for place in {*range(0, needed, BLOCK // 2), *range(1, needed, BLOCK), *range(BLOCK - 1, needed, BLOCK)}:
        with pytest.raises(TarDamage):
            members_of(data[:place])


def test_only_the_filling_after_the_end_may_be_missing():
    data = plain_files()
    needed = end_of(data) + 2 * BLOCK
    assert len(data) > needed
    assert members_of(data[:needed]) == members_of(data[: needed + 100]) == members_of(data)


def test_a_cut_says_where():
    data = plain_files()
    first_of_3000 = listed_by_tarfile(data)[-1][1]
    refuse(data[: first_of_3000 + 2999], rf"is cut in the data of '5.jpg': {first_of_3000 + 3000} bytes are needed")
    refuse(data[: end_of(data) + BLOCK], f"is cut after byte {end_of(data)}: the two empty blocks")
    refuse(data[: first_of_3000 - BLOCK], f"is cut after byte {first_of_3000 - BLOCK}")


def test_members_before_the_damage_come_first():
    data = plain_files()
    members = tar_members(io.BytesIO(data[:2600]), 2600)
    assert [member.name for member in itertools.islice(members, 2)] == ["0.jpg", "1.jpg"]
    with pytest.raises(TarDamage):
        list(members)


def test_a_second_tar_behind_the_first_is_found():
    data, needed = plain_files(), end_of(plain_files()) + 2 * BLOCK
    refuse(data + data, f"goes on at byte {len(data)}")
    refuse(data[:needed] + data, f"goes on at byte {needed}")
    refuse(data + bytes(1 << 21) + b"x", f"goes on at byte {len(data) + (1 << 21)}")


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_any_changed_byte_of_a_header_is_found(format):
    data = plain_files(format)
    for _, offset, _ in listed_by_tarfile(data):
        for place in range(0, BLOCK, 13):
            damaged = bytearray(data)
            damaged[offset - BLOCK + place] ^= 0x15
            with pytest.raises(TarDamage):
                members_of(bytes(damaged))


def test_a_damaged_header_says_where():
    data = bytearray(plain_files())
    start = listed_by_tarfile(data)[3][1] - BLOCK
    data[start] ^= 1
    refuse(bytes(data), f"has a damaged header at byte {start}")


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_header_that_was_overwritten_with_zeros_is_found(blocks):
    data = bytearray(plain_files())
    start = listed_by_tarfile(data)[3][1] - BLOCK
    data[start : start + blocks * BLOCK] = bytes(blocks * BLOCK)
    refuse(bytes(data), "damaged header|goes on at byte")


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])
def test_a_header_lost_behind_a_long_name_is_found(format):
    data = make_tar([("a", b"1"), (LONG_NAME, b"2"), ("b", b"3")], format)
    start = listed_by_tarfile(data)[1][1] - BLOCK
    for lost in (bytes(BLOCK), b"x" * BLOCK):
        refuse(data[:start] + lost + data[start + BLOCK :], "is cut or damaged after byte 1024")


def test_damage_never_raises_anything_else():
    data = make_tar([("a", b"1"), (LONG_NAME, b"2" * 600), ("\u00fc.jpg", b"3")], tarfile.PAX_FORMAT)
    numbers = random.Random(0)
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(numbers.randint(1, 4)):
            damaged[numbers.randrange(len(data))] = numbers.randrange(256)
        try:
            members = members_of(bytes(damaged))
        except TarDamage:
            continue
        assert [member.offset for member in members] == [member.offset for member in members_of(data)]


def test_a_tar_inside_a_tar_is_read_in_its_place():
    inner = plain_files()
    outer = make_tar([("before", b"x" * 100), ("inner.tar", inner), ("after", b"y" * 600)])
    _, offset, size = members_of(outer)[1]
    assert members_of(outer, offset=offset, size=size) == members_of(inner)
    with pytest.raises(TarDamage, match="is cut"):
        members_of(outer, offset=offset, size=end_of(inner))


@pytest.mark.parametrize("type", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, b"V"])
def test_links_and_special_files_are_refused(type):
    info = tarfile.TarInfo("odd")
    info.type, info.linkname = type, "a.jpg"
    data = make_tar([("a.jpg", b"1")])
    refuse(data[: 2 * BLOCK] + info.tobuf() + data[2 * BLOCK :], "holds 'odd', which is a link or a special file")


@pytest.mark.parametrize("data", [b"", b"x", b"no tar" * 1000, b"\x1f\x8b" + bytes(2000), bytes(100), bytes(BLOCK)])
def test_what_is_no_tar_is_refused(data):
    with pytest.raises(TarDamage):
        members_of(data)


@pytest.mark.parametrize(
    ("compress", "name"), [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz"), (None, "zstd")]
)
def test_a_compressed_tar_says_what_unpacks_it(compress, name):
    # The start of a zstd frame as RFC 8878 has it.
    data = compress(plain_files()) if compress else b"\x28\xb5\x2f\xfd" + bytes(2000)
    with pytest.raises(TarCompressed, match=f"is compressed with {name}, .* unpack it first: (g|b)?un(zip2?|xz|zstd)$"):
        members_of(data)


def test_thousands_of_headers_for_one_member_are_damage():
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2
    many = (header.tobuf(tarfile.GNU_FORMAT) + b"a".ljust(BLOCK, b"\0")) * 3000
    refuse(many + make_tar([("a.jpg", b"1")]), "is no tar, or its first header is damaged")
    refuse(make_tar([("a.jpg", b"1")])[: 2 * BLOCK] + many + bytes(2 * BLOCK), "is cut or damaged after byte 1024")


def test_an_empty_tar_has_no_members():
    assert members_of(make_tar([])) == []
    assert members_of(bytes(2 * BLOCK)) == []


@pytest.mark.parametrize("size", [-1, -512, -1024, 1 << 70])
@pytest.mark.parametrize("type", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_impossible_sizes_are_refused(type, size):
    info = tarfile.TarInfo("odd")
    info.type, info.size = type, size
    data = make_tar([("a.jpg", b"1")])
    refuse(data[: 2 * BLOCK] + info.tobuf(tarfile.GNU_FORMAT) + bytes(4 * BLOCK), "damaged|is cut in the data of 'odd'")


def test_a_file_that_fails_while_it_is_read_is_an_error():
    data = plain_files()

    class Failing(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > 1024:
                raise OSError(5, "Input/output error")
            return super().read(min(size, 1024))

    with pytest.raises(TarDamage, match="cannot be read after byte .*Input/output error"):
        list(tar_members(Failing(data), len(data)))
