"""The work of `tools.make_shards`: a source becomes one split of a shard set, or two.

Scan the source, plan its shards, write those that are not there yet, then the report, the sidecars and, last, the
manifest. `unfinished` remembers what was written, `output_lock` keeps a second run out.
"""

import contextlib
import dataclasses
import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL

import keras_mae
from keras_mae.commandline import CommandError
from pipeline import storage
from pipeline.locations import SourceError, is_url, join
from pipeline.manifest import (
    MANIFEST_NAME,
    ShardSet,
    Split,
    load_manifest,
    write_manifest,
)
from pipeline.sidecars import sidecar_files
from pipeline.sources import Listing, Source
from pipeline.writing import ShardTask, WrittenShard
from tools import unfinished, worker_pool
from tools.output_lock import locked
from tools.progress import Progress, announced
from tools.shard_plan import ShardOptions, SplitPlan, plan_splits
from tools.shard_report import REPORT_NAME, split_report, total_counts, write_report

# Runs tasks, and yields each result as it ends, in any order.
Engine = Callable[[Iterable[ShardTask]], Iterator[WrittenShard]]


def make_shards(
    source: Source,
    output: str | os.PathLike,
    options: ShardOptions | None = None,
    *,
    workers: int | None = None,
    on_error: str = "fail",
    restart: bool = False,
    engine: Engine | None = None,
    log: Callable[[str], None] = print,
) -> ShardSet:
    """Writes the samples of a source as one split of a shard set, or as two.

    With more than one worker, a script that calls this needs `if __name__ == "__main__":` around its work,
    because the workers import it.

    Args:
        source: where the images are, for example `FolderSource("images")`.
        output: folder of the shard set, or its URL; made if it is missing, added to if it holds other splits.
        options: all that decides the bytes; None: the defaults.
        workers: processes that write; None: one for each core. Never changes the bytes.
        on_error: "fail": an image that cannot be used ends the run; "skip": it is left out and listed in
            `report.json`.
        restart: whether shards of an unfinished run are deleted, instead of going on with them.
        engine: what runs the tasks instead of `workers`; see `tools.beam_engine`.
        log: is given the lines to tell the user.

    Returns:
        The shard set as it is afterwards.

    Raises:
        CommandError: an option is out of range, or does not fit what `output` holds already.
        SourceError: the source has no images, is ambiguous, or holds a file that is not an image.
        ManifestError: `output` holds a damaged shard set.
        OSError: `output` cannot be written.
    """
    options = ShardOptions() if options is None else options
    workers = worker_pool.checked_workers(workers)
    if on_error not in ("fail", "skip"):
        raise CommandError(f"--on_error must be fail or skip, received {on_error!r}")
    root = os.fspath(output)
    _check_output(source, root)
    with announced("listing the samples ..."):
        listing = source.scan()
    if listing.ignored:
        what = _number_of(len(listing.ignored), "file that is not an image", "files that are not images")
        log(f"ignored {what} by name: {_shown(listing.ignored)}")
    with _open_output(root, log):
        recorded = {"source": source.name, "source_fingerprint": listing.fingerprint, **options.as_dict()}
        existing = load_manifest(root) if storage.exists(join(root, MANIFEST_NAME)) else None
        if existing is not None and _is_finished(existing, options.splits, recorded):
            for split in options.splits:
                unfinished.remove_record(root, split)
            log(f"{root} has {' and '.join(options.splits)} of these images and options already: nothing to do")
            return existing
        classes, label_map = known_classes(listing, existing)
        engine = engine or _local_engine(workers)
        run = _Run(root, recorded, listing.stamp, source, label_map, options, on_error == "skip", restart, log)
        shard_set, written = run.write(plan_splits(listing, options), existing, classes, engine)
    log(_summary(shard_set, options.splits, written))
    return shard_set


def _check_output(source: Source, root: str) -> None:
    if is_url(root):
        return
    images = getattr(source, "root", None)
    if images is not None and not is_url(images) and Path(root).resolve().is_relative_to(Path(images).resolve()):
        raise CommandError(
            f"--output={root} lies in --input={images}, shards would lie among images; choose another folder"
        )
    if os.path.exists(root) and not os.path.isdir(root):
        raise CommandError(f"--output={root} is a file; expected a folder, or a name that is free")


@contextlib.contextmanager
def _open_output(root: str, log: Callable[[str], None]) -> Iterator[None]:
    # Makes the folder and holds its lock; removes it at the end if it was made here and nothing is in it.
    is_new = not storage.exists(root)
    with contextlib.ExitStack() as stack:
        try:
            storage.make_folder(root)
            if is_new and not is_url(root):
                stack.callback(_remove_if_empty, root)
            stack.enter_context(locked(root, log))
        except OSError as error:
            raise CommandError(f"--output={root} cannot be written: {error.strerror}; choose another folder") from None
        yield


def _remove_if_empty(folder: str) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(folder)


def _is_finished(existing: ShardSet, names: Sequence[str], recorded: dict) -> bool:
    # True: all splits are there, made the same way. False: none of them is. Anything else is an error.
    found = [name for name in names if name in existing.splits]
    for name in found:
        if differences := unfinished.differences(existing.splits[name].options, recorded):
            raise CommandError(
                f"{existing.root} has a split {name!r} already, made otherwise: {differences}. "
                "Choose another --split, or another --output"
            )
    if found and len(found) < len(names):
        missing = next(name for name in names if name not in found)
        raise CommandError(
            f"{existing.root} has {found[0]!r} but not {missing!r} of that run: {MANIFEST_NAME} was edited. "
            "Make both again in another --output"
        )
    return bool(found)


def known_classes(listing: Listing, existing: ShardSet | None) -> tuple[tuple[str, ...] | None, np.ndarray | None]:
    """The classes of a shard set, and its label for each label of a source: further splits follow the first.

    Args:
        listing: of the source.
        existing: the shard set so far; None: there is none.

    Returns:
        The classes, and int64 (classes of the source,), or None where the labels are the same.

    Raises:
        CommandError: the source has classes that the shard set does not know, or only one of them has any.
    """
    if existing is None or not existing.splits or existing.classes == listing.classes:
        return listing.classes, None
    if existing.classes is None or listing.classes is None:
        raise CommandError(
            f"the splits of {existing.root} have {_counted(existing.classes)}, and --input has "
            f"{_counted(listing.classes)}; labelled and unlabelled images need shard sets of their own: "
            "choose another --output"
        )
    unknown = sorted(set(listing.classes) - set(existing.classes))
    if unknown:
        missing = sorted(set(existing.classes) - set(listing.classes))
        raise CommandError(
            f"--input has classes that {existing.root} does not know: {_shown(unknown)} "
            f"(of those it knows, --input lacks: {_shown(missing)}). Expected a subset of its "
            f"{len(existing.classes)} classes; rename the folders, or choose another --output"
        )
    label_of = {name: label for label, name in enumerate(existing.classes)}
    return existing.classes, np.array([label_of[name] for name in listing.classes], np.int64)


def _counted(classes: Sequence[str] | None) -> str:
    return "no classes" if classes is None else _number_of(len(classes), "class", "classes")


def _number_of(count: int, singular: str, plural: str) -> str:
    return f"{count} {singular if count == 1 else plural}"


def _shown(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(map(repr, names[:limit])) + (", ..." if len(names) > limit else "") or "none"


def _local_engine(workers: int) -> Engine:
    def run(tasks: Iterable[ShardTask]) -> Iterator[WrittenShard]:
        return worker_pool.run_tasks(unfinished.write_and_record, tasks, workers)

    return run


@dataclasses.dataclass(frozen=True)
class _Run:
    # One run of the sharder that has work to do; the lock of `root` is held.
    root: str
    recorded: dict[str, Any]
    stamp: str
    source: Source
    label_map: np.ndarray | None
    options: ShardOptions
    skip_damaged: bool
    restart: bool
    log: Callable[[str], None]

    def write(
        self, plans: Sequence[SplitPlan], existing: ShardSet | None, classes: tuple[str, ...] | None, engine: Engine
    ) -> tuple[ShardSet, list[WrittenShard]]:
        # Returns the shard set, and the shards of these plans, in order.
        start, written = time.monotonic(), {}
        begun = []  # splits whose files are known to be ours
        try:
            for plan in plans:
                written.update(self._resume(plan.split))
                begun.append(plan.split)
            if written:
                total = sum(len(plan.ranges) for plan in plans)
                self.log(f"going on with an unfinished run: {len(written)} of {total} shards are whole")
            self._write_rest(plans, written, engine)
        except BaseException:
            with contextlib.suppress(OSError):
                for split in begun:
                    unfinished.forget_if_empty(self.root, split)
            raise
        times = {"seconds_of_last_run": round(time.monotonic() - start, 3)}
        splits, reports = dict(existing.splits) if existing is not None else {}, {}
        for plan in plans:
            shards = [written[plan.split, number] for number in range(len(plan.ranges))]
            samples = sum(shard.shard.samples for shard in shards)
            if not samples:
                raise CommandError(
                    f"none of the {len(plan.positions)} images of {plan.split!r} can be used; the first one: "
                    f"{shards[0].skipped[0][1]}"
                )
            tars = tuple(shard.shard for shard in shards)
            splits[plan.split] = Split(plan.split, samples, tars, self.recorded, library_versions())
            reports[plan.split] = split_report(shards, times)
        shard_set = ShardSet(self.root, classes, splits)
        self._finish(shard_set, reports)
        return shard_set, list(written.values())

    def _resume(self, split: str) -> dict[tuple[str, int], WrittenShard]:
        # The shards of an earlier run that are whole, by split and number.
        begun_with = {**self.recorded, "source_stamp": self.stamp, **library_versions()}
        records = unfinished.resume(self.root, split, begun_with, restart=self.restart)
        return {(split, number): record for number, record in records.items()}

    def _write_rest(
        self, plans: Sequence[SplitPlan], written: dict[tuple[str, int], WrittenShard], engine: Engine
    ) -> None:
        todo = [(plan, n) for plan in plans for n in range(len(plan.ranges)) if (plan.split, n) not in written]
        sizes = {(plan.split, number): plan.shard_bytes(number) for plan, number in todo}
        progress = Progress(sum(len(plan.ranges[number]) for plan, number in todo), sum(sizes.values()))
        tasks = (
            plan.task(number, self.source, self.root, self.label_map, self.options.images, self.skip_damaged)
            for plan, number in todo
        )
        try:
            # Closed before anything else happens, so that no worker is still writing then.
            with contextlib.closing(engine(tasks)) as results:
                for shard in results:
                    written[shard.split, shard.number] = shard
                    samples = shard.shard.samples + len(shard.skipped)
                    progress.add(samples, sizes[shard.split, shard.number], total_counts([shard]))
        except SourceError as error:
            raise SourceError(
                f"{error}. Run the same command with --on_error=skip to go on without such images, "
                "or mend this one and begin anew with --restart"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise CommandError(
                f"the disk of {self.root} is full: about {(progress.num_bytes - progress.done_bytes) / 1e6:.0f} MB "
                f"more are needed, {len(written)} shards are whole. Free some space and run the same command again: "
                "it goes on from there"
            ) from None
        finally:
            progress.close()

    def _finish(self, shard_set: ShardSet, reports: dict[str, dict[str, Any]]) -> None:
        # The manifest last: while it does not list a split, the split does not exist.
        write_report(self.root, reports)
        for name, data in sidecar_files(shard_set).items():
            storage.write_atomically(join(self.root, name), data)
        write_manifest(shard_set)
        for split in self.options.splits:
            unfinished.remove_record(self.root, split)


def library_versions() -> dict[str, str]:
    """Versions of what decides the bytes of a shard."""
    return {"keras_mae": keras_mae.__version__, "numpy": np.__version__, "Pillow": PIL.__version__}


def _summary(shard_set: ShardSet, names: Sequence[str], written: Sequence[WrittenShard]) -> str:
    splits = [shard_set.splits[name] for name in names]
    shards = [shard for split in splits for shard in split.shards]
    samples = " + ".join(f"{split.samples} samples ({split.name})" for split in splits)
    size = sum(shard.bytes for shard in shards) / 1e6
    num_shards = _number_of(len(shards), "shard", "shards")
    line = f"wrote {samples}, {_counted(shard_set.classes)}, {num_shards}, {size:.1f} MB, to {shard_set.root}"
    noted = ", ".join(f"{count} {note}" for note, count in total_counts(written).items() if count)
    return f"{line}\n{noted} (listed in {join(shard_set.root, REPORT_NAME)})" if noted else line
