"""The benchmark of the sharder: copying, checking each image by decoding it, and a million samples.

Every contestant is a process of its own. Times called "command" are of a whole process, from before its start to
after its end; "call" and "loop" are of the work alone, in a process that has started and imported everything.
"""

import collections
import functools
import hashlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from keras_mae.commandline import CommandError
from pipeline.manifest import load_manifest
from pipeline.tar_members import tar_members
from tools import worker_pool
from tools.benchmark_inputs import Photographs, copy_photographs, make_photographs, write_tiny_list
from tools.benchmark_processes import MemoryWatch, finish, started, timed
from tools.benchmark_rounds import Contestant, ratio_text, run_rounds, speed_ratio, summary, table

BUSY_LOAD = 0.5
_CHUNK = 1 << 20


def measure_shards(
    photos: str | None,
    *,
    samples: int,
    repeats: int,
    workers: int,
    million: int = 0,
    scratch: str | None = None,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measures the sharder.

    Args:
        photos: folder of photographs; None: they are made.
        samples: photographs to measure with.
        repeats: rounds that are counted.
        workers: processes of the sharder, and of the decoding that it is compared with.
        million: samples of the list of tiny images; 0: that is not measured.
        scratch: folder for the temporary folder; None: that of the system.
        log: is given the lines to tell the user.

    Returns:
        What is written as JSON; `shards_text` shows it.

    Raises:
        SourceError: `photos` is no folder of images.
        CommandError: a contestant failed, or left samples out.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=scratch) as folder:
        root = Path(folder)
        machine = describe_machine(root, workers)
        if machine["load_at_start"] > BUSY_LOAD:
            log(f"WARNING: the machine is busy (load {machine['load_at_start']}): these times will be worth little")
        log("writing the photographs")
        place = root / "photos"
        photographs = make_photographs(samples, place) if photos is None else copy_photographs(photos, samples, place)
        results = {
            "benchmark": "shards",
            "machine": machine,
            "photographs": {
                "samples": photographs.samples,
                "bytes": photographs.num_bytes,
                "origin": photographs.origin,
            },
            "copy": measure_copy(photographs, repeats, workers, root, log),
            "decode": measure_decode(photographs, repeats, workers, root, log),
        }
        if million:
            results["million"] = measure_million(million, workers, root, log)
    results["targets"] = check_targets(results)
    return results


def describe_machine(folder: Path, workers: int) -> dict[str, Any]:
    """What the times depend on, besides the work."""
    return {
        "cores": worker_pool.available_cores(),
        "workers": workers,
        "load_at_start": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "filesystem": _filesystem(folder),
        "python": platform.python_version(),
        "pillow": version("pillow"),
        "webdataset": version("webdataset"),
    }


def _filesystem(folder: Path) -> str | None:
    # Its kind, such as ext4; only Linux tells. A tmpfs has no disk, so that times on it say little.
    device = folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    mounts = Path("/proc/self/mountinfo")
    lines = mounts.read_text(errors="replace").splitlines() if mounts.exists() else ()
    kinds = (line.partition(" - ")[2].split()[0] for line in lines if line.split()[2] == number)
    return next(kinds, None)


def measure_copy(
    photos: Photographs, repeats: int, workers: int, root: Path, log: Callable[[str], None]
) -> dict[str, Any]:
    """Times the sharder, `tar cf` and webdataset's ShardWriter on the same files."""
    check = functools.partial(check_tars, photos)
    shard = functools.partial(_shard, photos, workers, "header")
    write = functools.partial(_work, photos.samples, "write_with_shard_writer", photos.folder)
    contestants = [
        Contestant("tar", "tar cf", functools.partial(_tar, photos.folder), check),
        Contestant("tar_fsync", "tar cf, then fsync as shards have it", functools.partial(_tar_fsync, photos), check),
        Contestant("command", "make_shards, command", shard, check),
        Contestant("call", "make_shards, call", functools.partial(_call, photos, workers, "header"), check),
        Contestant("shard_writer", "webdataset.ShardWriter, command", lambda output: write(output)[0], check),
        Contestant("shard_writer_loop", "webdataset.ShardWriter, loop", lambda output: write(output)[1], check),
    ]
    log(f"copy of {photos.samples:,} photographs")
    seconds = run_rounds(contestants, repeats, root / "output", log)
    pairs = [
        ("command", "tar"),
        ("call", "tar"),
        ("command", "tar_fsync"),
        ("call", "tar_fsync"),
        ("command", "shard_writer"),
        ("call", "shard_writer_loop"),
    ]
    return {
        "yardstick": "tar",
        "contestants": summary(contestants, seconds, "tar", photos.samples, photos.num_bytes),
        "ratios": {f"{name} / {other}": speed_ratio(seconds, name, other) for name, other in pairs},
    }


def measure_decode(
    photos: Photographs, repeats: int, workers: int, root: Path, log: Callable[[str], None]
) -> dict[str, Any]:
    """Times the sharder with --check=decode, and nothing but decoding the same files on as many processes."""
    check = functools.partial(check_tars, photos)
    contestants = [
        Contestant(
            "decode",
            f"decode alone, {workers} processes",
            lambda output: _work(photos.samples, "decode", photos.folder, workers)[1],
            lambda output: None,
        ),
        Contestant(
            "command",
            "make_shards --check=decode, command",
            functools.partial(_shard, photos, workers, "decode"),
            check,
        ),
        Contestant(
            "call", "make_shards --check=decode, call", functools.partial(_call, photos, workers, "decode"), check
        ),
    ]
    log(f"full decode of {photos.samples:,} photographs")
    seconds = run_rounds(contestants, repeats, root / "output", log)
    return {
        "yardstick": "decode",
        "contestants": summary(contestants, seconds, "decode", photos.samples, photos.num_bytes),
        "ratios": {f"{name} / decode": speed_ratio(seconds, name, "decode") for name in ("command", "call")},
    }
