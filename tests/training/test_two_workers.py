"""Several real processes under MultiWorkerMirroredStrategy: what each reads, and what they evaluate together."""

import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from fixtures.commands import run_command
from fixtures.shard_sets import encode, write_shard_set
from fixtures.tiny_vit import TINY_VIT
from fixtures.worker_processes import clean_environment, end, finish, free_addresses, start, tf_config

import pipeline
from keras_mae import evaluate
from keras_mae.models import Classifier, VisionTransformer
from pipeline.order import ShuffledOrder

SHARDS = 8
SHARD_SAMPLES = 20  # the readers are ahead of the batches by less than the half of an epoch that is a host's
CLASSES = 7
# Two streams of one shard at a time: in an epoch each of two hosts reads half of the shards.
ORDER = {"shuffle_block_shards": 2, "max_streams": 2}


@pytest.fixture(scope="module")
def noise_set(tmp_path_factory):
    """160 grey images of noise in 8 shards, labelled at random with 7 classes."""
    random = np.random.default_rng(0)
    count = SHARDS * SHARD_SAMPLES
    return write_shard_set(
        tmp_path_factory.mktemp("noise"),
        [encode(random.integers(0, 256, (8, 8), dtype=np.uint8)) for _ in range(count)],
        shard_samples=[SHARD_SAMPLES] * SHARDS,
        labels=random.integers(0, CLASSES, count).tolist(),
        classes=tuple("abcdefg"),
    )


@pytest.fixture(scope="module")
def classifier_path(tmp_path_factory):
    """A classifier whose answers differ from image to image."""
    classifier = Classifier(VisionTransformer(**TINY_VIT, final_norm=False), num_classes=CLASSES)
    classifier.build()
    classifier.head.kernel.assign(np.random.default_rng(0).normal(0, 5, classifier.head.kernel.shape))
    path = tmp_path_factory.mktemp("model") / "classifier.keras"
    classifier.save(path)
    return path


def run_hosts(num_hosts, command, folder, codes=None):
    """Runs a command in as many processes, whose TF_CONFIG names all; returns what each of them printed.

    "HOST" in the command becomes the number of the host.
    """
    addresses = free_addresses(num_hosts)
    workers = []
    try:
        for host in range(num_hosts):
            words = [word.replace("HOST", str(host)) for word in command]
            workers.append(start(folder / f"host-{host}.log", words, TF_CONFIG=tf_config(addresses, host)))
        return finish(workers, codes)
    finally:
        end(workers)


READ = """
import functools, json, sys
import pipeline
from keras_mae.training.strategy import make_strategy

opened = set()
sys.addaudithook(lambda event, args: opened.add(str(args[0])) if event == "open" else None)
strategy = make_strategy("multi_worker")
shards, folder, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
for view, steps in (("pretrain", 3), ("eval", 20)):
    opened.clear()
    order = options["order"] if view == "pretrain" else {}
    load = functools.partial(pipeline.load, shards, view=view, image_size=8, channels=1, **options["load"], **order)
    rows = []
    for _, batch in zip(range(steps), pipeline.distribute(strategy, load)):
        features, weights = (batch, None) if view == "pretrain" else (batch[0], batch[2])
        (index,) = strategy.experimental_local_results(features["index"])
        (weight,) = strategy.experimental_local_results(weights)
        assert index.shape == (4,)
        rows.append([i for i, w in zip(index.numpy().tolist(), [1] * 4 if weight is None else weight) if w])
    tars = sorted({path.rsplit("/", 1)[-1] for path in opened if path.endswith(".tar")})
    host = strategy.cluster_resolver.task_id
    with open(f"{folder}/{view}-{host}.json", "w") as file:
        json.dump({"rows": rows, "tars": tars}, file)
"""


@pytest.fixture(scope="module")
def read_by_two(noise_set, tmp_path_factory):
    """What each of two hosts got and opened: view -> list of {"rows": indices per step, "tars": names}."""
    folder = tmp_path_factory.mktemp("read")
    options = json.dumps({"load": {"batch_size": 8, "num_threads": 1}, "order": ORDER})
    run_hosts(2, ["-c", READ, noise_set.root, str(folder), options], folder)
    return {
        view: [json.loads((folder / f"{view}-{host}.json").read_text()) for host in range(2)]
        for view in ("pretrain", "eval")
    }


def tar_names(noise_set, numbers):
    return {noise_set.split("train").shards[number].file for number in numbers}


def test_two_hosts_read_the_halves_of_each_global_batch(noise_set, read_by_two):
    first, second = (host["rows"] for host in read_by_two["pretrain"])
    dataset = pipeline.load(noise_set, view="pretrain", image_size=8, channels=1, batch_size=8, **ORDER)
    whole = [batch["index"].tolist() for batch in dataset.take(3).as_numpy_iterator()]
    assert [a + b for a, b in zip(first, second, strict=True)] == whole
    assert all(set(a).isdisjoint(b) for a, b in zip(first, second, strict=True))


def test_each_of_two_hosts_opens_the_shards_of_its_own_stream_only(noise_set, read_by_two):
    order = ShuffledOrder([SHARD_SAMPLES] * SHARDS, seed=0, **ORDER)
    for stream, host in enumerate(read_by_two["pretrain"]):
        opened = set(host["tars"])
        assert opened and opened <= tar_names(noise_set, order.pieces(stream, 0).shard)


def test_each_of_two_hosts_evaluates_its_own_shards(noise_set, read_by_two):
    for host, read in enumerate(read_by_two["eval"]):
        assert sum(read["rows"], []) == list(range(80 * host, 80 * host + 80))
        assert set(read["tars"]) == tar_names(noise_set, range(4 * host, 4 * host + 4))


@pytest.mark.slow
@pytest.mark.parametrize("num_hosts", [2, 3])
def test_evaluation_on_several_hosts_equals_that_on_one(noise_set, classifier_path, tmp_path, num_hosts):
    flags = [f"--model={classifier_path}", f"--data={noise_set.root}", "--batch_size=12"]
    one, several = tmp_path / "one.json", tmp_path / "several.json"
    assert run_command(evaluate, *flags, f"--output={one}") == 0
    command = ["-m", "keras_mae.evaluate", *flags, f"--output={several}", "--strategy=multi_worker"]
    texts = run_hosts(num_hosts, command, tmp_path)
    assert ["top-1" in text for text in texts] == [True] + [False] * (num_hosts - 1)
    one, several = json.loads(one.read_text()), json.loads(several.read_text())
    for name in ("samples", "accuracy", "top5_accuracy"):
        assert several[name] == one[name]
    assert several["loss"] == pytest.approx(one["loss"], rel=1e-6)
    assert one["samples"] == 160 and 0 < one["accuracy"] < one["top5_accuracy"] < 1


@pytest.mark.slow
def test_a_host_that_fails_ends_the_others_with_a_sentence(noise_set, classifier_path, tmp_path):
    for host in range(2):
        shards = shutil.copytree(noise_set.root, tmp_path / f"shards-{host}")
    damaged = shards / "train-000007.tar"
    content = bytearray(damaged.read_bytes())
    start = content.index(b"\x89PNG")
    content[start + 20 : start + 60] = bytes(40)
    damaged.write_bytes(content)
    command = ["-m", "keras_mae.evaluate", f"--model={classifier_path}", f"--data={tmp_path}/shards-HOST"]
    texts = run_hosts(2, [*command, "--batch_size=12", "--strategy=multi_worker"], tmp_path, codes=[1, 1])
    assert "ERROR: Worker 1 has stopped or cannot be reached" in texts[0]
    assert "ERROR: The data cannot be read" in texts[1] and damaged.name in texts[1]
    assert not any("Traceback" in text for text in texts)


@pytest.mark.slow
def test_a_host_that_waits_for_others_can_be_interrupted():
    command = [sys.executable, "-c", "from keras_mae.training.strategy import make_strategy as m; m('multi_worker')"]
    environment = clean_environment(TF_CONFIG=tf_config(free_addresses(2), 0))
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert any(line.startswith("waiting for 1 other process(es)") for line in process.stderr)
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(timeout=30) == -signal.SIGINT
        finally:
            process.kill()
