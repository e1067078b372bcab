"""Measures this project beside the tools that do the same work, side by side in one run on one machine.

  python -m tools.benchmark shards                                  # with photographs that it makes itself
  python -m tools.benchmark shards --input=IMAGES --output=results.json

shards: the sharder against `tar cf` and webdataset's own ShardWriter, its full-decode check against nothing but
decoding and, with --million, a list of a million tiny images with the memory of each process.

Measure on a machine that does nothing else. Everything is written to a temporary folder, and deleted at the end.
"""

import functools
import json
import os
import signal
from pathlib import Path

from absl import flags

from keras_mae import commandline
from keras_mae.commandline import CommandError
from pipeline.locations import SourceError
from tools import worker_pool
from tools.benchmark_shards import measure_shards, shards_text

FLAGS = flags.FLAGS

BENCHMARKS = ("shards",)
MILLION = 1_000_000


def define_flags() -> None:
    flags.DEFINE_string(
        "input", None, "Folder of photographs, used as often as needed; default: made by the benchmark."
    )
    flags.DEFINE_integer("samples", 8000, "Photographs to measure with.", lower_bound=1)
    flags.DEFINE_integer("repeats", 5, "Rounds that are counted; one more comes first.", lower_bound=1)
    flags.DEFINE_integer("workers", None, "Processes of what can use several; default: one for each core.")
    flags.DEFINE_bool("million", False, "Measure a list of a million tiny images too; takes 5 GB of disk.")
    flags.DEFINE_string("scratch", None, "Folder on the disk to measure on; default: that of temporary files.")
    flags.DEFINE_string("output", None, "JSON file for the results.")


def main(argv: list[str]) -> int:
    _check_words(argv[1:])
    _check_places(FLAGS.scratch, FLAGS.output)
    with commandline.user_mistakes(SourceError):
        results = measure_shards(
            FLAGS.input,
            samples=FLAGS.samples,
            repeats=FLAGS.repeats,
            workers=worker_pool.checked_workers(FLAGS.workers),
            million=MILLION if FLAGS.million else 0,
            scratch=FLAGS.scratch,
            log=functools.partial(print, flush=True),
        )
    print(shards_text(results))
    if FLAGS.output:
        Path(FLAGS.output).write_text(json.dumps(results, indent=2) + "\n")
    return 0


def _check_words(words: list[str]) -> None:
    if len(words) != 1 or words[0] not in BENCHMARKS:
        received = " ".join(words) or "nothing"
        raise CommandError(f"expected the name of one benchmark, one of {', '.join(BENCHMARKS)}, received {received!r}")


def _check_places(scratch: str | None, output: str | None) -> None:
    # Before minutes are spent.
    if scratch and not os.path.isdir(scratch):
        raise CommandError(f"--scratch={scratch} is no folder; expected one that exists, on the disk to measure on")
    if output and (os.path.isdir(output) or not os.path.isdir(os.path.dirname(output) or ".")):
        raise CommandError(f"--output={output} cannot be written; expected the name of a file in a folder that exists")


def entry_point() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # cleaned up as after Ctrl-C
    commandline.run(main, define_flags, takes_words=True)


if __name__ == "__main__":
    entry_point()
