"""What the archives of ImageNet are read as, and what is refused."""

import hashlib
import io
import pickle
import sys
import tarfile

import pytest
from fixtures.imagenet_archives import make_imagenet_archives, meta_bytes, tar_bytes

from pipeline.locations import SourceError, read_location
from pipeline.sources.base import sample_tar_bytes
from pipeline.sources.imagenet import ImageNetTrainSource, ImageNetValSource

pytest.importorskip("scipy")
TRUTH = "ILSVRC2012_validation_ground_truth.txt"


@pytest.fixture
def archives(tmp_path):
    return make_imagenet_archives(tmp_path)


def read_all(source):
    """{name: (label, contents)} of every sample, in the order of the listing."""
    items = source.items(range(len(source.scan())))
    return {item.name: (item.label, read_location(item.image)) for item in items}


def train_source(folder, files):
    (folder / "train.tar").write_bytes(tar_bytes(files))
    return ImageNetTrainSource(folder / "train.tar")


def refuse(source, match):
    with pytest.raises(SourceError, match=match):
        source.scan()


def test_training_images_come_sorted_with_labels_in_the_order_of_wordnet_ids(archives):
    source = ImageNetTrainSource(archives.train_tar)
    listing = source.scan()
    assert listing.classes == archives.classes == ("n01440764", "n02119789", "n03938244")
    assert list(read_all(source).items()) == list(archives.train.items())
    assert listing.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert listing.ignored == ()


def test_validation_images_come_sorted_with_the_devkits_labels(archives):
    source = ImageNetValSource(archives.val_tar, archives.devkit)
    listing = source.scan()
    assert listing.classes == archives.classes
    assert list(read_all(source).items()) == list(archives.val.items())
    assert listing.labels.tolist() == [label for label, _ in archives.val.values()]
    assert len(set(listing.labels.tolist())) > 1


def test_eight_classes_keep_their_labels(tmp_path):
    archives = make_imagenet_archives(tmp_path, images_per_class=1, num_classes=8, num_val=40)
    assert read_all(ImageNetTrainSource(archives.train_tar)) == archives.train
    assert read_all(ImageNetValSource(archives.val_tar, archives.devkit)) == archives.val
    assert {label for label, _ in archives.val.values()} == set(range(8))


def test_the_devkit_may_be_unpacked(archives):
    packed = ImageNetValSource(archives.val_tar, archives.devkit).scan()
    unpacked = ImageNetValSource(archives.val_tar, archives.devkit_folder).scan()
    assert packed.fingerprint == unpacked.fingerprint


def test_archives_may_lie_behind_urls(archives):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for path in (archives.train_tar, archives.val_tar, archives.devkit):
        memory.pipe_file(f"/imagenet/{path.name}", path.read_bytes())
    url = "memory://imagenet/{}".format
    train = ImageNetTrainSource(url(archives.train_tar.name))
    val = ImageNetValSource(url(archives.val_tar.name), url(archives.devkit.name))
    assert read_all(train) == archives.train
    assert read_all(val) == archives.val


def test_the_order_of_the_archive_changes_nothing(tmp_path, archives):
    with tarfile.open(archives.train_tar) as tar:
        files = {f"./{name}": tar.extractfile(name).read() for name in sorted(tar.getnames())}
    assert [name.removeprefix("./") for name in files] != tarfile.open(archives.train_tar).getnames()
    expected = ImageNetTrainSource(archives.train_tar).scan()
    listing = train_source(tmp_path, files).scan()
    assert listing.fingerprint == expected.fingerprint
    assert listing.stamp != expected.stamp


def test_special_images_are_put_in_place(tmp_path):
    special = {"n01440764_3.JPEG": b"not an image", "ILSVRC2012_val_00000002.JPEG": b""}
    archives = make_imagenet_archives(tmp_path, special=special)
    train = read_all(ImageNetTrainSource(archives.train_tar))
    val = read_all(ImageNetValSource(archives.val_tar, archives.devkit))
    assert train["n01440764/n01440764_3.JPEG"] == (0, b"not an image")
    assert val["ILSVRC2012_val_00000002.JPEG"][1] == b""


def test_sizes_in_a_tar_are_known(archives):
    listing = ImageNetTrainSource(archives.train_tar).scan()
    json_sizes = [len(f'{{"source": "{name}"}}') for name in archives.train]
    images = [len(data) for _, data in archives.train.values()]
    expected = [sample_tar_bytes(image, text, True) for image, text in zip(images, json_sizes, strict=True)]
    assert listing.tar_bytes.tolist() == expected


def test_a_scanned_source_can_be_sent_to_another_process(archives):
    source = ImageNetTrainSource(archives.train_tar)
    source.scan()
    items = pickle.loads(pickle.dumps(source)).items([5, 0])
    assert [item.name for item in items] == [list(archives.train)[5], list(archives.train)[0]]


def test_another_size_of_an_image_changes_the_fingerprint(tmp_path):
    before = train_source(tmp_path, {"n01440764.tar": tar_bytes({"n01440764_1.JPEG": b"x"})}).scan()
    after = train_source(tmp_path, {"n01440764.tar": tar_bytes({"n01440764_1.JPEG": b"xy"})}).scan()
    assert before.fingerprint != after.fingerprint


def test_notes_and_hidden_files_are_listed_as_ignored(tmp_path):
    inner = tar_bytes({"README": b"r", "n01440764_1.jpeg": b"x", "._n01440764_1.JPEG": b"m"})
    listing = train_source(tmp_path, {"readme.txt": b"r", ".DS_Store": b"d", "n01440764.tar": inner}).scan()
    assert len(listing) == 1
    assert listing.ignored == (".DS_Store", "n01440764.tar/._n01440764_1.JPEG", "n01440764.tar/README", "readme.txt")


@pytest.mark.parametrize("name", ["dogs.tar", "n1.tar", "n01440764.tar.gz", "cat.jpg"])
def test_other_archives_and_images_beside_the_classes_are_refused(tmp_path, name):
    source = train_source(tmp_path, {"n01440764.tar": tar_bytes({"n01440764_1.JPEG": b"x"}), name: b"x"})
    refuse(source, f"train.tar holds '{name}'; expected a tar for each class")


@pytest.mark.parametrize("name", ["n01443537_1.JPEG", "cat.JPEG", "n01440764_1.png"])
def test_images_of_other_names_in_a_class_are_refused(tmp_path, name):
    refuse(
        train_source(tmp_path, {"n01440764.tar": tar_bytes({name: b"x"})}),
        f"n01440764.tar in .*train.tar holds '{name}'; expected images of this class",
    )


def test_a_class_that_comes_twice_is_refused(tmp_path):
    inner = tar_bytes({"n01440764_1.JPEG": b"x"})
    source = train_source(tmp_path, {"a/n01440764.tar": inner, "b/n01440764.tar": inner})
    refuse(source, "holds the class n01440764 twice")


def test_an_image_that_comes_twice_is_refused(tmp_path):
    inner = tar_bytes({"a/n01440764_1.JPEG": b"x", "n01440764_2.JPEG": b"y", "b/n01440764_1.JPEG": b"z"})
    refuse(train_source(tmp_path, {"n01440764.tar": inner}), "'n01440764_1.JPEG' twice")


def test_a_class_without_images_is_refused(tmp_path):
    refuse(train_source(tmp_path, {"n01440764.tar": tar_bytes({})}), "n01440764.tar in .* holds no images")


def test_an_archive_without_classes_is_refused(tmp_path):
    refuse(train_source(tmp_path, {"notes.txt": b"x"}), "train.tar holds no classes")


def test_the_validation_archive_is_not_taken_for_the_training_archive(archives):
    refuse(ImageNetTrainSource(archives.val_tar), "is an archive of validation images")


def test_the_training_archive_is_not_taken_for_the_validation_archive(archives):
    refuse(ImageNetValSource(archives.train_tar, archives.devkit), "is an archive of training images")


def test_a_file_that_is_no_tar_is_refused(tmp_path, archives):
    (tmp_path / "x.tar").write_bytes(b"no tar at all")
    refuse(ImageNetTrainSource(tmp_path / "x.tar"), "x.tar is no tar")
    refuse(ImageNetValSource(tmp_path / "x.tar", archives.devkit), "x.tar is no tar")


def test_a_compressed_archive_is_told_from_a_damaged_one(archives):
    for source in (ImageNetTrainSource(archives.devkit), ImageNetValSource(archives.devkit, archives.devkit)):
        refuse(source, "t12.tar.gz is compressed with gzip, .* unpack it first: gunzip$")


def test_missing_archives_are_named(tmp_path, archives):
    refuse(ImageNetTrainSource(tmp_path / "no.tar"), "no.tar does not exist")
    refuse(ImageNetValSource(tmp_path / "no.tar", archives.devkit), "no.tar does not exist")
    refuse(ImageNetValSource(archives.val_tar, tmp_path / "no.tar.gz"), "no.tar.gz does not exist")
    refuse(ImageNetTrainSource(tmp_path), "cannot be read: Is a directory")


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_cut_archive_is_refused_with_its_hash(archives, share):
    for path, md5 in ((archives.train_tar, "1d675b47"), (archives.val_tar, "29b22e29")):
        data = path.read_bytes()
        path.write_bytes(data[: int(share * len(data.rstrip(b"\0")))])
        source = ImageNetTrainSource(path) if "train" in path.name else ImageNetValSource(path, archives.devkit)
        refuse(source, f"{path.name} is cut .*{md5}")


def test_a_cut_tar_of_a_class_is_named(tmp_path):
    inner = tar_bytes({"n01440764_1.JPEG": bytes(1000), "n01440764_2.JPEG": bytes(1000)})
    source = train_source(tmp_path, {"n01440764.tar": inner[:2048]})
    refuse(source, "n01440764.tar in .*train.tar is cut")


def test_an_incomplete_validation_archive_is_refused_with_numbers(tmp_path):
    archives = make_imagenet_archives(tmp_path, special={"ILSVRC2012_val_00000003.JPEG": None})
    source = ImageNetValSource(archives.val_tar, archives.devkit)
    refuse(source, "holds 4 images, but .* has 5 lines; the first one missing is ILSVRC2012_val_00000003.JPEG")


def test_an_image_without_a_label_is_refused(archives):
    path = archives.devkit_folder / "data" / TRUTH
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    source = ImageNetValSource(archives.val_tar, archives.devkit_folder)
    refuse(source, "holds 'ILSVRC2012_val_00000005.JPEG', but .* has 4 lines; expected the images 1 to 4")


def test_a_validation_image_that_comes_twice_is_refused(archives):
    name = "ILSVRC2012_val_00000001.JPEG"
    archives.val_tar.write_bytes(tar_bytes({f"a/{name}": b"x", f"b/{name}": b"y"}))
    refuse(ImageNetValSource(archives.val_tar, archives.devkit), f"holds '{name}' twice")


def test_test_images_are_no_validation_images(archives):
    archives.val_tar.write_bytes(tar_bytes({"ILSVRC2012_test_00000001.JPEG": b"x"}))
    refuse(ImageNetValSource(archives.val_tar, archives.devkit), "expected validation images")


@pytest.mark.parametrize("line", ["4", "0", "n01440764", ""])
def test_a_line_that_is_no_class_is_named(archives, line):
    # 4 is a group of classes, not a class.
    path = archives.devkit_folder / "data" / TRUTH
    path.write_text(f"1\n{line}\n2\n3\n1\n")
    source = ImageNetValSource(archives.val_tar, archives.devkit_folder)
    refuse(source, f"line 2 is '{line}'; expected the number of a class, of which data/meta.mat has 3")


@pytest.mark.parametrize("name", [TRUTH, "meta.mat"])
def test_a_devkit_without_its_files_is_refused(tmp_path, archives, name):
    (archives.devkit_folder / "data" / name).unlink()
    refuse(ImageNetValSource(archives.val_tar, archives.devkit_folder), f"{name} does not exist; expected ILSVRC2012_d")
    with tarfile.open(tmp_path / "kit.tar.gz", "w:gz") as tar:
        tar.add(archives.devkit_folder, "kit")
    refuse(ImageNetValSource(archives.val_tar, tmp_path / "kit.tar.gz"), f"holds no data/{name}")


def test_a_damaged_devkit_is_refused(archives):
    data = archives.devkit.read_bytes()
    archives.devkit.write_bytes(data[: len(data) // 2])
    refuse(ImageNetValSource(archives.val_tar, archives.devkit), "cut or damaged")
    archives.devkit.write_bytes(b"nothing")
    refuse(ImageNetValSource(archives.val_tar, archives.devkit), "cut or damaged")


@pytest.mark.parametrize("meta", [b"", b"nothing that scipy knows", meta_bytes(("n01440764",))[:300]])
def test_a_damaged_meta_file_is_refused(archives, meta):
    (archives.devkit_folder / "data" / "meta.mat").write_bytes(meta)
    refuse(ImageNetValSource(archives.val_tar, archives.devkit_folder), "data/meta.mat of .* cannot be read")


def test_a_meta_file_of_something_else_is_refused(archives):
    from scipy.io import savemat

    buffer = io.BytesIO()
    savemat(buffer, {"synsets": [1, 2]})
    (archives.devkit_folder / "data" / "meta.mat").write_bytes(buffer.getvalue())
    refuse(ImageNetValSource(archives.val_tar, archives.devkit_folder), "data/meta.mat of .* cannot be read")


def test_a_class_that_the_devkit_numbers_twice_is_refused(archives):
    (archives.devkit_folder / "data" / "meta.mat").write_bytes(meta_bytes(("n01440764", "n01440764")))
    refuse(ImageNetValSource(archives.val_tar, archives.devkit_folder), "one of them twice")


def test_a_missing_scipy_is_named(archives, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    refuse(ImageNetValSource(archives.val_tar, archives.devkit), "pip install scipy")


def test_the_fixtures_bytes_do_not_depend_on_when_it_is_made(tmp_path):
    hashes = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        archives = make_imagenet_archives(tmp_path / name)
        hashes.append(hashlib.sha256(archives.train_tar.read_bytes() + archives.val_tar.read_bytes()).hexdigest())
    assert hashes[0] == hashes[1]
