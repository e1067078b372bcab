"""Kills a training with kill -9 again and again, and compares it with one that nobody killed, to the last bit.

  python -m tools.kill_test --kills=20 [--data=SHARDS] [--steps=400] [--pretrain_flags="--precision=bfloat16"]

Both are `keras_mae.pretrain` of a small model, the same command after each kill. The moments are random (--seed): while
the process starts and restores, after a step, or while a checkpoint is being written. Without --data it makes a small
shard set. Prints each command and each kill. Exit code 1 if a row of metrics.jsonl or a bit of the last checkpoint
differs.
"""

import contextlib
import dataclasses
import filecmp
import pathlib
import random
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np
from absl import flags
from PIL import Image

from keras_mae import commandline
from keras_mae.commandline import CommandError
from keras_mae.training.metrics_log import read_rows
from pipeline.manifest import load_manifest
from pipeline.sources import FolderSource
from tools.shard_plan import ShardOptions
from tools.sharding import make_shards

FLAGS = flags.FLAGS

# A model whose steps take milliseconds; a log of every step; checkpoints so often that kills hit them.
SMALL = (
    *("--recipe=vit_tiny", "--image_size=32", "--patch_size=8", "--embed_dim=32", "--depth=2", "--num_heads=2"),
    *("--decoder_embed_dim=32", "--decoder_depth=1", "--decoder_num_heads=2", "--batch_size=8"),
    *("--log_every_steps=1", "--checkpoint_every_steps=3", "--eval_every_epochs=5"),
)
NUM_IMAGES, IMAGE_SIZE = 60, 40  # of the shard set that is made, in pixels
STARTING, STEP, WRITING = "while it starts", "after a step", "while it writes a checkpoint"
LONGEST_DELAYS = {STARTING: 10.0, STEP: 0.05, WRITING: 0.002}  # seconds
KILLED_SHARE = 0.8  # of the run's steps: later kills could miss its end
COMPARED = ("step", "epoch", "loss", "learning_rate")  # and val_...; other figures are about time


@dataclasses.dataclass(frozen=True)
class Moment:
    """When to kill.

    Attributes:
        kind: `STARTING`, `STEP` or `WRITING`.
        step: to wait for; with `STARTING`, nothing.
        delay: seconds after that; with `STARTING`, after the start of the process.
    """

    kind: str
    step: int
    delay: float


def plan_kills(kills: int, steps: int, seed: int) -> list[Moment]:
    """Random moments, in the order of the run; a third of each kind, more or less.

    Raises:
        CommandError: the run is too short for so many.
    """
    last = int(KILLED_SHARE * steps)
    if kills > last:
        raise CommandError(
            f"--steps={steps} are too few for --kills={kills}; give at least {int(kills / KILLED_SHARE) + 1}"
        )
    rng = random.Random(seed)
    moments = []
    for step in sorted(rng.sample(range(1, last + 1), kills)):
        kind = rng.choice((STARTING, STEP, WRITING))
        moments.append(Moment(kind, step, rng.uniform(0, LONGEST_DELAYS[kind])))
    return moments


def write_shards(folder: pathlib.Path, seed: int) -> pathlib.Path:
    """A small shard set of random pictures, with the splits train and val."""
    rng = np.random.default_rng(seed)
    for number in range(NUM_IMAGES):
        path = folder / "images" / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype="uint8")).save(path)
    make_shards(
        FolderSource(str(folder / "images")), folder / "shards", ShardOptions(val_fraction=0.2), workers=1, log=str
    )
    return folder / "shards"


@contextlib.contextmanager
def started(words: Sequence[str], run_dir: pathlib.Path):
    """The training as a process, which does not outlive this context; what it says goes to RUN_DIR.log."""
    with open(run_dir.with_name(run_dir.name + ".log"), "ab") as log:
        command = [sys.executable, "-m", "keras_mae.pretrain", *words, f"--run_dir={run_dir}"]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def finish(words: Sequence[str], run_dir: pathlib.Path) -> None:
    """Runs the training to its end.

    Raises:
        CommandError: it failed; with its last words.
    """
    with started(words, run_dir) as process:
        if process.wait():
            raise CommandError(f"the training ended with exit code {process.returncode}: {_last_words(run_dir)}")


def kill(words: Sequence[str], run_dir: pathlib.Path, moment: Moment) -> str:
    """Starts the training and kills it at the moment; returns what was hit.

    Raises:
        CommandError: it ended by itself before.
    """
    log = run_dir / "metrics.jsonl"
    before, old = log.stat().st_ino if log.exists() else None, _unfinished(run_dir)
    with started(words, run_dir) as process:

        def wait_until(happened: Callable[[], bool], seconds: float) -> None:
            while not happened():
                if process.poll() is not None:
                    raise CommandError(f"the training ended before it was killed: {_last_words(run_dir)}")
                time.sleep(seconds)

        if moment.kind != STARTING:
            # The log of the process before is replaced when the run goes on.
            wait_until(lambda: log.exists() and log.stat().st_ino != before, 0.05)
            wait_until(lambda: any(row["step"] >= moment.step for row in read_rows(log)), 0.01)
        if moment.kind == WRITING:
            wait_until(lambda: bool(_unfinished(run_dir)), 0.0)
        time.sleep(moment.delay)
        process.kill()
        process.wait()
    rows, torn = read_rows(log), _unfinished(run_dir) - old
    at = f"at step {rows[-1]['step']}" if rows else "before the first step"
    return f"{moment.kind}, {at}{', a checkpoint is torn' if torn else ''}"


def find_differences(whole: pathlib.Path, killed: pathlib.Path) -> list[str]:
    """Sentences, one for each row that differs, and one for the last checkpoint."""
    expected, rows = (compared_rows(folder / "metrics.jsonl") for folder in (whole, killed))
    found = [f"row {a} became {b}" for a, b in zip(expected, rows, strict=False) if a != b]
    if len(expected) != len(rows):
        found.append(f"{len(expected)} rows became {len(rows)}")
    a, b = (max((folder / "checkpoints").glob("step-*.npz")) for folder in (whole, killed))
    if a.name != b.name or not filecmp.cmp(a, b, shallow=False):
        found.append(f"the last checkpoints {a} and {b} differ")
    return found


def compared_rows(log: pathlib.Path) -> list[dict]:
    """The rows of a log without the figures about time."""
    return [{k: v for k, v in row.items() if k in COMPARED or k.startswith("val_")} for row in read_rows(log)]


def run_test(output: pathlib.Path, data: str | None, moments: Sequence[Moment], words: Sequence[str], seed: int) -> int:
    """Trains twice, kills one of them, compares; returns the exit code."""
    shards = data or write_shards(output, seed)
    words = (*SMALL, f"--data={shards}", f"--seed={seed}", *words)
    whole, killed = output / "whole", output / "killed"
    print(f"$ python -m keras_mae.pretrain {shlex.join(words)} --run_dir={whole}", flush=True)
    finish(words, whole)
    torn = 0
    for number, moment in enumerate(moments, start=1):
        hit = kill(words, killed, moment)
        torn += "torn" in hit
        print(f"kill {number} of {len(moments)}: {hit}", flush=True)
    finish(words, killed)
    differences = find_differences(whole, killed)
    for sentence in differences:
        print(f"DIFFERENT: {sentence}")
    if not differences:
        count = sum("loss" in row for row in compared_rows(killed / "metrics.jsonl"))
        hits = f"{len(moments)} kills, {torn} of them into a checkpoint"
        print(f"{hits}: all {count} losses and the last checkpoint are equal, to the last bit.")
    return 1 if differences else 0


def _unfinished(run_dir: pathlib.Path) -> set[int]:
    # Files of checkpoints that are being written, or were when the process was killed; by the time of the last write.
    times = set()
    for path in (run_dir / "checkpoints").glob("step-*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            times.add(path.stat().st_mtime_ns)
    return times


def _last_words(run_dir: pathlib.Path) -> str:
    lines = run_dir.with_name(run_dir.name + ".log").read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def main(argv):
    del argv
    moments = plan_kills(FLAGS.kills, FLAGS.steps, FLAGS.seed)
    with commandline.user_mistakes():
        words = (f"--steps={FLAGS.steps}", *shlex.split(FLAGS.pretrain_flags))
        if FLAGS.data:
            load_manifest(FLAGS.data)
    if FLAGS.output is None:
        with tempfile.TemporaryDirectory() as folder:
            return run_test(pathlib.Path(folder), FLAGS.data, moments, words, FLAGS.seed)
    output = pathlib.Path(FLAGS.output)
    if output.exists() and any(output.iterdir()):
        raise CommandError(f"{output} is not empty; choose another --output")
    output.mkdir(parents=True, exist_ok=True)
    return run_test(output, FLAGS.data, moments, words, FLAGS.seed)


def define_flags():
    flags.DEFINE_integer("kills", 20, "How often to kill.", lower_bound=0)
    flags.DEFINE_integer("steps", 400, "Length of the training.", lower_bound=1)
    flags.DEFINE_string("data", None, "Folder of a shard set of RGB images. Unset: a small one is made.")
    flags.DEFINE_string("output", None, "Empty folder for both runs and their logs. Unset: a temporary one.")
    flags.DEFINE_integer("seed", 0, "Of the moments, the training, and the images that are made.", lower_bound=0)
    flags.DEFINE_string("pretrain_flags", "", 'Further flags of both trainings, such as "--batch_size=16".')


def entry_point():
    commandline.run(main, define_flags)


if __name__ == "__main__":
    entry_point()
