"""Ways to copy photographs into tars and to decode them, each in a process of its own, for `tools.benchmark_shards`.

"command" is the time of a whole process, from before its start to after its end; "call" and "loop" are the work
alone, timed inside a process that has started and imported everything.
"""

import collections
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from keras_mae.commandline import CommandError
from pipeline.shard_index import IMAGE_EXTENSIONS
from pipeline.tar_members import tar_members
from tools.benchmark_inputs import Photographs
from tools.benchmark_processes import timed
from tools.benchmark_rounds import Contestant


def copy_contestants(photos: Photographs, workers: int) -> list[Contestant]:
    """The sharder, tar and webdataset's ShardWriter; `workers` is for the sharder, the others have one process."""

    def tar(output: Path) -> float:
        return timed(_tar_words(photos, output))[0]

    def tar_fsync(output: Path) -> float:
        start = time.perf_counter()
        timed(_tar_words(photos, output))
        file = os.open(output / "photos.tar", os.O_RDONLY)
        os.fsync(file)
        os.close(file)
        return time.perf_counter() - start

    def shard_writer(output: Path) -> float:
        return _work(photos.samples, "write_with_shard_writer", photos.folder, output)[0]

    def shard_writer_loop(output: Path) -> float:
        return _work(photos.samples, "write_with_shard_writer", photos.folder, output)[1]

    check = _tar_check(photos)
    return [
        Contestant("tar", "tar cf", tar, check),
        Contestant("tar_fsync", "tar cf, then fsync, as shards have it", tar_fsync, check),
        Contestant("command", "make_shards, command", _shard_command(photos, workers, "header"), check),
        Contestant("call", "make_shards, call", _shard_call(photos, workers, "header"), check),
        Contestant("shard_writer", "webdataset.ShardWriter, command", shard_writer, check),
        Contestant("shard_writer_loop", "webdataset.ShardWriter, loop", shard_writer_loop, check),
    ]


def decode_contestants(photos: Photographs, workers: int) -> list[Contestant]:
    """The sharder that decodes every image, and nothing but decoding, both on `workers` processes."""

    def decode(output: Path) -> float:
        return _work(photos.samples, "decode", photos.folder, workers)[1]

    def no_check(output: Path) -> None:
        pass  # it writes nothing, and its number of images is checked each time

    check = _tar_check(photos)
    return [
        Contestant("decode", "decode alone", decode, no_check),
        Contestant("command", "make_shards --check=decode, command", _shard_command(photos, workers, "decode"), check),
        Contestant("call", "make_shards --check=decode, call", _shard_call(photos, workers, "decode"), check),
    ]


def _tar_words(photos: Photographs, output: Path) -> list[str]:
    return ["tar", "cf", str(output / "photos.tar"), "-C", str(photos.folder.parent), photos.folder.name]


def _shard_command(photos: Photographs, workers: int, check: str) -> Callable[[Path], float]:
    def run(output: Path) -> float:
        words = ("--check=" + check, f"--workers={workers}", f"--input={photos.folder}", f"--output={output}")
        return timed([sys.executable, "-m", "tools.make_shards", *words])[0]

    return run


def _shard_call(photos: Photographs, workers: int, check: str) -> Callable[[Path], float]:
    def run(output: Path) -> float:
        return _work(photos.samples, "make_shards", photos.folder, output, workers, check)[1]

    return run


def _work(samples: int, *words: object) -> tuple[float, float]:
    # Seconds of the whole process, and of the work in it.
    seconds, printed = timed([sys.executable, "-m", "tools.benchmark_work", *map(str, words)])
    result = json.loads(printed)
    if result["images"] != samples:
        raise CommandError(f"{words[0]} handled {result['images']} of {samples} photographs; nothing can be compared")
    return seconds, result["seconds"]


def _tar_check(photos: Photographs) -> Callable[[Path], None]:
    # Raises unless the tars in a folder hold the same images as the files, byte for byte, in any order.
    def check(output: Path) -> None:
        found = collections.Counter()
        for path in output.glob("*.tar"):
            with path.open("rb") as file:
                for member in tar_members(file, path.stat().st_size):
                    if member.name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS:
                        file.seek(member.offset)
                        found[hashlib.sha256(file.read(member.size)).hexdigest()] += 1
        if found != photos.digests:
            lacking = (photos.digests - found).total()
            raise CommandError(
                f"{lacking} of {photos.samples} photographs are not in the tars as they came; the benchmark needs "
                "JPEG, PNG and WebP files that the sharder keeps bit for bit"
            )

    return check
