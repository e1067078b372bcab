"""Files that a shard set would replace, and that no run of this software wrote: they are refused, never replaced.

A run that was killed before it wrote its manifest leaves sidecars and a report, so these are known by what is in
them.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from keras_mae.commandline import CommandError
from pipeline import storage
from pipeline.locations import Location, join, open_file, read_location
from pipeline.manifest import MANIFEST_NAME, index_name
from pipeline.sidecars import TIMM_NAME, wids_name
from tools.shard_report import REPORT_NAME

_INDEX_BEGIN = b"v1."  # of DALI's format in all its versions
_WIDS_KIND = "wids-shard-index-v1"


def refuse_foreign_files(root: str, split_names: Sequence[str]) -> None:
    """Makes sure that the files beside the tars may be written.

    Args:
        root: folder of the shard set, or its URL.
        split_names: the splits that will be written.

    Raises:
        CommandError: a sidecar of a folder without a manifest, or the report, is of another kind.
        SourceError: one of them cannot be read.
    """
    refuse_foreign_sidecars(root, split_names)
    _refuse_unless(_has_splits, root, REPORT_NAME)


def refuse_foreign_sidecars(root: str, split_names: Sequence[str]) -> None:
    """`refuse_foreign_files` without the report, for work that writes none."""
    if storage.exists(join(root, MANIFEST_NAME)):
        return
    _refuse_unless(_has_splits, root, TIMM_NAME)
    for split in split_names:
        _refuse_unless(_is_wids_index, root, wids_name(split))


def refuse_foreign_indexes(root: str, tar_names: Sequence[str]) -> None:
    """Makes sure that the indexes of some tars may be written.

    Args:
        root: folder of the tars, or its URL.
        tar_names: their names in it.

    Raises:
        CommandError: a file with the name of an index is none, neither of this software nor of DALI.
        SourceError: one of them cannot be read.
    """
    present = set(storage.list_names(root))
    for tar_name in tar_names:
        name = index_name(tar_name)
        if name not in present:
            continue
        with open_file(join(root, name)) as file:
            begin = file.read(len(_INDEX_BEGIN))
        if begin != _INDEX_BEGIN:
            raise CommandError(
                f"{join(root, name)} exists and is no index of {tar_name}; move it away, or choose another folder"
            )


def _refuse_unless(is_ours: Callable[[Any], bool], root: str, name: str) -> None:
    path = join(root, name)
    if not storage.exists(path):
        return
    data = read_location(Location(path))
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        content = None
    if not is_ours(content):
        raise CommandError(f"{path} exists and is not of a shard set; move it away, or choose another folder")


def _has_splits(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("splits"), dict)


def _is_wids_index(content: Any) -> bool:
    return isinstance(content, dict) and content.get("__kind__") == _WIDS_KIND
