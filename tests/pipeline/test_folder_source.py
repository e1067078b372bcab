"""What a folder of images is read as, and what is refused."""

import os

import pytest

from pipeline.locations import read_location
from pipeline.sources import FolderSource, SourceError


def make_files(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())
    return FolderSource(root)


def samples_of(source):
    """(name, label) of every sample of a source, in its order."""
    return [(item.name, item.label) for item in source.items(range(len(source.scan())))]


def test_class_folders_give_sorted_classes_and_labels(tmp_path):
    source = make_files(tmp_path, "dog/b.png", "cat/sub/z.JPEG", "cat/a.jpg")
    assert source.scan().classes == ("cat", "dog")
    assert source.scan().labels.tolist() == [0, 0, 1]
    assert samples_of(source) == [("cat/a.jpg", 0), ("cat/sub/z.JPEG", 0), ("dog/b.png", 1)]


def test_files_are_listed_in_the_order_of_their_whole_paths(tmp_path):
    paths = ["a/x.jpg", "a-b/x.jpg", "a/sub/y.jpg", "a/sub-b/y.jpg", "a/sub.jpg", "é/x.jpg", "b.c/x.jpg", "b/x.jpg"]
    source = make_files(tmp_path, *paths)
    assert [name for name, _ in samples_of(source)] == sorted(paths)
    assert source.scan().classes == ("a", "a-b", "b", "b.c", "é")
    assert all(source.scan().classes[label] == name.split("/")[0] for name, label in samples_of(source))


def test_a_flat_folder_has_no_classes(tmp_path):
    source = make_files(tmp_path, "b.webp", "a.JPG")
    assert source.scan().classes is None and source.scan().labels is None
    assert samples_of(source) == [("a.JPG", None), ("b.webp", None)]


def test_other_files_are_listed_as_ignored_and_hidden_ones_skipped(tmp_path):
    source = make_files(tmp_path, "cat/a.jpg", "cat/.b.jpg", ".c/d.jpg", "cat/a.txt", "notes.md")
    assert samples_of(source) == [("cat/a.jpg", 0)]
    assert source.scan().ignored == ("cat/a.txt", "notes.md")


def test_items_say_where_the_bytes_are(tmp_path):
    source = make_files(tmp_path, "cat/a.jpg", "cat/b.jpg")
    source.scan()
    assert [read_location(item.image) for item in source.items([1, 0])] == [b"cat/b.jpg", b"cat/a.jpg"]


def test_a_name_that_is_no_valid_text_is_kept(tmp_path):
    (tmp_path / "cat").mkdir()
    path = os.fsencode(tmp_path / "cat") + b"/\xff.jpg"
    with open(path, "wb") as file:
        file.write(b"data")
    source = FolderSource(tmp_path)
    source.scan()
    assert read_location(source.items([0])[0].image) == b"data"
    assert source.items([0])[0].json_member() == b'{"source": "cat/\\udcff.jpg"}'


def test_the_fingerprint_follows_names_and_sizes(tmp_path):
    source = make_files(tmp_path, "a.jpg", "b.jpg")
    before = source.scan().fingerprint
    assert source.scan().fingerprint == before
    (tmp_path / "a.jpg").write_bytes(b"longer than before")
    resized = source.scan().fingerprint
    (tmp_path / "b.jpg").rename(tmp_path / "c.jpg")
    assert len({before, resized, source.scan().fingerprint}) == 3


def test_only_the_stamp_follows_the_time_of_change(tmp_path):
    source = make_files(tmp_path, "a.jpg")
    before = source.scan()
    os.utime(tmp_path / "a.jpg", ns=(1, 1))
    assert source.scan().fingerprint == before.fingerprint
    assert source.scan().stamp != before.stamp


def test_what_is_no_file_is_ignored_whatever_its_name(tmp_path):
    source = make_files(tmp_path, "cat/a.jpg")
    os.mkfifo(tmp_path / "cat" / "b.jpg")
    assert samples_of(source) == [("cat/a.jpg", 0)]
    assert source.scan().ignored == ("cat/b.jpg",)


def test_links_to_folders_are_followed(tmp_path):
    make_files(tmp_path, "elsewhere/a.jpg")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "cat").symlink_to(tmp_path / "elsewhere")
    assert samples_of(FolderSource(tmp_path / "images")) == [("cat/a.jpg", 0)]


def test_a_loop_of_links_is_refused(tmp_path):
    source = make_files(tmp_path, "cat/a.jpg")
    (tmp_path / "cat" / "again").symlink_to(tmp_path)
    with pytest.raises(SourceError, match="again is a link to a folder that contains it"):
        source.scan()


def test_a_broken_link_is_named(tmp_path):
    source = make_files(tmp_path, "cat/a.jpg")
    (tmp_path / "cat" / "b.jpg").symlink_to(tmp_path / "nowhere")
    with pytest.raises(SourceError, match="b.jpg cannot be read"):
        source.scan()


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(SourceError, match="nowhere does not exist"):
        FolderSource(tmp_path / "nowhere").scan()


def test_a_web_address_is_refused_because_servers_do_not_list_folders():
    with pytest.raises(SourceError, match="http://host/images: web servers do not list folders; .* --source=list"):
        FolderSource("http://host/images").scan()


def test_a_file_is_not_a_folder(tmp_path):
    make_files(tmp_path, "a.jpg")
    with pytest.raises(SourceError, match="a.jpg is not a folder"):
        FolderSource(tmp_path / "a.jpg").scan()


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(SourceError, match="has no images.*received 1 other files"):
        make_files(tmp_path, "cat/notes.txt").scan()


def test_images_beside_class_folders_are_refused_by_name(tmp_path):
    with pytest.raises(SourceError, match="'stray.png' lies beside 'cat'"):
        make_files(tmp_path, "cat/a.jpg", "stray.png").scan()


def test_a_class_folder_without_images_is_refused(tmp_path):
    with pytest.raises(SourceError, match="a class folder without images: 'dog'"):
        make_files(tmp_path, "cat/a.jpg", "dog/notes.txt").scan()


@pytest.mark.parametrize("data", [b"x", b"longer than before"])
def test_a_file_that_changed_since_the_scan_is_named(tmp_path, data):
    source = make_files(tmp_path, "a.jpg")
    source.scan()
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(SourceError, match="a.jpg has changed: expected 5 bytes"):
        read_location(source.items([0])[0].image)
