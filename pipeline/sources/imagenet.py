"""ImageNet (ILSVRC2012) as it is downloaded: its archives are read where they are, never unpacked.

    ILSVRC2012_img_train.tar         1000 tars, one for each class, with 1,281,167 images
        n01440764.tar                    n01440764_10026.JPEG, ...
    ILSVRC2012_img_val.tar           50,000 images: ILSVRC2012_val_00000001.JPEG, ...
    ILSVRC2012_devkit_t12.tar.gz     the labels of the validation images, as numbers of its own

A label is a class's place among the WordNet ids (n01440764, ...) in sorted order, as everywhere else. The devkit
numbers classes differently; its data/meta.mat says which number is which WordNet id. Some images are a PNG, or
are stored as CMYK; they are listed like all others. This module imports no TensorFlow.
"""

import array
import os
import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np

from pipeline.locations import FileStatus, Location, SourceError, file_status, named_errors, open_file
from pipeline.sources.base import Fingerprint, Item, Listing, PackedNames, json_member, sample_tar_bytes
from pipeline.sources.imagenet_devkit import TRUTH_FILE, validation_labels
from pipeline.tar_members import TarCompressed, TarDamage, TarMember, tar_members

TRAIN_MD5 = "1d675b47d978889d74fa0da5fadfb00e"
VAL_MD5 = "29b22e2961454d5413ddabcf34fc5622"
_CLASS_TAR = re.compile(r"(n\d{8})\.tar")
_TRAIN_IMAGE = re.compile(r"(n\d{8})_.+\.(?i:jpeg)")
_VAL_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.(?i:jpeg)")
# Files that may hold images: to leave one out would lose them without a word.
_IMAGES_OR_ARCHIVES = (".jpeg", ".jpg", ".png", ".webp", ".tar", ".gz", ".tgz", ".zip")


class ImageNetTrainSource:
    """The training images of ILSVRC2012, from the tar of tars.

    Images are listed by name, such as "n01440764/n01440764_10026.JPEG", whatever their order in the archive.

    Args:
        train_tar: path or URL of ILSVRC2012_img_train.tar, or of an archive made alike of fewer classes.
    """

    name = "imagenet"

    def __init__(self, train_tar: str | os.PathLike):
        self.train_tar = os.fspath(train_tar)

    def scan(self) -> Listing:
        """Lists the images by reading all headers; see `Source.scan`."""
        status, ignored = file_status(self.train_tar), []
        self._images = _Images(self.train_tar)
        with open_file(self.train_tar) as file, named_errors(self.train_tar):
            class_tars = self._find_class_tars(file, status.size, ignored)
            classes = tuple(sorted(class_tars))
            for label, wnid in enumerate(classes):
                for name, member in self._find_images(file, wnid, class_tars[wnid], ignored):
                    self._images.add(f"{wnid}/{name}", label, class_tars[wnid].offset + member.offset, member.size)
        return self._images.listing(classes, status, ignored)

    def items(self, positions: Sequence[int]) -> list[Item]:
        """The images at some positions; see `Source.items`."""
        return [self._images.item(position) for position in positions]

    def _find_class_tars(self, file: BinaryIO, size: int, ignored: list[str]) -> dict[str, TarMember]:
        class_tars = {}
        for member in _members(file, size, 0, self.train_tar, TRAIN_MD5):
            match = _CLASS_TAR.fullmatch(_base(member))
            if match is None:
                if _VAL_IMAGE.fullmatch(_base(member)):
                    raise SourceError(
                        f"{self.train_tar} is an archive of validation images: it holds {member.name!r}. "
                        "Expected ILSVRC2012_img_train.tar, with a tar for each class"
                    )
                _ignore(member, self.train_tar, "a tar for each class, such as 'n01440764.tar'", ignored)
            elif match[1] in class_tars:
                raise SourceError(f"{self.train_tar} holds the class {match[1]} twice; expected one tar for each class")
            else:
                class_tars[match[1]] = member
        if not class_tars:
            raise SourceError(
                f"{self.train_tar} holds no classes; expected ILSVRC2012_img_train.tar, with a tar for each class"
            )
        return class_tars

    def _find_images(
        self, file: BinaryIO, wnid: str, class_tar: TarMember, ignored: list[str]
    ) -> list[tuple[str, TarMember]]:
        # Names and places of a class's images, sorted.
        images, place = [], f"{wnid}.tar in {self.train_tar}"
        for member in _members(file, class_tar.size, class_tar.offset, place, TRAIN_MD5):
            match = _TRAIN_IMAGE.fullmatch(_base(member))
            if match and match[1] == wnid:
                images.append((_base(member), member))
            else:
                _ignore(member, place, f"images of this class, such as '{wnid}_1.JPEG'", ignored, f"{wnid}.tar/")
        if not images:
            raise SourceError(f"{place} holds no images; expected files such as '{wnid}_1.JPEG'")
        images.sort()
        for (name, _), (following, _) in zip(images, images[1:], strict=False):
            if name == following:
                raise SourceError(f"{place} holds {name!r} twice; expected each image once")
        return images


class ImageNetValSource:
    """The validation images of ILSVRC2012, with labels from the devkit, listed by name.

    Args:
        val_tar: path or URL of ILSVRC2012_img_val.tar.
        devkit: path or URL of ILSVRC2012_devkit_t12.tar.gz, or of the folder that it unpacks to.
    """

    name = "imagenet"

    def __init__(self, val_tar: str | os.PathLike, devkit: str | os.PathLike):
        self.val_tar, self.devkit = os.fspath(val_tar), os.fspath(devkit)

    def scan(self) -> Listing:
        """Lists the images by reading all headers; see `Source.scan`."""
        classes, labels = validation_labels(self.devkit)
        status, ignored = file_status(self.val_tar), []
        with open_file(self.val_tar) as file, named_errors(self.val_tar):
            images = self._find_images(file, status.size, ignored)
        self._check_numbers(images, len(labels))
        self._images = _Images(self.val_tar)
        for number, member in sorted(images.items()):
            self._images.add(_base(member), labels[number - 1], member.offset, member.size)
        return self._images.listing(classes, status, ignored)

    def items(self, positions: Sequence[int]) -> list[Item]:
        """The images at some positions; see `Source.items`."""
        return [self._images.item(position) for position in positions]

    def _find_images(self, file: BinaryIO, size: int, ignored: list[str]) -> dict[int, TarMember]:
        images = {}
        for member in _members(file, size, 0, self.val_tar, VAL_MD5):
            match = _VAL_IMAGE.fullmatch(_base(member))
            if match is None:
                if _CLASS_TAR.fullmatch(_base(member)):
                    raise SourceError(
                        f"{self.val_tar} is an archive of training images: it holds {member.name!r}. "
                        "Expected ILSVRC2012_img_val.tar, with the validation images themselves"
                    )
                _ignore(member, self.val_tar, "validation images, such as 'ILSVRC2012_val_00000001.JPEG'", ignored)
            elif int(match[1]) in images:
                raise SourceError(f"{self.val_tar} holds {_base(member)!r} twice; expected each image once")
            else:
                images[int(match[1])] = member
        return images

    def _check_numbers(self, images: dict[int, TarMember], num_lines: int) -> None:
        truth = f"{TRUTH_FILE} of {self.devkit} has {num_lines} lines"
        if beyond := sorted(number for number in images if not 1 <= number <= num_lines):
            raise SourceError(
                f"{self.val_tar} holds {_base(images[beyond[0]])!r}, but {truth}; "
                f"expected the images 1 to {num_lines}. Give the archive and the devkit of one data set"
            )
        if len(images) != num_lines:
            missing = next(number for number in range(1, num_lines + 1) if number not in images)
            raise SourceError(
                f"{self.val_tar} holds {len(images)} images, but {truth}; the first one missing is "
                f"ILSVRC2012_val_{missing:08d}.JPEG. Copy or download the archive again (md5 {VAL_MD5})"
            )


class _Images:
    # Where images lie in an archive, in columns: about 60 bytes each, of which the name takes 40.

    def __init__(self, archive: str):
        self.archive = archive
        self.names, self.labels = PackedNames(), array.array("i")
        self.offsets, self.sizes = array.array("q"), array.array("q")

    def add(self, name: str, label: int, offset: int, size: int) -> None:
        self.names.append(name)
        self.labels.append(label)
        self.offsets.append(offset)
        self.sizes.append(size)

    def item(self, position: int) -> Item:
        location = Location(self.archive, self.offsets[position], self.sizes[position])
        return Item(self.names[position], self.labels[position], location)

    def listing(self, classes: tuple[str, ...], status: FileStatus, ignored: list[str]) -> Listing:
        fingerprint = Fingerprint()
        fingerprint.add(modified=status.modified)
        tar_bytes = np.zeros(len(self.sizes), np.int64)
        for position, (name, size, label) in enumerate(zip(self.names, self.sizes, self.labels, strict=True)):
            fingerprint.add(name, size, label)
            tar_bytes[position] = sample_tar_bytes(size, len(json_member(name)), labelled=True)
        return Listing(
            tar_bytes,
            np.array(self.labels, np.int32),
            classes,
            fingerprint.contents(),
            fingerprint.stamp(),
            tuple(sorted(ignored)),
        )


def _members(file: BinaryIO, size: int, offset: int, place: str, md5: str) -> Iterator[TarMember]:
    # `tar_members`, with damage told as a sentence on `place`.
    try:
        yield from tar_members(file, size, offset=offset)
    except TarCompressed as error:
        raise SourceError(f"{place} {error}") from None
    except TarDamage as error:
        raise SourceError(
            f"{place} {error}. Copy or download the archive again (the whole one's md5 is {md5})"
        ) from None


def _base(member: TarMember) -> str:
    return member.name.rpartition("/")[2]


def _ignore(member: TarMember, place: str, expected: str, ignored: list[str], prefix: str = "") -> None:
    # Notes a file that is no image; one that could hold images is refused.
    base = _base(member)
    if base.lower().endswith(_IMAGES_OR_ARCHIVES) and not base.startswith("."):
        raise SourceError(f"{place} holds {member.name!r}; expected {expected}")
    ignored.append(prefix + member.name)
