"""Folders on a disk, in fsspec's memory, and behind a web server: the same functions, the same answers."""

import contextlib

import pytest

from pipeline import storage
from pipeline.locations import Location, SourceError, file_status, join, open_file, read_location

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(params=["disk", "memory"])
def folder(request, tmp_path):
    if request.param == "disk":
        yield str(tmp_path / "folder")
        return
    yield f"memory://{tmp_path.name}/folder"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def server(tmp_path, web_server):
    (tmp_path / "web").mkdir()
    return web_server(tmp_path / "web")


def test_files_are_written_listed_read_and_removed(folder):
    storage.make_folder(folder)
    storage.write_atomically(join(folder, "b"), b"second")
    storage.write_atomically(join(folder, "a"), b"first")
    assert storage.exists(join(folder, "a")) and storage.is_folder(folder)
    assert storage.list_names(folder) == ["a", "b"]
    assert storage.file_sizes(folder, ["a", "b", "c"]) == {"a": 5, "b": 6}
    assert read_location(Location(join(folder, "b"))) == b"second"
    assert read_location(Location(join(folder, "b"), 2, 3)) == b"con"
    assert file_status(join(folder, "b")).size == 6
    storage.remove(join(folder, "a"))
    storage.remove(join(folder, "a"))
    assert storage.list_names(folder) == ["b"]
    storage.remove_folder(folder)
    storage.remove_folder(folder)
    assert storage.list_names(folder) == [] and not storage.exists(join(folder, "b"))


def test_a_file_that_fails_half_way_does_not_appear(folder):
    storage.make_folder(folder)
    storage.write_atomically(join(folder, "a"), b"old")
    with contextlib.suppress(RuntimeError), storage.open_atomically(join(folder, "a")) as file:
        file.write(b"new")
        raise RuntimeError
    assert storage.list_names(folder) == ["a"]
    assert read_location(Location(join(folder, "a"))) == b"old"


def test_open_files_can_seek(folder):
    storage.make_folder(folder)
    storage.write_atomically(join(folder, "a"), bytes(range(100)))
    with open_file(join(folder, "a")) as file:
        file.seek(40)
        assert file.read(2) == bytes([40, 41])


def test_what_is_missing_is_one_sentence(folder):
    storage.make_folder(folder)
    for act in (lambda path: read_location(Location(path)), file_status, open_file):
        with pytest.raises(SourceError, match="nowhere does not exist"):
            act(join(folder, "nowhere"))


def test_a_part_that_a_file_does_not_have_is_an_error(folder):
    storage.make_folder(folder)
    storage.write_atomically(join(folder, "a"), b"0123456789")
    with pytest.raises(SourceError, match="changed while shards were made: expected 5 bytes at 8, read 2"):
        read_location(Location(join(folder, "a"), 8, 5))


def test_a_web_server_is_read(server, tmp_path):
    (tmp_path / "web" / "a").write_bytes(b"0123456789")
    assert read_location(Location(f"{server}/a")) == b"0123456789"
    assert storage.file_sizes(server, ["a", "b"]) == {"a": 10}


def test_a_page_that_is_not_there_is_one_sentence(server):
    with pytest.raises(SourceError, match="/nowhere does not exist"):
        read_location(Location(f"{server}/nowhere"))


def test_an_unknown_kind_of_url_is_one_sentence():
    with pytest.raises(SourceError, match="gopher://host/a cannot be opened: .*gopher"):
        read_location(Location("gopher://host/a"))


@pytest.mark.parametrize(
    ("folder", "name", "expected"),
    [
        ("a/b", "c", "a/b/c"),
        ("s3://a/b/", "c", "s3://a/b/c"),
        ("a", "/b", "/b"),
        ("s3://a", "/b", "/b"),
        ("a", "https://b/c", "https://b/c"),
    ],
)
def test_join(folder, name, expected):
    assert join(folder, name) == expected
