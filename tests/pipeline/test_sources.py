"""What a folder of images is read as, and what is refused."""

import pickle

import pytest

from pipeline.sources import FolderSource, Item, SourceError


def make_files(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())
    return FolderSource(root)


def test_class_folders_give_sorted_classes_and_labels(tmp_path):
    listing = make_files(tmp_path, "dog/b.png", "cat/sub/z.JPEG", "cat/a.jpg").scan()
    assert listing.classes == ("cat", "dog")
    assert listing.items == (Item("cat/a.jpg", 9, 0), Item("cat/sub/z.JPEG", 14, 0), Item("dog/b.png", 9, 1))


def test_a_flat_folder_has_no_classes(tmp_path):
    listing = make_files(tmp_path, "b.webp", "a.JPG").scan()
    assert listing.classes is None
    assert listing.items == (Item("a.JPG", 5, None), Item("b.webp", 6, None))


def test_other_files_are_listed_as_ignored_and_hidden_ones_skipped(tmp_path):
    listing = make_files(tmp_path, "cat/a.jpg", "cat/.b.jpg", ".c/d.jpg", "cat/a.txt", "notes.md").scan()
    assert [item.path for item in listing.items] == ["cat/a.jpg"]
    assert listing.ignored == ("cat/a.txt", "notes.md")


def test_read_gives_the_bytes_of_the_file(tmp_path):
    source = make_files(tmp_path, "cat/a.jpg")
    assert source.read(source.scan().items[0]) == b"cat/a.jpg"


def test_a_source_can_be_sent_to_another_process(tmp_path):
    source = pickle.loads(pickle.dumps(make_files(tmp_path, "cat/a.jpg")))
    assert len(source.scan().items) == 1


def test_the_fingerprint_follows_names_and_sizes(tmp_path):
    source = make_files(tmp_path, "a.jpg", "b.jpg")
    before = source.scan().fingerprint()
    assert source.scan().fingerprint() == before
    (tmp_path / "a.jpg").write_bytes(b"longer than before")
    resized = source.scan().fingerprint()
    (tmp_path / "b.jpg").rename(tmp_path / "c.jpg")
    assert len({before, resized, source.scan().fingerprint()}) == 3


def test_links_to_folders_are_followed(tmp_path):
    make_files(tmp_path, "elsewhere/a.jpg")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "cat").symlink_to(tmp_path / "elsewhere")
    assert [item.path for item in FolderSource(tmp_path / "images").scan().items] == ["cat/a.jpg"]


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


def test_a_file_that_changed_since_the_scan_is_named(tmp_path):
    source = make_files(tmp_path, "a.jpg")
    item = source.scan().items[0]
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(SourceError, match="a.jpg changed while shards were made: it had 5 bytes, and now has 1"):
        source.read(item)
