"""A split that is being written: how it was begun, and which of its shards are whole.

A hidden folder `.SPLIT.unfinished` lies beside the shards from before the first one until after the manifest
lists them. It holds `plan.json`, with everything that decides the bytes, and for each shard that is whole a
record, `000000.json`, written after the shard itself. So a run that was killed, or stopped by an error, goes on
at the shards that have no record, and files without a manifest entry are known to be this software's own.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

from keras_mae.commandline import CommandError
from pipeline import storage
from pipeline.locations import Location, SourceError, join, read_location
from pipeline.manifest import MANIFEST_NAME, Shard, file_faults, read_manifest
from pipeline.writing import ShardTask, WrittenShard, write_shard

PLAN_NAME = "plan.json"
# What a different hash means.
HASHES = {
    "source_fingerprint": "the input has changed (other files, sizes or labels)",
    "source_stamp": "a file of the input was written again since",
}
_RECORD = re.compile(r"(\d{6,})\.json")


def unfinished_name(split: str) -> str:
    """Name of the hidden folder of a split that is being written."""
    return f".{split}.unfinished"


def resume(root: str, split: str, plan: dict[str, Any], *, restart: bool) -> dict[int, WrittenShard]:
    """Begins a split, or goes on with one that was begun before.

    Args:
        root: folder of the shard set; must exist.
        split: name of a split that no manifest lists.
        plan: everything that decides the bytes, as plain data.
        restart: whether to delete what an earlier run left, instead of going on with it.

    Returns:
        The shards that are whole already, by number.

    Raises:
        CommandError: the earlier run had another plan, or the folder holds tars of this name from elsewhere.
    """
    folder = join(root, unfinished_name(split))
    if restart and storage.exists(folder):
        discard(root, split)
    if not storage.exists(join(folder, PLAN_NAME)):
        # Also true for a run that was killed while it began, before it had written any shard.
        if shards := _files_of(root, split):
            raise CommandError(
                f"{join(root, shards[0])} exists, and no {MANIFEST_NAME} lists it; "
                f"move or delete {split}-*.tar and {split}-*.idx there, or choose another --output"
            )
        storage.remove_folder(folder)
        try:
            storage.make_folder(folder)
            storage.write_atomically(join(folder, PLAN_NAME), json.dumps(plan, indent=1).encode())
        except BaseException:
            storage.remove_folder(folder)
            raise
        return {}
    _check_same_plan(root, split, plan)
    records = read_records(root, split)
    _remove_files(root, split, keep=_files_in(records))
    return records


def write_and_record(task: ShardTask) -> WrittenShard:
    """Writes a shard, and then its record in the split's hidden folder; see `pipeline.writing.write_shard`."""
    written = write_shard(task)
    path = join(join(task.root, unfinished_name(task.split)), f"{task.number:06d}.json")
    storage.write_atomically(path, json.dumps(dataclasses.asdict(written)).encode(), durable=False)
    return written


def remove_record(root: str, split: str) -> None:
    """Removes the hidden folder of a split that the manifest lists now."""
    storage.remove_folder(join(root, unfinished_name(split)))


def tidy(root: str, split: str) -> None:
    """Removes what a run that ended early left half-written, and all traces of it if no shard was whole.

    Nothing is touched if the split was finished meanwhile, by another process where storage has no locks.
    """
    if not storage.exists(join(join(root, unfinished_name(split)), PLAN_NAME)) or _is_listed(root, split):
        return
    records = read_records(root, split)
    _remove_files(root, split, keep=_files_in(records))
    if not records:
        remove_record(root, split)


def discard(root: str, split: str) -> None:
    """Removes all shards of an unfinished split, and its hidden folder."""
    if not _is_listed(root, split):
        _remove_files(root, split, keep=())
        remove_record(root, split)


def _is_listed(root: str, split: str) -> bool:
    return storage.exists(join(root, MANIFEST_NAME)) and split in read_manifest(root).splits


def _check_same_plan(root: str, split: str, plan: dict[str, Any]) -> None:
    path = join(join(root, unfinished_name(split)), PLAN_NAME)
    try:
        before = json.loads(read_location(Location(path)))
        if not isinstance(before, dict):
            raise ValueError("it holds no options")
    except (SourceError, ValueError, RecursionError) as error:
        raise CommandError(f"{path} cannot be read ({error}); add --restart to begin {split!r} anew") from None
    if changes := differences(before, json.loads(json.dumps(plan))):
        raise CommandError(
            f"{root} holds an unfinished split {split!r} that was begun otherwise: {changes}. "
            "Run it again as it was begun, or add --restart to delete its shards and begin anew"
        )


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs between two records of how a split is made, in words; "" if nothing does."""
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if "source_fingerprint" in changed and "source_stamp" in changed:
        changed.remove("source_stamp")
    return "; ".join(HASHES.get(key, f"{key} was {before.get(key)!r} and is now {now.get(key)!r}") for key in changed)


def read_records(root: str, split: str) -> dict[int, WrittenShard]:
    """The whole shards of an unfinished split, by number: those with a record, and files of the right size."""
    # A record that a loss of power tore is as good as none.
    folder = join(root, unfinished_name(split))
    records = {}
    for name in storage.list_names(folder):
        if match := _RECORD.fullmatch(name):
            with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
                content = json.loads(read_location(Location(join(folder, name))))
                shard = Shard(**content.pop("shard"))
                skipped = [tuple(sample) for sample in content.pop("skipped")]
                records[int(match[1])] = WrittenShard(shard=shard, skipped=skipped, **content)
    sizes = storage.file_sizes(root, _files_in(records))
    return {number: record for number, record in records.items() if not file_faults(record.shard, sizes)}


def _files_in(records: dict[int, WrittenShard]) -> list[str]:
    return [name for record in records.values() for name in (record.shard.file, record.shard.index)]


def _files_of(root: str, split: str) -> list[str]:
    pattern = re.compile(rf"{re.escape(split)}-\d{{6,}}\.(tar|idx)")
    return [name for name in storage.list_names(root) if pattern.fullmatch(name)]


def _remove_files(root: str, split: str, keep: Sequence[str]) -> None:
    # Shards without a record, and temporary files of processes that were killed. The caller holds the lock.
    unwanted = set(_files_of(root, split)) - set(keep)
    temporary = re.compile(rf"\.({re.escape(split)}-\d{{6,}}\.(tar|idx)|.*\.json)\.\d+\.tmp")
    for name in storage.list_names(root):
        if name in unwanted or temporary.fullmatch(name):
            storage.remove(join(root, name))
    folder = join(root, unfinished_name(split))
    for name in storage.list_names(folder):
        if temporary.fullmatch(name):
            storage.remove(join(folder, name))
