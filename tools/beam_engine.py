"""`--engine=beam`: the shards of a run are written by an Apache Beam pipeline, on any runner and many machines.

What runs on a worker is the same function that runs in a local process, so the bytes are the same. Everything
passes through the storage: each task is a file in the split's hidden folder (see `unfinished`), a worker leaves the
shard and its commit record, and the command that started the pipeline reads the records in the end. The pipeline
itself holds pairs (split, number) only, because runners limit its size: Dataflow to 10 MB.

A runner repeats what fails. Where that would be in vain, because an image cannot be used or the disk is full, the
worker leaves a file that says so instead of raising, the other workers begin no further shard, and the command ends
with the sentence that it would have ended with on one machine.
"""

import argparse
import dataclasses
import errno
import functools
import json
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from keras_mae.commandline import CommandError
from pipeline import storage
from pipeline.array_files import ArrayKind
from pipeline.image_files import ImageOptions
from pipeline.locations import Location, SourceError, is_url, join, read_location
from pipeline.sources import Item
from pipeline.writing import ShardTask, WrittenShard
from tools import unfinished
from tools.shard_run import Engine, library_versions

# A worker writes this file into the hidden folder of the first split when the run cannot succeed.
FAILURE_NAME = "failure.json"
# What a worker reports there, by name.
_FAILURES = {kind.__name__: kind for kind in (SourceError, CommandError, OSError)}
# Runners start one process a core and many threads in it. Pillow's limits and Python's warnings, which `image_files`
# sets for a moment, belong to the process.
_ONE_SHARD_AT_A_TIME = threading.Lock()


def beam_engine(root: str | os.PathLike, pipeline_arguments: Sequence[str]) -> Engine:
    """An engine for `tools.sharding.make_shards` that runs its tasks with Apache Beam.

    Args:
        root: folder of the shard set, or its URL; every worker must see the same one.
        pipeline_arguments: Beam's own options, such as "--runner=FlinkRunner".

    Raises:
        CommandError: Beam is not installed, or would not accept the options.
    """
    _check_arguments(pipeline_arguments)
    return functools.partial(_run, _absolute(os.fspath(root)), pipeline_arguments)


def task_to_json(task: ShardTask) -> bytes:
    """A task as a JSON file; names may hold bytes that are not text, JSON escapes those."""
    content = {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}
    content["items"] = [
        {
            "name": item.name,
            "label": item.label,
            "image": item.image,
            "members": item.members,
            "columns": None if item.columns is None else dict(item.columns),
        }
        for item in task.items
    ]
    content["image_options"] = dataclasses.asdict(task.image_options)
    return json.dumps(content).encode()


def task_from_json(data: bytes) -> ShardTask:
    """The task that `task_to_json` wrote."""
    content = json.loads(data)
    items = [
        Item(
            item["name"],
            item["label"],
            Location(*item["image"]),
            tuple((extension, Location(*location)) for extension, location in item["members"]),
            item["columns"],
        )
        for item in content["items"]
    ]
    arrays = content["arrays"] and ArrayKind(*content["arrays"])
    image_options = ImageOptions(**content["image_options"])
    return ShardTask(**{**content, "items": items, "image_options": image_options, "arrays": arrays})


def write_shard_of(place: tuple[str, int], root: str, failure: str, versions: dict[str, str]) -> None:
    """Writes one shard, on a worker.

    Args:
        place: split and number of the shard; its task lies in the split's hidden folder.
        root: folder of the shard set, or its URL.
        failure: the file that tells all workers that the run cannot succeed.
        versions: of the libraries that decide the bytes, where the command runs.

    Raises:
        RuntimeError: this worker does not see the task.
        OSError: the shard cannot be written at this moment.
    """
    path = _task_path(root, *place)
    with _ONE_SHARD_AT_A_TIME:
        if storage.exists(failure):
            return
        try:
            task = task_from_json(read_location(Location(path)))
        except SourceError as error:
            raise RuntimeError(
                f"a Beam worker cannot read its task ({error}); every worker must see --output under the same name: "
                "a URL, or a folder that all machines share"
            ) from None
        try:
            _check_versions(versions)
            _check_images_are_seen(task)
            unfinished.write_and_record(task)
        except SourceError as error:
            _report(failure, SourceError, str(error))
        except CommandError as error:
            _report(failure, CommandError, str(error))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            _report(failure, OSError, error.errno, error.strerror)


def _check_versions(expected: dict[str, str]) -> None:
    for name, version in library_versions().items():
        if version != expected.get(name):
            raise CommandError(
                f"a Beam worker has {name} {version}, and the machine of the command {expected.get(name)}, so that "
                "shards could differ; expected the same versions everywhere: install them on the workers"
            )


def _check_images_are_seen(task: ShardTask) -> None:
    # Otherwise a worker without the images would skip them all under --on_error=skip.
    files = [item.image.file for item in task.items]
    if not any(is_url(file) or os.path.exists(file) for file in files):
        raise CommandError(
            f"a Beam worker sees none of the {len(files)} images of its shard, such as {files[0]}; every worker must "
            "see --input under the same name: URLs, or a folder that all machines share"
        )


def _report(failure: str, kind: type[Exception], *arguments: Any) -> None:
    content = {"kind": kind.__name__, "arguments": arguments}
    storage.write_atomically(failure, json.dumps(content).encode())


def _run(root: str, pipeline_arguments: Sequence[str], tasks: Iterable[ShardTask]) -> Iterator[WrittenShard]:
    # The engine: see `beam_engine`.
    places = []
    for task in tasks:
        storage.write_atomically(_task_path(root, task.split, task.number), task_to_json(_for_workers(task, root)))
        places.append((task.split, task.number))
    if not places:
        return
    failure = join(join(root, unfinished.unfinished_name(places[0][0])), FAILURE_NAME)
    storage.remove(failure)  # of a run that was killed before it read it
    try:
        _run_pipeline(pipeline_arguments, places, root, failure)
    except Exception:
        _raise_reported(failure)
        raise
    _raise_reported(failure)
    yield from _written(root, places)


def _for_workers(task: ShardTask, root: str) -> ShardTask:
    # Workers have other working directories.
    items = [
        dataclasses.replace(
            item,
            image=item.image._replace(file=_absolute(item.image.file)),
            members=tuple((name, location._replace(file=_absolute(location.file))) for name, location in item.members),
        )
        for item in task.items
    ]
    return dataclasses.replace(task, root=root, items=items)


def _absolute(file: str) -> str:
    return file if is_url(file) else os.path.abspath(file)


def _task_path(root: str, split: str, number: int) -> str:
    return join(join(root, unfinished.unfinished_name(split)), f"task-{number:06d}.json")


def _raise_reported(failure: str) -> None:
    # Listed, and not looked up: that is never answered from what was known before the workers ran.
    folder, _, name = failure.rpartition("/")
    if name in storage.list_names(folder):
        content = json.loads(read_location(Location(failure)))
        storage.remove(failure)
        raise _FAILURES[content["kind"]](*content["arguments"])


def _written(root: str, places: Sequence[tuple[str, int]]) -> Iterator[WrittenShard]:
    records = {split: unfinished.read_records(root, split) for split in {split for split, _ in places}}
    missing = [(split, number) for split, number in places if number not in records[split]]
    if missing:
        split, number = missing[0]
        raise CommandError(
            f"the Beam pipeline ended, but {len(missing)} of {len(places)} shards are not in {root}, the first is "
            f"number {number} of {split!r}: it was cancelled, or workers see another folder under that name. Run the "
            "same command again: it goes on with what is there"
        )
    for split, number in places:
        yield records[split][number]


def _run_pipeline(
    pipeline_arguments: Sequence[str], places: Sequence[tuple[str, int]], root: str, failure: str
) -> None:
    import apache_beam as beam

    pipeline = beam.Pipeline(options=_pipeline_options(pipeline_arguments))
    (
        pipeline
        | "Shards" >> beam.Create(places)
        | "Spread" >> beam.Reshuffle()
        | "Write" >> beam.Map(write_shard_of, root, failure, library_versions())
    )
    result = pipeline.run()
    try:
        result.wait_until_finish()
    except KeyboardInterrupt:
        # A cluster would go on without this command.
        result.cancel()
        raise


def _pipeline_options(pipeline_arguments: Sequence[str]):
    from apache_beam.options.pipeline_options import PipelineOptions

    # Workers import `write_shard_of`; they need nothing of the running script.
    return PipelineOptions(list(pipeline_arguments), save_main_session=False)


def _check_arguments(pipeline_arguments: Sequence[str]) -> None:
    # What Beam would ignore with a warning, or say after the images were listed, or end the process for.
    try:
        from apache_beam.options.pipeline_options import StandardOptions
        from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator
        from apache_beam.runners import create_runner
        from apache_beam.runners.portability.portable_runner import PortableRunner
    except ImportError:
        raise CommandError('--engine=beam needs Apache Beam: pip install "keras-mae[beam]"') from None
    options = _pipeline_options(pipeline_arguments)
    unknown = _unknown_words(options, pipeline_arguments)
    try:
        runner = create_runner(options.view_as(StandardOptions).runner or StandardOptions.DEFAULT_RUNNER)
        faults = PipelineOptionsValidator(options, runner).validate()
    except (AttributeError, ImportError, ValueError) as error:
        raise CommandError(f"Apache Beam does not accept --runner: {error}") from None
    if isinstance(runner, PortableRunner):
        # The job servers of Flink and Spark know further options; Beam asks them, and warns of unknown ones.
        unknown = [word for word in unknown if not word.startswith("--")]
    if unknown:
        raise CommandError(
            f"Apache Beam has no option {unknown[0]!r}; expected --name=value after --, with names from the "
            "pages of its runner"
        )
    if faults:
        raise CommandError(f"Apache Beam does not accept its options: {' '.join(faults)}")


def _unknown_words(options, pipeline_arguments: Sequence[str]) -> list[str]:
    # The words that no options class of Beam knows.
    unknown = []

    def collect(parser: argparse.ArgumentParser) -> None:
        parser.exit_on_error = False
        unknown.extend(parser.parse_known_args(list(pipeline_arguments))[1])

    try:
        options.get_all_options(add_extra_args_fn=collect, retain_unknown_options=True)
    except argparse.ArgumentError as error:
        raise CommandError(f"Apache Beam does not accept its options: {error}") from None
    return unknown
