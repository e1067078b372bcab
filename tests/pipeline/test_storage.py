"""Folders on a disk, in fsspec's memory, and behind a web server: the same functions, the same answers."""

import contextlib
import errno
import http.server
import os
import socket

import pytest

from pipeline import locations, storage
from pipeline.locations import Location, SourceError, SourceUnavailable, file_status, join, open_file, read_location

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
    with pytest.raises(SourceError, match="has changed: expected 5 bytes at 8, read 2"):
        read_location(Location(join(folder, "a"), 8, 5))


def test_a_web_server_is_read(server, tmp_path):
    (tmp_path / "web" / "a").write_bytes(b"0123456789")
    assert read_location(Location(f"{server}/a")) == b"0123456789"
    assert storage.file_sizes(server, ["a", "b"]) == {"a": 10}


def test_a_page_that_is_not_there_is_one_sentence(server):
    with pytest.raises(SourceError, match="/nowhere does not exist"):
        read_location(Location(f"{server}/nowhere"))


def test_an_unknown_kind_of_url_is_one_sentence():
    with pytest.raises(SourceError, match="gopher://host/a cannot be opened: expected a plain URL of .* https://"):
        read_location(Location("gopher://host/a"))


@pytest.mark.parametrize("protocol", ["file", "local"])
def test_a_local_file_is_given_by_its_path(tmp_path, protocol):
    (tmp_path / "a").write_bytes(b"secret")
    for act in (lambda url: read_location(Location(url)), file_status, open_file):
        with pytest.raises(SourceError, match=f"/a is a local file; give its path itself, without {protocol}://"):
            act(f"{protocol}://{tmp_path}/a")


@pytest.mark.parametrize(
    "url",
    [
        "simplecache::file://{}/a",
        "simplecache::memory://a",
        "memory://x::file://{}/a",
        "filecache://::{}/a",
        "dir://{}::file://",
        "reference://{}/a",
        "FILE://{}/a",
        "data://text/plain,a",
    ],
)
def test_urls_that_lead_elsewhere_are_refused(tmp_path, url):
    (tmp_path / "a").write_bytes(b"secret")
    with pytest.raises(SourceError, match="cannot be opened: expected a plain URL"):
        read_location(Location(url.format(tmp_path)))


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.EACCES, SourceError),
        (errno.EISDIR, SourceError),
        (errno.EIO, SourceUnavailable),
        (errno.ESTALE, SourceUnavailable),
        (errno.EMFILE, SourceUnavailable),
        (errno.ETIMEDOUT, SourceUnavailable),
    ],
)
def test_faults_of_a_disk_are_told_from_those_of_a_file(tmp_path, monkeypatch, code, kind):
    def fail(*arguments):
        raise OSError(code, os.strerror(code))

    (tmp_path / "a").write_bytes(b"0123")
    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(SourceError, match=f"a cannot be read.*: {os.strerror(code)}") as caught:
        read_location(Location(str(tmp_path / "a")))
    assert caught.type is kind


@pytest.mark.parametrize(
    ("status", "kind", "requests"),
    [
        (404, SourceError, 1),
        (403, SourceError, 1),
        (410, SourceError, 1),
        (429, SourceUnavailable, 3),
        (503, SourceUnavailable, 3),
    ],
)
def test_faults_of_a_server_are_told_from_those_of_a_page(monkeypatch, web_server, tmp_path, status, kind, requests):
    monkeypatch.setattr(locations, "PAUSES", (0, 0))
    served = []

    def answer(handler):
        served.append(handler.path)
        handler.send_error(status)

    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "do_GET", answer)
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "do_HEAD", answer)
    url = f"{web_server(tmp_path)}/a"
    with pytest.raises(SourceError) as caught:
        read_location(Location(url))
    assert (caught.type, len(served)) == (kind, requests)
    for act in (file_status, open_file):
        with pytest.raises(SourceError) as caught:
            act(url)
        assert caught.type is kind


def test_a_server_that_does_not_answer_is_not_a_missing_file(monkeypatch):
    monkeypatch.setattr(locations, "PAUSES", (0, 0))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and nobody listens
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/a"
        for act in (lambda path: read_location(Location(path)), file_status, open_file):
            with pytest.raises(SourceUnavailable, match="/a cannot be read at this moment: .*run the same command"):
                act(url)


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
