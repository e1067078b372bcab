"""The work of `tools.make_shards`: a source becomes one split of a shard set, or two.

Scan the source, plan its shards, write those that are not there yet, then the report, the sidecars and, last, the
manifest. `unfinished` remembers what was written, `output_lock` keeps a second run out.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from keras_mae.commandline import CommandError
from pipeline import storage
from pipeline.locations import is_url, join
from pipeline.manifest import MANIFEST_NAME, ShardSet, load_manifest
from pipeline.sources import Listing, Source
from pipeline.writing import ShardTask, WrittenShard
from tools import unfinished, worker_pool
from tools.array_inputs import find_arrays
from tools.foreign_files import refuse_foreign_files
from tools.output_lock import locked
from tools.progress import announced
from tools.shard_plan import ShardOptions, plan_splits
from tools.shard_report import REPORT_NAME, total_counts
from tools.shard_run import Engine, ShardRun


def make_shards(
    source: Source,
    output: str | os.PathLike,
    options: ShardOptions | None = None,
    *,
    workers: int | None = None,
    on_error: str = "fail",
    restart: bool = False,
    engine: Engine | None = None,
    listing: Listing | None = None,
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
        listing: what `source.scan()` returned, if it was called before.
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
    listing = scan(source) if listing is None else listing
    _check_tars_lie_elsewhere(source, root)
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
        arrays = find_arrays(source, len(listing), existing, options.images)
        refuse_foreign_files(root, options.splits)
        engine = engine or _local_engine(workers)
        run = ShardRun(
            root, recorded, listing.stamp, source, label_map, arrays, options, on_error == "skip", restart, log
        )
        shard_set, written = run.write(plan_splits(listing, options), existing, classes, engine)
    log(_summary(shard_set, options.splits, written))
    return shard_set


def scan(source: Source) -> Listing:
    """What a source holds; says so if it takes long."""
    with announced("listing the samples ..."):
        return source.scan()


def _check_output(source: Source, root: str) -> None:
    if root.startswith(("http://", "https://")):
        raise CommandError(f"--output={root} is on a web server, which cannot be written; choose a folder or a store")
    if is_url(root):
        return
    images = getattr(source, "root", None)
    if images is not None and not is_url(images) and Path(root).resolve().is_relative_to(Path(images).resolve()):
        raise CommandError(
            f"--output={root} lies in --input={images}, shards would lie among images; choose another folder"
        )
    if os.path.exists(root) and not os.path.isdir(root):
        raise CommandError(f"--output={root} is a file; expected a folder, or a name that is free")


def _check_tars_lie_elsewhere(source: Source, root: str) -> None:
    # Otherwise the next run would find its own shards among those that it reads.
    tar = source.items([0])[0].image.file
    if tar.endswith(".tar") and not is_url(tar) and Path(tar).parent.resolve() == Path(root).resolve():
        raise CommandError(
            f"--output={root} is the folder of the tars that are read; choose another one, "
            "or add --in_place to index them where they are"
        )


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
        CommandError: the source has classes that the shard set does not know, or one class twice, or only one of
            them has any.
    """
    if listing.classes is not None and len(set(listing.classes)) < len(listing.classes):
        twice = next(name for name in listing.classes if listing.classes.count(name) > 1)
        raise CommandError(f"--input has two classes called {twice!r}; expected each name once")
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


def _summary(shard_set: ShardSet, names: Sequence[str], written: Sequence[WrittenShard]) -> str:
    splits = [shard_set.splits[name] for name in names]
    shards = [shard for split in splits for shard in split.shards]
    samples = " + ".join(f"{split.samples} samples ({split.name})" for split in splits)
    size = sum(shard.bytes for shard in shards) / 1e6
    num_shards = _number_of(len(shards), "shard", "shards")
    arrays = f", arrays, {splits[0].arrays}" if splits[0].arrays else ""
    line = f"wrote {samples}{arrays}, {_counted(shard_set.classes)}, {num_shards}, {size:.1f} MB, to {shard_set.root}"
    noted = ", ".join(f"{count} {note}" for note, count in total_counts(written).items() if count)
    return f"{line}\n{noted} (see {join(shard_set.root, REPORT_NAME)})" if noted else line
