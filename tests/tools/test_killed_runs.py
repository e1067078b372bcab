"""kill -9 at any moment, the same command again: the bytes are those of a run that nobody killed."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from fixtures.shard_sets import encode

from pipeline.manifest import load_manifest
from pipeline.sources import FolderSource
from tools.shard_faults import find_faults
from tools.shard_plan import ShardOptions
from tools.sharding import make_shards

NUM_IMAGES, SHARD_MB = 1500, 0.05


@pytest.fixture(scope="module")
def many_images(tmp_path_factory):
    """1,500 images in 3 classes, for about 100 shards: enough to be killed in the middle of."""
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    contents = [encode(rng.integers(0, 255, (8, 8 + i, 3), dtype=np.uint8), "PNG") for i in range(10)]
    for number in range(NUM_IMAGES):
        path = folder / "images" / f"class{number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[number % 10])
    return folder / "images"


def contents(root):
    return {path.name: path.read_bytes() for path in root.iterdir() if path.name != "report.json"}


def start(images, output, workers):
    arguments = [f"--input={images}", f"--output={output}", f"--shard_mb={SHARD_MB}", f"--workers={workers}"]
    return subprocess.Popen(
        [sys.executable, "-m", "tools.make_shards", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def records(output):
    folder = output / ".train.unfinished"
    return len(list(folder.glob("0*.json"))) if folder.exists() else 0


def wait_for_records(process, output, count):
    while process.poll() is None and records(output) < count:
        time.sleep(0.002)


@pytest.mark.parametrize(
    "kills, workers",
    [
        (3, 2),
        pytest.param(10, 1, marks=pytest.mark.slow),
        pytest.param(10, 2, marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_again_and_again_gives_the_same_bytes(many_images, tmp_path, kills, workers):
    expected = make_shards(
        FolderSource(many_images), tmp_path / "expected", ShardOptions(shard_mb=SHARD_MB), workers=1, log=str
    )
    num_shards = len(expected.splits["train"].shards)
    rng, output = random.Random(workers), tmp_path / "out"
    interrupted = 0
    for kill in range(kills):
        process = start(many_images, output, workers)
        # The first kill comes while the run begins, the others after a few further shards: half of all in the end.
        further = rng.randrange(num_shards // (2 * kills)) if kill else 0
        wait_for_records(process, output, records(output) + further)
        time.sleep(rng.random() * 0.02)
        process.kill()
        process.communicate()
        interrupted += process.returncode == -signal.SIGKILL
    process = start(many_images, output, workers)
    said, mistakes = process.communicate()
    assert process.returncode == 0, mistakes
    assert interrupted == kills and said.startswith("going on with an unfinished run: ")
    assert contents(output) == contents(tmp_path / "expected")
    assert list(find_faults(load_manifest(output))) == []


def test_a_killed_worker_ends_the_run_with_a_sentence_and_it_goes_on(many_images, tmp_path):
    process = start(many_images, tmp_path / "out", 2)
    wait_for_records(process, tmp_path / "out", 3)
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    os.kill(int(children.stdout.split()[0]), signal.SIGKILL)
    said, mistakes = process.communicate()
    assert process.returncode == 1
    assert mistakes.startswith("ERROR: a worker process ended without a result") and len(mistakes.splitlines()) == 1
    assert start(many_images, tmp_path / "out", 2).wait() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_keeps_what_is_whole_and_says_how_to_go_on(many_images, tmp_path, workers):
    arguments = [f"--input={many_images}", f"--output={tmp_path / 'out'}", f"--shard_mb={SHARD_MB}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.make_shards", *arguments, f"--workers={workers}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for_records(process, tmp_path / "out", 3)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to every process
    said, mistakes = process.communicate()
    assert (process.returncode, mistakes) == (130, "\ninterrupted; run the same command again to finish\n")
    assert records(tmp_path / "out") >= 3
    assert not list((tmp_path / "out").rglob(".*.tmp")) and not (tmp_path / "out" / "manifest.json").exists()
