"""The tars that a folder, a pattern or an expression with braces stands for, on a disk or behind URLs."""

import glob
import os
from collections.abc import Sequence

import braceexpand

from pipeline import storage
from pipeline.locations import SourceError, is_url, join, named_errors, open_filesystem, suffix_of


def find_tars(input: str) -> tuple[list[str], list[str]]:
    """The tars that an input stands for, and the names of other files that lie beside them or match too.

    Args:
        input: as in `WebDatasetSource`.

    Returns:
        Paths or URLs, sorted, and names, sorted.

    Raises:
        SourceError: there are none.
    """
    with named_errors(input):
        if _is_folder(input):
            found = [join(input, name) for name in storage.list_names(input) if not name.startswith(".")]
        elif not ("{" in input or _is_pattern(input)) or _is_local_file(input):
            return [input], []
        else:
            found = [file for pattern in _expand_braces(input) for file in _expand_pattern(pattern)]
    tars = sorted({file for file in found if suffix_of(file) == ".tar"})
    others = sorted({os.path.basename(file) for file in found} - {os.path.basename(file) for file in tars})
    if not tars:
        raise SourceError(f"{input} has no files ending in .tar; received {len(others)} other files")
    return tars, others


def tar_names(files: Sequence[str]) -> list[str]:
    """What tars are called: their paths in the folder that holds them all, without a URL's query."""
    paths = [file.split("?", 1)[0] if is_url(file) else file for file in files]
    start = os.path.commonprefix([path.rpartition("/")[0] + "/" for path in paths]).rpartition("/")[0]
    return [path[len(start) :].lstrip("/") for path in paths]


def _is_folder(path: str) -> bool:
    # Web servers do not tell folders from files.
    looks_like_file = is_url(path) and (suffix_of(path) == ".tar" or "*" in path or "{" in path)
    return not looks_like_file and storage.is_folder(path)


def _is_local_file(path: str) -> bool:
    return not is_url(path) and os.path.exists(path)


def _is_pattern(path: str) -> bool:
    # In URLs "?" begins a query.
    return any(sign in path for sign in ("*" if is_url(path) else "*?["))


def _expand_braces(text: str) -> list[str]:
    try:
        return list(braceexpand.braceexpand(text))
    except ValueError as error:
        raise SourceError(
            f"{text} cannot be read as several names: {error}; expected such as x-{{00..12}}.tar"
        ) from None


def _expand_pattern(pattern: str) -> list[str]:
    if not _is_pattern(pattern):
        return [pattern]
    if is_url(pattern):
        system, path = open_filesystem(pattern)
        found = [system.unstrip_protocol(match) for match in system.glob(path)]
    else:
        found = glob.glob(pattern, recursive=True)
    if not found:
        raise SourceError(f"{pattern} matches no files; expected the path of at least one tar")
    return found
