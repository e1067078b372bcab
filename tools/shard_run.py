"""One run of the sharder: writes the shards that are missing, then the report, the sidecars and, last, the manifest."""

import contextlib
import dataclasses
import errno
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import PIL

import keras_mae
from keras_mae.commandline import CommandError
from pipeline import storage
from pipeline.array_files import ArrayKind
from pipeline.locations import SourceError, SourceUnavailable, join
from pipeline.manifest import MANIFEST_NAME, Shard, ShardSet, Split, file_faults, write_manifest
from pipeline.sidecars import sidecar_files
from pipeline.sources import Source
from pipeline.writing import ShardTask, WrittenShard
from tools import unfinished
from tools.progress import Progress
from tools.shard_plan import ShardOptions, SplitPlan
from tools.shard_report import split_report, total_counts, write_report

# Runs tasks, and yields each result as it ends, in any order.
Engine = Callable[[Iterable[ShardTask]], Iterator[WrittenShard]]


@dataclasses.dataclass(frozen=True)
class ShardRun:
    """One run of the sharder that has work to do. Its caller holds the lock of the shard set.

    Attributes:
        root: of the shard set.
        recorded: everything that decides the bytes, as the manifest records it.
        stamp: of the source's listing.
        source: of the samples.
        label_map: the shard set's label for each label of the source; None: they are the same.
        arrays: what the images are, where they are arrays; None: they are pictures.
        options: what `recorded` was made from.
        skip_damaged: whether images that cannot be used are left out.
        restart: whether shards of an unfinished run are deleted, instead of going on with them.
        log: is given the lines to tell the user.
    """

    root: str
    recorded: dict[str, Any]
    stamp: str
    source: Source
    label_map: np.ndarray | None
    arrays: ArrayKind | None
    options: ShardOptions
    skip_damaged: bool
    restart: bool
    log: Callable[[str], None]

    def write(
        self, plans: Sequence[SplitPlan], existing: ShardSet | None, classes: tuple[str, ...] | None, engine: Engine
    ) -> tuple[ShardSet, list[WrittenShard]]:
        """Writes the shards that are not there yet, then report, sidecars and manifest.

        Args:
            plans: the splits to make.
            existing: the shard set so far; None: there is none.
            classes: of the shard set afterwards.
            engine: what runs the tasks.

        Returns:
            The shard set, and its shards of these plans.

        Raises:
            CommandError, SourceError, OSError: as for `tools.sharding.make_shards`.
        """
        start, written = time.monotonic(), {}
        begun = []  # splits whose files are known to be ours
        try:
            for plan in plans:
                written.update(self._resume(plan.split))
                begun.append(plan.split)
            if written:
                total = sum(len(plan.ranges) for plan in plans)
                self.log(f"going on with an unfinished run: {len(written)} of {total} shards are whole")
            before = set(written)
            self._write_rest(plans, written, engine)
            new = [shard.shard for place, shard in written.items() if place not in before]
            shard_set = self._finish(plans, written, existing, classes, _rates(new, time.monotonic() - start))
        except BaseException as error:
            with contextlib.suppress(OSError, ValueError):  # what ended the run is said, not what followed from it
                for split in begun:
                    unfinished.tidy(self.root, split)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                self._say_disk_is_full(plans, written)
            raise
        for plan in plans:
            unfinished.remove_record(self.root, plan.split)
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
            plan.task(
                number, self.source, self.root, self.label_map, self.options.images, self.skip_damaged, self.arrays
            )
            for plan, number in todo
        )
        try:
            # Closed before anything else happens, so that no worker is still writing then.
            with contextlib.closing(engine(tasks)) as results:
                for shard in results:
                    written[shard.split, shard.number] = shard
                    samples = shard.shard.samples + len(shard.skipped)
                    progress.add(samples, sizes[shard.split, shard.number], total_counts([shard]))
        except SourceUnavailable:
            raise
        except SourceError as error:
            raise SourceError(
                f"{error}. Run the same command with --on_error=skip to go on without such images, "
                "or mend this one and begin anew with --restart"
            ) from None
        finally:
            progress.close()

    def _check_arrived(self, written: Sequence[WrittenShard]) -> None:
        names = [name for shard in written for name in (shard.shard.file, shard.shard.index)]
        sizes = storage.file_sizes(self.root, names)
        for shard in written:
            for fault in file_faults(shard.shard, sizes):
                raise CommandError(
                    f"{fault.replace(MANIFEST_NAME, 'the plan')}, though it was written: the workers do not see the "
                    f"same {self.root}, or something else writes there"
                )

    def _say_disk_is_full(self, plans: Sequence[SplitPlan], written: Collection[tuple[str, int]]) -> None:
        missing = [
            plan.shard_bytes(n) for plan in plans for n in range(len(plan.ranges)) if (plan.split, n) not in written
        ]
        raise CommandError(
            f"the disk of {self.root} is full: about {max(sum(missing) / 1e6, 1):.0f} MB more are needed. "
            "Free some space and run the same command again: it goes on from there"
        ) from None

    def _finish(
        self,
        plans: Sequence[SplitPlan],
        written: dict[tuple[str, int], WrittenShard],
        existing: ShardSet | None,
        classes: tuple[str, ...] | None,
        times: dict[str, float],
    ) -> ShardSet:
        # The manifest last: while it does not list a split, the split does not exist.
        self._check_arrived(list(written.values()))
        splits, reports = dict(existing.splits) if existing is not None else {}, {}
        for plan in plans:
            shards = [written[plan.split, number] for number in range(len(plan.ranges))]
            samples = sum(shard.shard.samples for shard in shards)
            if not samples:
                unfinished.discard(self.root, plan.split)
                raise CommandError(
                    f"none of the {len(plan.positions)} images of {plan.split!r} can be used; the first one: "
                    f"{shards[0].skipped[0][1]}"
                )
            tars = tuple(shard.shard for shard in shards)
            splits[plan.split] = Split(plan.split, samples, tars, self.recorded, library_versions(), self.arrays)
            reports[plan.split] = split_report(shards, {"last_run": times})
        shard_set = ShardSet(self.root, classes, splits)
        write_report(self.root, reports)
        for name, data in sidecar_files(shard_set).items():
            storage.write_atomically(join(self.root, name), data)
        write_manifest(shard_set)
        return shard_set


def _rates(written: Sequence[Shard], seconds: float) -> dict[str, float]:
    # Of all splits together, which are written at the same time.
    images, megabytes = sum(shard.samples for shard in written), sum(shard.bytes for shard in written) / 1e6
    rates = {"images_per_second": images / seconds, "megabytes_per_second": megabytes / seconds}
    return {"seconds": round(seconds, 3), "images": images, **{name: round(rate, 1) for name, rate in rates.items()}}


def library_versions() -> dict[str, str]:
    """Versions of what decides the bytes of a shard."""
    return {"keras_mae": keras_mae.__version__, "numpy": np.__version__, "Pillow": PIL.__version__}
