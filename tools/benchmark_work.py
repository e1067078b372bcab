"""Work that the benchmarks time from inside a process that has started already.

  python -m tools.benchmark_work WORK ARGUMENTS...

calls the function WORK and prints {"seconds": ..., "images": ...}. What a function needs is imported in it, so that
no process pays for the imports of others.
"""

import io
import json
import multiprocessing
import sys
import time
from pathlib import Path

# Images that a process takes at a time: enough that taking costs nothing, few enough that all end together.
TAKEN_AT_ONCE = 8
SECONDS_TO_START = 60


def make_shards(photos: str, output: str, workers: str, check: str) -> dict:
    """What `tools.make_shards` does once Python runs and everything is imported."""
    from pipeline.image_files import ImageOptions
    from pipeline.sources import FolderSource
    from tools import sharding
    from tools.shard_plan import ShardOptions

    options = ShardOptions(images=ImageOptions(check=check))
    start = time.perf_counter()
    shard_set = sharding.make_shards(FolderSource(photos), output, options, workers=int(workers), log=lambda line: None)
    return {"seconds": time.perf_counter() - start, "images": shard_set.splits[options.split].samples}


def write_with_shard_writer(photos: str, output: str) -> dict:
    """The loop that webdataset's users write: the same members as ours, in one process."""
    import webdataset

    root = Path(photos)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    label_of = {name: label for label, name in enumerate(sorted(path.name for path in root.iterdir()))}
    pattern = output.replace("%", "%%") + "/train-%06d.tar"
    start = time.perf_counter()
    with webdataset.ShardWriter(pattern, maxsize=100e6, verbose=0) as writer:
        for number, path in enumerate(files):
            sample = {
                "__key__": f"{number:08d}",
                path.suffix[1:]: path.read_bytes(),
                "cls": label_of[path.parent.name],
                "json": {"source": f"{path.parent.name}/{path.name}"},
            }
            writer.write(sample)
    return {"seconds": time.perf_counter() - start, "images": len(files)}


def decode(photos: str, workers: str) -> dict:
    """Nothing but decoding: all processes have started, and all files are in memory."""
    contents = [path.read_bytes() for path in sorted(Path(photos).rglob("*")) if path.is_file()]
    _decode(contents[0])  # Pillow finds its decoders at the first image
    context = multiprocessing.get_context("fork")  # shares `contents`
    barrier, taken = context.Barrier(int(workers)), context.Value("q", 0)
    times = context.Array("d", 2 * int(workers))
    processes = [
        context.Process(target=_decode_share, args=(contents, barrier, taken, times, number), daemon=True)
        for number in range(int(workers))
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError("a process that decodes has failed")
    return {"seconds": max(times[1::2]) - min(times[::2]), "images": len(contents)}


def _decode_share(contents: list[bytes], barrier, taken, times, number: int) -> None:
    barrier.wait(SECONDS_TO_START)
    times[2 * number] = time.perf_counter()
    while True:
        with taken.get_lock():
            first = taken.value
            taken.value += TAKEN_AT_ONCE
        if first >= len(contents):
            break
        for data in contents[first : first + TAKEN_AT_ONCE]:
            _decode(data)
    times[2 * number + 1] = time.perf_counter()


def _decode(data: bytes) -> None:
    from PIL import Image

    Image.open(io.BytesIO(data)).load()


WORK = {work.__name__: work for work in (make_shards, write_with_shard_writer, decode)}

if __name__ == "__main__":
    print(json.dumps(WORK[sys.argv[1]](*sys.argv[2:])))
