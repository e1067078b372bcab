"""The benchmark lets each contestant do the whole work, and says truly what came of it. No test looks at a speed."""

import collections
import fcntl
import functools
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from fixtures.commands import run_command
from PIL import Image

from keras_mae.commandline import CommandError
from tools import benchmark, benchmark_inputs
from tools.benchmark_inputs import copy_photographs, make_photographs, write_tiny_list
from tools.benchmark_processes import MemoryWatch, started, timed
from tools.benchmark_rounds import Contestant, run_rounds, speed_ratio, summary, table
from tools.benchmark_shards import check_targets, measure_million, measure_shards, shards_text
from tools.shard_contestants import copy_contestants, decode_contestants

needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="Linux tells the memory of processes")


def images_in(folder) -> collections.Counter:
    """The images in all tars of a folder, as bytes."""
    found = collections.Counter()
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.isfile() and not member.name.endswith((".cls", ".json")):
                    found[tar.extractfile(member).read()] += 1
    return found


def files_in(folder) -> collections.Counter:
    return collections.Counter(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def photos(images, tmp_path):
    return copy_photographs(str(images), 20, tmp_path / "photos")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    scratch = tmp_path_factory.mktemp("scratch")
    lines = []
    results = measure_shards(None, samples=12, repeats=1, workers=2, million=50, scratch=str(scratch), log=lines.append)
    assert list(scratch.iterdir()) == []
    assert any("not counted" in line for line in lines)
    return results


def test_fewer_photographs_are_taken_in_turn(images, tmp_path):
    photos = copy_photographs(str(images), 70, tmp_path / "photos")
    originals, copies = files_in(images), files_in(tmp_path / "photos")
    assert copies.keys() == originals.keys() and len(originals) == 30
    assert sorted(copies.values()) == [2] * 20 + [3] * 10
    assert (photos.samples, photos.num_bytes) == (70, sum(len(data) * n for data, n in copies.items()))


def test_of_more_photographs_evenly_spaced_ones_are_taken(images, tmp_path):
    photos = copy_photographs(str(images), 10, tmp_path / "photos")
    listed = sorted(path for path in images.rglob("*") if path.is_file())
    assert files_in(photos.folder) == collections.Counter(path.read_bytes() for path in listed[::3])


def test_made_photographs_are_the_same_each_time_and_like_small_photographs(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_inputs, "MADE_PHOTOGRAPHS", 8)
    photos = make_photographs(12, tmp_path / "a")
    assert photos.digests == make_photographs(12, tmp_path / "b").digests
    assert photos.samples == 12 and len(photos.digests) == 8
    assert 35_000 < photos.num_bytes / 12 < 55_000
    for data in files_in(tmp_path / "a"):
        image = Image.open(io.BytesIO(data))
        assert (image.format, image.size, image.mode) == ("JPEG", (500, 375), "RGB")


def test_a_tiny_list_names_a_thousand_tiny_images(tmp_path):
    file = write_tiny_list(1005, tmp_path)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 1005 and len({row["path"] for row in rows}) == 1000
    assert rows[3] == {"path": rows[1003]["path"], "label": 3, "caption": "sample 3"}
    for row in rows:
        data = (tmp_path / row["path"]).read_bytes()
        assert 60 < len(data) < 900
        assert Image.open(io.BytesIO(data)).format.lower() == row["path"].rpartition(".")[2]


@pytest.mark.parametrize("contestants", [copy_contestants, decode_contestants])
def test_contestants_store_every_photograph_bit_for_bit(contestants, photos, tmp_path):
    expected = files_in(photos.folder)
    for contestant in contestants(photos, 2):
        output = tmp_path / contestant.name
        output.mkdir()
        assert contestant.run(output) > 0
        contestant.check(output)
        assert images_in(output) == (collections.Counter() if contestant.name == "decode" else expected)


def test_shard_writer_stores_what_the_sharder_stores(photos, tmp_path):
    def samples(name):
        output = tmp_path / name
        output.mkdir()
        next(c for c in copy_contestants(photos, 1) if c.name == name).run(output)
        with tarfile.open(next(output.glob("*.tar"))) as tar:
            found = collections.defaultdict(dict)
            for member in tar:
                key, extension = member.name.split(".")
                found[key][extension.lower().replace("jpeg", "jpg")] = tar.extractfile(member).read()
        return sorted(sorted(members.items()) for members in found.values())

    assert samples("shard_writer") == samples("command")


def test_a_tar_that_lacks_a_photograph_is_refused(photos, tmp_path):
    contestant = copy_contestants(photos, 1)[0]
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for path in sorted(photos.folder.rglob("*.*"))[1:]:
            tar.add(path, path.name)
    with pytest.raises(CommandError, match="^1 of 20 photographs"):
        contestant.check(tmp_path)


def test_a_contestant_that_handles_fewer_photographs_is_refused(photos, tmp_path):
    contestants = {contestant.name: contestant for contestant in decode_contestants(photos, 1)}
    path = next(photos.folder.rglob("*.*"))
    path.unlink()
    path.parent.rmdir()
    for name in ("decode", "call"):
        with pytest.raises(CommandError, match="19 of 20"):
            contestants[name].run(tmp_path / name)


def test_decode_alone_decodes_all_pixels(photos, tmp_path):
    path = next(photos.folder.rglob("*.png"))
    path.write_bytes(path.read_bytes()[:60])  # the header is whole
    with pytest.raises(CommandError, match="failed"):
        decode_contestants(photos, 2)[0].run(tmp_path)


def test_rounds_take_turns_and_the_first_is_not_counted(tmp_path):
    output, calls, checks = tmp_path / "output", [], []

    def contestant(name):
        def run(folder):
            assert folder == output and list(folder.iterdir()) == []
            (folder / name).touch()
            calls.append(name)
            return float(len(calls))

        return Contestant(name, name, run, lambda folder: checks.append([path.name for path in folder.iterdir()]))

    seconds = run_rounds([contestant(name) for name in "abc"], 3, output, lambda line: None)
    assert "".join(calls) == "abc" + "bca" + "cab" + "abc"
    assert checks == [["a"], ["b"], ["c"]]
    assert seconds == {"a": [6, 8, 10], "b": [4, 9, 11], "c": [5, 7, 12]}
    assert not output.exists()


def test_ratios_compare_within_each_round():
    seconds = {"ours": [1.0, 2.0, 4.0], "theirs": [2.0, 2.0, 2.0]}
    assert speed_ratio(seconds, "ours", "theirs") == {"median": 1.0, "min": 0.5, "max": 2.0}


def test_speeds_are_those_of_the_median_round():
    contestants = [Contestant(name, f"the {name}", None, None) for name in ("tar", "other")]
    rows = summary(contestants, {"tar": [1.0, 2.0, 9.0], "other": [4.0, 5.0, 3.0]}, "tar", 100, 50_000_000)
    assert (rows["tar"]["images_per_second"], rows["tar"]["mb_per_second"]) == (50, 25)
    assert (rows["other"]["images_per_second"], rows["other"]["mb_per_second"]) == (25, 12.5)
    assert rows["other"]["seconds"] == {"median": 4, "min": 3, "max": 5}
    assert rows["other"]["ratio"] == {"median": 0.4, "min": 0.25, "max": 3}
    lines = table(rows).splitlines()
    assert lines[0].endswith("times the tar") and len(lines) == 3
    assert lines[2].split() == ["the", "other", "4.00", "(3.00-5.00)", "25", "12", "0.40", "(0.25-3.00)"]


def test_a_failing_command_is_one_sentence():
    with pytest.raises(CommandError, match="this command failed, oh no: .*python.* -c"):
        timed([sys.executable, "-c", "import sys; sys.exit('much\\noh no')"])


def test_a_block_that_raises_ends_all_that_its_command_started(tmp_path):
    path = tmp_path / "lock"
    script = (
        f"import fcntl, subprocess, time; file = open({str(path)!r}, 'w'); fcntl.flock(file, fcntl.LOCK_EX); "
        "subprocess.Popen(['sleep', '600'], pass_fds=[file.fileno()]); print('both hold it', flush=True); "
        "time.sleep(600)"
    )
    with pytest.raises(RuntimeError, match="enough"), started([sys.executable, "-c", script]) as process:
        assert process.stdout.readline() == "both hold it\n"
        raise RuntimeError("enough")
    assert process.returncode == -signal.SIGKILL
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if one of them is left


@needs_proc
def test_memory_of_all_processes_is_seen_and_so_is_tensorflow(tmp_path):
    library = tmp_path / "libtensorflow_framework.so.2"
    library.write_bytes(bytes(4096))
    child = (
        f"import mmap, time; file = open({str(library)!r}, 'rb'); "
        "mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ); big = b'1' * 150_000_000; time.sleep(600)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with pytest.raises(RuntimeError, match="seen"), started([sys.executable, "-c", parent]) as process:
        with MemoryWatch(process.pid) as watch:
            deadline = time.monotonic() + 60
            while not watch.has_tensorflow or max(watch.peak_bytes.values()) < 150e6:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        raise RuntimeError("seen")
    assert len(watch.peak_bytes) == 2
    assert watch.peak_bytes[process.pid] < 50e6
    assert 150e6 < max(watch.peak_bytes.values()) < 200e6


def test_a_million_is_measured_on_a_whole_shard_set(tmp_path):
    million = measure_million(50, 2, tmp_path)
    assert (million["samples"], million["shards"]) == (50, 1)
    captions, labels = set(), collections.Counter()
    with tarfile.open(tmp_path / "million" / "train-000000.tar") as tar:
        for member in tar:
            data = tar.extractfile(member).read()
            if member.name.endswith(".json"):
                captions.add(json.loads(data)["caption"])
            if member.name.endswith(".cls"):
                labels[int(data)] += 1
    assert captions == {f"sample {number}" for number in range(50)}
    assert labels == collections.Counter(range(50))


def test_results_have_every_contestant_and_ratio(results):
    photographs = results["photographs"]
    assert photographs["samples"] == 12 and "12 different ones of smooth noise" in photographs["origin"]
    assert results["machine"]["workers"] == 2
    copy, decode = results["copy"]["contestants"], results["decode"]["contestants"]
    assert list(copy) == ["tar", "tar_fsync", "command", "call", "shard_writer", "shard_writer_loop"]
    assert list(decode) == ["decode", "command", "call"]
    for row in (*copy.values(), *decode.values()):
        assert len(row["rounds"]) == 1 and min(row["rounds"]) > 0
    pairs = "command / tar, call / tar, command / tar_fsync, call / tar_fsync, command / shard_writer"
    assert ", ".join(results["copy"]["ratios"]) == pairs + ", call / shard_writer_loop"
    assert list(results["decode"]["ratios"]) == ["command / decode", "call / decode"]
    assert copy["command"]["ratio"] == results["copy"]["ratios"]["command / tar"]
    assert results["million"]["samples"] == 50
    assert json.loads(json.dumps(results)) == results


@needs_proc
def test_the_sharder_never_loads_tensorflow(results):
    assert results["million"]["has_tensorflow"] is False
    assert 10 < results["million"]["parent_mb"] <= results["million"]["peak_mb"] < 500


def test_the_text_tells_every_figure(results):
    text = shards_text(results)
    for part in ("copy", "decode"):
        assert all(row["text"] in text for row in results[part]["contestants"].values())
        assert all(f"speed of {pair}:" in text for pair in results[part]["ratios"])
    assert "50 tiny samples" in text and "the targets are for 8,000 photographs" in text
    assert text.count("target: ") == len(results["targets"])


def test_targets_are_met_at_their_limit_and_missed_beyond():
    copy = {"command / tar": {"median": 0.6}, "command / shard_writer": {"median": 1.0}}
    results = {
        "copy": {"ratios": copy},
        "decode": {"ratios": {"command / decode": {"median": 0.79}}},
        "million": {"seconds": 599.9, "peak_mb": None},
    }
    assert [(target["target"], target["measured"], target["met"]) for target in check_targets(results)] == [
        (">= 0.6", 0.6, True),
        ("> 1", 1.0, False),
        (">= 0.8", 0.79, False),
        ("< 600", 599.9, True),
    ]
    del results["million"]
    assert len(check_targets(results)) == 3


run = functools.partial(run_command, benchmark, takes_words=True)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ([], "expected the name of one benchmark, one of shards, pipeline, step, flops, received 'nothing'"),
        (["shrads"], "expected the name of one benchmark, one of shards, pipeline, step, flops, received 'shrads'"),
        (["shards", "more"], "received 'shards more'"),
        (["shards", "--scratch=none"], "--scratch=none is no folder"),
        (["shards", "--output=none/results.json"], "--output=none/results.json cannot be written"),
        (["shards", "--workers=0"], "--workers must be at least 1, received 0"),
        (["shards", "--input=none"], "none does not exist; expected a folder with images"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("ERROR: ") and sentence in error and error.count("\n") == 1


def test_the_command_writes_what_it_measured(images, tmp_path, capsys, monkeypatch):
    given = {}

    def measure(photos, **options):
        given.update(options, photos=photos)
        return {"samples": options["samples"]}

    monkeypatch.setattr(benchmark, "measure_shards", measure)
    monkeypatch.setattr(benchmark, "shards_text", lambda results: f"a table of {results}")
    output = tmp_path / "results.json"
    assert run("shards", f"--input={images}", f"--output={output}", "--samples=3", "--million", "--workers=1") == 0
    assert json.loads(output.read_text()) == {"samples": 3}
    assert "a table of {'samples': 3}" in capsys.readouterr().out
    assert (given["photos"], given["million"], given["repeats"], given["workers"]) == (str(images), 1_000_000, 5, 1)


def test_an_interrupted_benchmark_leaves_nothing(images, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    words = ["shards", f"--input={images}", f"--scratch={scratch}", "--samples=300", "--repeats=500"]
    process = subprocess.Popen([sys.executable, "-m", "tools.benchmark", *words], stderr=subprocess.PIPE, text=True)
    try:
        while not list(scratch.glob("*/output")) and process.poll() is None:
            time.sleep(0.02)
        process.terminate()
        error = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 130 and "interrupted" in error
    assert list(Path(scratch).iterdir()) == []
