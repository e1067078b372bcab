"""The benchmark of the pipeline lets every contestant do the same work, and says truly what came of it.

No test looks at a speed. Work that a process of its own does in use is done in this one, but where the process matters.
"""

import dataclasses
import functools
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fixtures.commands import run_command
from fixtures.shard_sets import encode, write_shard_set
from PIL import Image

from keras_mae.commandline import CommandError
from pipeline.manifest import load_manifest
from tools import (
    benchmark,
    benchmark_pipeline,
    lock_probe,
    pipeline_contestants,
    pipeline_peers,
    pipeline_report,
    pipeline_work,
)
from tools.benchmark_pipeline import measure_pipeline
from tools.lock_probe import LockProbe
from tools.pipeline_contestants import (
    Loading,
    decode_contestant,
    own_contestant,
    own_figures,
    peer_contestant,
    peer_packages,
)
from tools.pipeline_report import check_targets, pipeline_text

RAND_AUGMENT = "rand-m9-mstd0.5-inc1"
SAMPLES = 24
needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux binds threads to cores")


def photograph(number: int) -> np.ndarray:
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, (20 + number % 7, 30, 3), dtype=np.uint8)


def write_set(folder: Path, kind: str = "JPEG", classes=("cat", "dog"), split: str = "train") -> str:
    images = [encode(photograph(number), kind) for number in range(SAMPLES)]
    labels = [number % 2 for number in range(SAMPLES)] if classes else None
    write_shard_set(folder, images, shard_samples=[10, 14], labels=labels, classes=classes, split=split)
    return str(folder)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    return write_set(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def loading(shards) -> Loading:
    tars = tuple(sorted(str(path) for path in Path(shards).glob("*.tar")))
    return Loading("pretrain", 4, 16, 3, 2, shards=shards, split="train", tars=tars)


@pytest.fixture
def in_this_process(monkeypatch, request) -> list[dict]:
    """Lets our own work run here, without the start of a process; holds what was asked for.

    The host engine stands for the graph, which takes seconds to build, but in slow tests.
    """
    asked = []
    engines = {} if request.node.get_closest_marker("slow") else {"graph": "host"}

    def timed(words):
        name, description = words[3], json.loads(Path(words[4]).read_text())
        manifest = load_manifest(description["shards"])
        asked.append({"work": name, "samples": manifest.split(description["split"]).samples, **description})
        asked[-1]["sides"] = [min(image.size) for image in images_in(description["shards"])]
        description["engine"] = engines.get(description["engine"], description["engine"])
        return 1.0, "a line of a library\n" + json.dumps(pipeline_work.WORK[name](description, *words[5:]))

    monkeypatch.setattr(pipeline_contestants, "timed", timed)
    # The cores of the process that runs the tests shall stay as they are.
    monkeypatch.setattr(lock_probe, "reserve_core", lambda: max(os.sched_getaffinity(0)))
    return asked


def images_in(folder: str) -> list[Image.Image]:
    import tarfile

    found = []
    for path in sorted(Path(folder).glob("*.tar")):
        with tarfile.open(path) as tar:
            found += [Image.open(tar.extractfile(member)) for member in tar if member.name.endswith((".jpg", ".png"))]
    return found


def measure(loading: Loading, log=lambda line: None, **options) -> dict:
    options = {"peers": "none", "peer_python": sys.executable, "repeats": 2, **options}
    return measure_pipeline(loading, log=log, **options)


@needs_affinity
@pytest.mark.slow
def test_results_have_every_contestant_stage_and_ratio(shards, in_this_process, tmp_path):
    loading = Loading("pretrain", 4, 16, 3, 2, shards=shards)
    results = measure(loading, scratch=str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    assert list(results["contestants"]) == ["ours", "graph", "decode"]
    for row in results["contestants"].values():
        assert len(row["rounds"]) == 2 and min(row["rounds"]) > 0
    assert results["images_per_second"] == results["contestants"]["ours"]["images_per_second"] > 0
    assert list(results["ratios"]) == ["ours / decode", "graph / decode", "ours / graph"]
    assert list(results["stages"]) == ["read", "decode", "crop_resize", "augment", "batch", "whole"]
    steps = sum(value for name, value in results["stages"].items() if name != "whole")
    assert steps == pytest.approx(results["stages"]["whole"], abs=1e-3)
    assert results["lock"]["looks"] > 0 and 0 <= results["lock"]["held_share"] <= 1
    assert results["shards"] | {"image_bytes": 0} == {
        "split": "train",
        "samples": SAMPLES,
        "tars": 2,
        "image_bytes": 0,
        "jpegs": SAMPLES,
    }
    assert results["shards"]["image_bytes"] == sum(len(encode(photograph(n), "JPEG")) for n in range(SAMPLES))
    assert (results["images"], results["batch_size"], results["view"], results["peers"]) == (12, 4, "pretrain", None)
    assert json.loads(json.dumps(results)) == results
    engines = [asked["engine"] for asked in in_this_process if asked["work"] == "load"]
    assert (engines.count("auto"), engines.count("graph")) == (3, 3)  # rounds


@pytest.mark.slow
def test_the_graph_engine_has_no_stages_but_the_whole(shards, in_this_process):
    results = measure(Loading("pretrain", 4, 16, 2, 1, engine="graph", shards=shards), repeats=1)
    assert list(results["contestants"]) == ["ours", "decode"]
    assert list(results["stages"]) == ["whole"]


@pytest.mark.slow
def test_without_shards_photographs_are_made_into_some(in_this_process, monkeypatch, tmp_path):
    results = measure(Loading("pretrain", 2, 16, 1, 1), samples=5, repeats=1, scratch=str(tmp_path))
    assert (results["shards"]["samples"], results["shards"]["jpegs"]) == (5, 5)
    assert {asked["samples"] for asked in in_this_process} == {5}
    assert list(tmp_path.iterdir()) == []


def test_given_photographs_are_made_into_shards(in_this_process, images):
    results = measure(Loading("train", 2, 16, 1, 1), photos=str(images), samples=6, repeats=1)
    assert results["shards"]["samples"] == 6


def test_resized_shards_hold_the_same_images_smaller(shards, in_this_process, monkeypatch):
    monkeypatch.setattr(benchmark_pipeline, "RESIZED_SIDE", 18)
    results = measure(Loading("pretrain", 4, 16, 1, 1, shards=shards), resized=True, repeats=1)
    assert "resized / decode" in results["ratios"] and "resized / graph" not in results["ratios"]
    sides = {asked["shards"]: asked["sides"] for asked in in_this_process}
    assert len(sides) == 2 and set(sides.pop(shards)) == set(range(20, 27))
    assert list(sides.values()) == [[18] * SAMPLES]


def test_images_that_are_no_jpeg_are_not_decoded_alone(tmp_path, in_this_process):
    lines = []
    shards = write_set(tmp_path, "PNG")
    results = measure(Loading("pretrain", 4, 16, 1, 1, shards=shards), log=lines.append, repeats=1)
    assert list(results["contestants"]) == ["ours", "graph"]
    assert any("no JPEG" in line for line in lines)


@pytest.mark.parametrize("engine", ["host", pytest.param("graph", marks=pytest.mark.slow)])
@pytest.mark.parametrize("view, rand_augment", [("pretrain", None), ("train", None), ("train", RAND_AUGMENT)])
def test_our_contestants_give_whole_batches(engine, view, rand_augment, loading, in_this_process, tmp_path):
    loading = dataclasses.replace(loading, engine=engine, view=view, rand_augment=rand_augment)
    contestant = own_contestant("ours", "it", loading, tmp_path)
    assert contestant.run(tmp_path) > 0
    contestant.check(tmp_path)
    batch = np.load(tmp_path / "batch.npy")
    assert batch.shape == (4, 16, 16, 3) and batch.dtype == np.uint8
    assert in_this_process[0]["min_area"] == {"pretrain": 0.2, "train": 0.08}[view]


@pytest.mark.slow
def test_a_process_of_its_own_does_the_same(loading, tmp_path):
    contestant = own_contestant("ours", "it", loading, tmp_path)
    assert contestant.run(tmp_path) > 0
    contestant.check(tmp_path)


def test_a_process_of_its_own_decodes(loading, tmp_path):
    assert decode_contestant(loading, tmp_path).run(tmp_path) > 0


def test_decoding_alone_decodes_every_image_in_turn(loading, tmp_path, monkeypatch):
    import simplejpeg

    decoded, decode_jpeg = [], simplejpeg.decode_jpeg

    def count(data, *arguments, **options):
        decoded.append(hashlib.sha256(data).hexdigest())
        return decode_jpeg(data, *arguments, **options)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", count)
    description = dataclasses.asdict(dataclasses.replace(loading, batches=12))  # 48 images: each twice
    assert pipeline_work.decode(description)["images"] == 48
    expected = [hashlib.sha256(encode(photograph(number), "JPEG")).hexdigest() for number in range(SAMPLES)]
    assert sorted(decoded) == sorted(2 * expected)


def test_decoding_alone_takes_images_from_all_of_a_large_split(loading, monkeypatch):
    monkeypatch.setattr(pipeline_work, "DECODED_IMAGES", 8)
    taken = pipeline_work._encoded_jpegs(dataclasses.asdict(loading))
    assert taken == [encode(photograph(number), "JPEG") for number in range(0, SAMPLES, 3)]


def test_a_contestant_that_gives_fewer_images_is_refused(loading, monkeypatch, tmp_path):
    monkeypatch.setattr(pipeline_contestants, "timed", lambda words: (1.0, '{"seconds": 1, "images": 11}'))
    with pytest.raises(CommandError, match="^ours gave 11 of 12 images"):
        own_contestant("ours", "it", loading, tmp_path).run(tmp_path)


@pytest.mark.parametrize(
    "batch, sentence",
    [
        (np.zeros((4, 16, 16, 3), np.float32), r"gives batches of float32 \(4, 16, 16, 3\), expected uint8"),
        (np.zeros((4, 8, 16, 3), np.uint8), r"uint8 \(4, 8, 16, 3\), expected uint8 \(4, 16, 16, 3\)"),
        (np.zeros((4, 16, 16, 3), np.uint8), "the same image 4 times"),
    ],
)
def test_a_contestant_that_gives_other_batches_is_refused(batch, sentence, loading, tmp_path):
    np.save(tmp_path / "batch.npy", batch)
    with pytest.raises(CommandError, match=sentence):
        own_contestant("ours", "it", loading, tmp_path).check(tmp_path)


@pytest.mark.timm
@pytest.mark.parametrize("view, rand_augment", [("pretrain", None), ("train", None), ("train", RAND_AUGMENT)])
def test_peers_give_whole_normalised_batches(view, rand_augment, loading, tmp_path):
    loading = dataclasses.replace(loading, view=view, rand_augment=rand_augment)
    contestant = peer_contestant(loading, sys.executable, tmp_path)
    assert contestant.name == ("timm" if rand_augment else "torch")
    assert contestant.run(tmp_path) > 0
    contestant.check(tmp_path)
    batch = np.load(tmp_path / "batch.npy")
    assert batch.shape == (4, 3, 16, 16) and batch.dtype == np.float32
    assert -2.2 < batch.min() < -1.0 < 1.0 < batch.max() < 2.7


@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_peers_read_the_members_that_shards_have(extension):
    data = encode(photograph(3), {"jpg": "JPEG", "png": "PNG"}[extension])
    prepare = pipeline_peers.PrepareSample(np.asarray, is_labelled=True)
    pixels, label = prepare({"__key__": "0", "cls": b"1", "json": b"{}", extension: data})
    assert pixels.shape == photograph(3).shape and label == 1


def test_packages_of_peers_are_those_that_can_be_imported():
    found = peer_packages(sys.executable)
    assert found["versions"].keys() | found["missing"].keys() == set(pipeline_peers.PACKAGES)
    for name in pipeline_peers.PACKAGES:
        if importlib.util.find_spec(name) is None:
            assert found["missing"][name] == "not installed"
    assert "webdataset" in found["versions"]


def test_the_script_of_peers_needs_nothing_of_this_project(tmp_path):
    script = Path(pipeline_peers.__file__)
    words = [sys.executable, "-P", str(script), "versions"]
    printed = subprocess.run(words, cwd=tmp_path, env={}, capture_output=True, text=True, check=True).stdout
    assert json.loads(printed)["versions"]
    assert "tools" not in script.read_text().replace("tools.benchmark", "").replace("tools/", "")


@pytest.mark.slow
def test_peers_that_are_not_installed_are_named_in_one_line(loading, in_this_process, monkeypatch):
    missing = {"torch": "not installed", "torchvision": "not installed"}
    found = {"versions": {"webdataset": "1.0.2"}, "missing": missing}
    monkeypatch.setattr(benchmark_pipeline, "peer_packages", lambda python: found)
    lines = []
    results = measure(loading, log=lines.append, peers="auto", peer_python="other", repeats=1)
    assert results["peers"] is None and "torch" not in results["contestants"]
    (line,) = [line for line in lines if "torch" in line]
    assert line.startswith("torch is not measured: other cannot import torch (not installed), torchvision")
    assert "--peer_python" in line and "\n" not in line


def test_a_peer_takes_part_and_is_compared_with(loading, in_this_process, monkeypatch):
    own = pipeline_contestants.timed

    def timed(words):
        if words[0] != "other":
            return own(words)
        np.save(words[5], np.random.default_rng(0).random((4, 3, 16, 16), np.float32))
        return 1.0, json.dumps({"seconds": 12.0, "images": 12})

    monkeypatch.setattr(pipeline_contestants, "timed", timed)
    versions = {name: "1.0" for name in pipeline_peers.PACKAGES}
    monkeypatch.setattr(benchmark_pipeline, "peer_packages", lambda python: {"versions": versions, "missing": {}})
    results = measure(loading, peers="auto", peer_python="other")
    assert results["contestants"]["torch"]["images_per_second"] == 1
    assert list(results["peers"]) == ["torch", "torchvision", "webdataset"]
    ours, ratio = results["contestants"]["ours"], results["ratios"]["ours / torch"]
    assert ratio["max"] == pytest.approx(max(ours["rounds"]), rel=1e-2)
    assert results["targets"][0]["what"] == "speed, against torch"


@needs_affinity
def test_the_lock_is_seen_held_and_seen_free():
    core, ended = max(os.sched_getaffinity(0)), threading.Event()
    with LockProbe(core) as free:
        time.sleep(0.3)  # without the lock

    def hold():
        while not ended.is_set():
            sum(range(1000))

    thread = threading.Thread(target=hold)
    thread.start()
    with LockProbe(core) as held:
        time.sleep(0.3)
    ended.set()
    thread.join()
    assert free.num_looks > 10 and free.held_share < 0.5
    assert held.num_looks > 2 and held.held_share > 0.5


@needs_affinity
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core cannot be spared")
def test_a_reserved_core_is_kept_free():
    script = (
        "import os; from tools.lock_probe import reserve_core; before = os.sched_getaffinity(0); "
        "core = reserve_core(); print(len(before) > 1, core, os.sched_getaffinity(0) == before - {core})"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert printed == (["True", printed[1], "True"] if printed[0] == "True" else ["False", "None", "True"])


def test_without_a_core_to_spare_the_lock_is_not_measured(loading, in_this_process, monkeypatch, tmp_path):
    monkeypatch.setattr(lock_probe, "reserve_core", lambda: None)
    assert own_figures("lock", loading, tmp_path) == {}
    results = measure(loading, repeats=1)
    assert results["lock"] is None
    assert "Python's lock was not measured" in pipeline_text(results)
    assert not any("lock" in target["what"] for target in results["targets"])


def test_targets_are_met_at_their_limit_and_missed_beyond():
    ratios = {"ours / torch": {"median": 4.0}, "ours / decode": {"median": 0.44}, "graph / torch": {"median": 9.0}}
    results = {"ratios": ratios, "lock": {"microseconds_per_image": 50.0}}
    assert [(target["target"], target["measured"], target["met"]) for target in check_targets(results)] == [
        (">= 4", 4.0, True),
        (">= 0.45", 0.44, False),
        ("<= 50", 50.0, True),
    ]
    results = {"ratios": {"ours / timm": {"median": 1.9}}, "lock": {"microseconds_per_image": 50.1}}
    assert [target["met"] for target in check_targets(results)] == [False, False]


def test_the_text_tells_every_figure(loading, in_this_process):
    results = measure(loading)
    text = pipeline_text(results)
    assert all(row["text"] in text for row in results["contestants"].values())
    assert all(f"speed of {pair}:" in text for pair in results["ratios"])
    assert all(f"{name.replace('_', ' ')} {value:.3f}" in text for name, value in results["stages"].items())
    assert "the targets are for 4,000 images" in text and text.count("target: ") == len(results["targets"])


run = functools.partial(run_command, benchmark, takes_words=True)


@pytest.fixture
def places(shards, tmp_path, monkeypatch):
    """A folder to work in, with `set`, a shard set, `plain`, one without labels, and `empty`, a folder."""
    monkeypatch.chdir(tmp_path)
    Path("set").symlink_to(shards)
    for name in ("plain", "empty"):
        Path(name).mkdir()
    write_set(Path("plain"), classes=None)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["pipeline", "--million"], "--million is for the benchmark shards, received it with pipeline"),
        (["shards", "--view=train"], "--view is for the benchmark pipeline, received it with shards"),
        (["pipeline", "--view=eval"], "--view must be one of pretrain, train, received 'eval'"),
        (["pipeline", "--engine=fast"], "--engine must be one of auto, host, graph, received 'fast'"),
        (["pipeline", "--batch_size=0"], "--batch_size must be at least 1, received 0"),
        (["pipeline", "--batches=0"], "--batches must be at least 1, received 0"),
        (["pipeline", "--workers=0"], "--workers must be at least 1, received 0"),
        (["pipeline", f"--rand_augment={RAND_AUGMENT}"], "--rand_augment is for --view=train"),
        (["pipeline", "--view=train", "--rand_augment=rand-x"], "--rand_augment: Unknown section 'x'"),
        (["pipeline", "--shards=none"], "none does not exist; expected a folder with a shard set"),
        (["pipeline", "--shards=empty"], "empty"),
        (["pipeline", "--shards=http://host/set"], "--shards=http://host/set is a URL"),
        (["pipeline", "--shards=set", "--samples=3"], "--samples is about photographs to make shards of"),
        (["pipeline", "--shards=set", "--split=val"], "set has no split 'val'; its splits are: train"),
        (["pipeline", "--split=val"], "--split names a split of --shards"),
        (["pipeline", "--shards=plain", "--view=train"], "--view=train needs labels, and plain has none"),
        (["pipeline", "--shards=set", "--peer_python=none"], "--peer_python=none cannot be run: No such file"),
        (["pipeline", "--json=none/results.json"], "--output=none/results.json cannot be written"),
        (["pipeline", "--input=empty", "--peers=none"], "empty"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, sentence, capsys, places):
    assert run(*arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("ERROR: ") and sentence in error and error.count("\n") == 1


def test_required_peers_that_are_missing_are_a_mistake(places, monkeypatch, capsys):
    found = {"versions": {}, "missing": {name: "not installed" for name in pipeline_peers.PACKAGES}}
    monkeypatch.setattr(benchmark_pipeline, "peer_packages", lambda python: found)
    arguments = ["--view=train", f"--rand_augment={RAND_AUGMENT}", "--peers=required", "--peer_python=other"]
    assert run("pipeline", "--shards=set", *arguments) == 1
    error = capsys.readouterr().err
    assert "--peers=required, but other cannot import torch (not installed)" in error and "timm" in error


def test_a_split_without_samples_is_a_mistake(tmp_path):
    write_shard_set(tmp_path, [], shard_samples=[])
    with pytest.raises(CommandError, match="'train' of .* has no samples"):
        measure(Loading("pretrain", 4, 16, 1, 1, shards=str(tmp_path)))


@pytest.mark.parametrize("name", ["output", "json"])
def test_the_command_writes_what_it_measured(name, places, capsys, monkeypatch):
    given = {}

    def measure(loading, **options):
        given.update(options, loading=loading)
        return {"images_per_second": 5}

    monkeypatch.setattr(benchmark, "measure_pipeline", measure)
    monkeypatch.setattr(benchmark, "pipeline_text", lambda results: f"a table of {results}")
    arguments = ["--shards", "set", "--batch_size", "32", f"--{name}", "results.json", "--workers=1", "--resized"]
    assert run("pipeline", *arguments) == 0
    assert json.loads(Path("results.json").read_text()) == {"images_per_second": 5}
    assert "a table of {'images_per_second': 5}" in capsys.readouterr().out
    assert given["loading"] == Loading("pretrain", 32, 224, 125, 1, shards="set")
    assert (given["photos"], given["peers"], given["peer_python"]) == (None, "auto", sys.executable)
    assert given["resized"] is True and given["repeats"] == 5


def test_four_thousand_images_are_counted_unless_told_otherwise(places, monkeypatch):
    given = []
    monkeypatch.setattr(benchmark, "measure_pipeline", lambda loading, **options: given.append(loading.images) or {})
    monkeypatch.setattr(benchmark, "pipeline_text", str)
    for arguments in ([], ["--batch_size=300"], ["--batches=2"]):
        assert run("pipeline", *arguments) == 0
    assert given == [4032, 4200, 128]
    assert pipeline_report.COUNTED_IMAGES == 4000
