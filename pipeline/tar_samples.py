"""Which files of a tar are one sample: those that follow each other and have a common key, as in WebDataset."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pipeline.locations import SourceError
from pipeline.shard_index import ARRAY_EXTENSION, PICTURE_EXTENSIONS, split_name
from pipeline.tar_members import TarMember


class TarSample(NamedTuple):
    """Files of a tar that belong together: their key, and for each its extension in lower case and its place."""

    key: str
    members: tuple[tuple[str, TarMember], ...]


def split_key(name: str) -> tuple[str, str] | None:
    """The key of the sample that a file of a tar belongs to, and its extension in lower case.

    None where it belongs to none: it has no extension, or its name starts with "." or "__".
    """
    if name.rpartition("/")[2].startswith((".", "__")):
        return None
    key, extension = split_name(name)
    return (key, extension.lower()) if extension else None


def samples_of(members: Iterable[TarMember], ignored: list[str] | None = None) -> Iterator[TarSample]:
    """Groups files of a tar that follow each other and have one key.

    Args:
        members: of one tar, in order.
        ignored: the names of files that belong to no sample are appended to it.

    Yields:
        Samples, in order; extensions are not checked.
    """
    key, found = None, []
    for member in members:
        split = split_key(member.name)
        if split is None:
            if ignored is not None:
                ignored.append(member.name)
            continue
        if found and split[0] != key:
            yield TarSample(key, tuple(found))
            found = []
        key = split[0]
        found.append((split[1], member))
    if found:
        yield TarSample(key, tuple(found))


def image_extension(extensions: Iterable[str], place: str) -> str | None:
    """Which of a sample's extensions is its image: "png" before "left.png", both before "npy"; None where none is.

    Args:
        extensions: of all files of the sample, in lower case.
        place: subject of a sentence on the sample.

    Raises:
        SourceError: there are several, equally good.
    """
    extensions = set(extensions)
    return _image_of(extensions, PICTURE_EXTENSIONS, place) or _image_of(extensions, (ARRAY_EXTENSION,), place)


def _image_of(extensions: set[str], kinds: tuple[str, ...], place: str) -> str | None:
    for kind in kinds:
        if kind in extensions:
            return kind
    for kind in kinds:
        found = sorted(extension for extension in extensions if extension.endswith(f".{kind}"))
        if len(found) > 1:
            raise SourceError(
                f"{place} has several images, {' and '.join(found)}: keys end at the first dot of a name. "
                f"Expected one called {kind!r}, or names without further dots"
            )
        if found:
            return found[0]
    return None
