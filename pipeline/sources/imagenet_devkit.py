"""The labels of ImageNet's validation images, from the development kit of ILSVRC2012.

Its data/ILSVRC2012_validation_ground_truth.txt has a line for each image, in order: the number of its class. The
array `synsets` in data/meta.mat says which WordNet id a number stands for; classes are its leaves, numbers 1 to
1000, and further entries are groups of classes. This module imports no TensorFlow, and scipy only for meta.mat.
"""

import io
import os
import tarfile
import zlib

import numpy as np

from pipeline.locations import Location, SourceError, is_url, join, named_errors, open_file, read_location, suffix_of

TRUTH_FILE = "data/ILSVRC2012_validation_ground_truth.txt"
META_FILE = "data/meta.mat"
_EXPECTED = "expected ILSVRC2012_devkit_t12.tar.gz, or the folder that it unpacks to"
_ARCHIVE_SUFFIXES = (".gz", ".tgz", ".tar")


def validation_labels(devkit: str) -> tuple[tuple[str, ...], list[int]]:
    """The classes of ImageNet and the labels of its validation images.

    Args:
        devkit: path or URL of the devkit's archive, or of the folder that it unpacks to.

    Returns:
        The WordNet ids of the classes, sorted, and for each validation image in order its place among them.

    Raises:
        SourceError: the devkit cannot be read, or lacks something; or scipy is not installed.
    """
    truth, meta = _read_files(devkit)
    wnid_of = _read_classes(meta, devkit)
    classes = tuple(sorted(wnid_of.values()))
    label_of = {str(number): classes.index(wnid) for number, wnid in wnid_of.items()}
    labels = []
    for line, text in enumerate(truth.decode(errors="replace").rstrip().split("\n"), 1):
        if text.strip() not in label_of:
            raise SourceError(
                f"{TRUTH_FILE} of {devkit}, line {line} is {text.strip()!r}; "
                f"expected the number of a class, of which {META_FILE} has {len(classes)}"
            )
        labels.append(label_of[text.strip()])
    return classes, labels


def _read_files(devkit: str) -> list[bytes]:
    is_folder = suffix_of(devkit) not in _ARCHIVE_SUFFIXES if is_url(devkit) else os.path.isdir(devkit)
    if not is_folder:
        contents = _read_archive(devkit)
        for name in (TRUTH_FILE, META_FILE):
            if name not in contents:
                raise SourceError(f"{devkit} holds no {name}; {_EXPECTED}")
        return [contents[TRUTH_FILE], contents[META_FILE]]
    try:
        return [read_location(Location(join(devkit, name))) for name in (TRUTH_FILE, META_FILE)]
    except SourceError as error:
        raise SourceError(f"{error}; {_EXPECTED}") from None


def _read_archive(devkit: str) -> dict[str, bytes]:
    # The two files by their names; they lie in a folder that may have any name.
    contents = {}
    with open_file(devkit) as file, named_errors(devkit):
        try:
            with tarfile.open(fileobj=file, mode="r:*") as archive:
                for member in archive:
                    for name in (TRUTH_FILE, META_FILE):
                        if member.isreg() and f"/{member.name}".endswith(f"/{name}"):
                            contents[name] = archive.extractfile(member).read()
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise SourceError(f"{devkit} is no tar, or cut or damaged ({error}); {_EXPECTED}") from None
    return contents


def _read_classes(meta: bytes, devkit: str) -> dict[int, str]:
    # The WordNet id of each class, by the devkit's number.
    try:
        from scipy.io import loadmat
    except ImportError:
        raise SourceError(
            f"Reading {META_FILE} of {devkit} needs the package scipy: pip install scipy (extra `imagenet`)"
        ) from None
    try:
        synsets = np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"])
        leaves = [(int(row["ILSVRC2012_ID"]), str(row["WNID"])) for row in synsets if int(row["num_children"]) == 0]
    except Exception as error:  # scipy raises many kinds on damaged files
        raise SourceError(
            f"{META_FILE} of {devkit} cannot be read ({type(error).__name__}: {error}); {_EXPECTED}"
        ) from None
    wnid_of = dict(leaves)
    if not leaves or len(wnid_of) != len(leaves) or len(set(wnid_of.values())) != len(leaves):
        raise SourceError(f"{META_FILE} of {devkit} has no classes, or one of them twice; {_EXPECTED}")
    return wnid_of
