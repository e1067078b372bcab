"""What a pre-training shows of itself: kNN, a trace, a tracker, and the samples of a batch whose loss is no number."""

import importlib.machinery
import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest
from fixtures.commands import TINY, TINY_DECODER, run_command
from fixtures.shard_sets import encode, write_shard_set

import pipeline
from keras_mae import knn, pretrain
from keras_mae.evaluation.results_file import read_results
from keras_mae.recipes import PRETRAIN_RECIPES
from keras_mae.recipes.fields import override
from keras_mae.run_data import batch_samples
from keras_mae.training.metrics_log import read_rows

TINY = (*TINY, *TINY_DECODER, "--deterministic=false")


@pytest.fixture
def wandb(monkeypatch):
    """A module in the place of wandb; `wandb.rows` has what was logged, `wandb.closed` the exit code."""
    module = types.ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    module.rows, module.closed = [], []
    run = types.SimpleNamespace(
        id="one",
        define_metric=lambda name, step_metric: None,
        log=module.rows.append,
        finish=lambda exit_code: module.closed.append(exit_code),
    )
    module.Error, module.Image = type("Error", (Exception,), {}), lambda pixels: pixels.shape
    module.Settings, module.init = lambda console: None, lambda **given: run
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_a_run_is_watched_in_every_way(halves_set, tmp_path, wandb, monkeypatch):
    # Other tests export; it takes seconds.
    monkeypatch.setattr("keras_mae.training.saved_model.export", lambda model, folder, *others, **named: folder.mkdir())
    run_dir = tmp_path / "run"
    watched = ("--knn_every_epochs=.5", "--knn_samples=30", "--profile_steps=2,3", "--wandb_project=halves")
    flags = (f"--data={halves_set}", f"--run_dir={run_dir}", "--steps=5", "--eval_every_epochs=9", *watched)
    assert run_command(pretrain, *TINY, *flags) == 0
    rows = read_rows(run_dir / "metrics.jsonl")
    accuracies = {row["step"]: row["val_knn"] for row in rows if "val_knn" in row}
    assert list(accuracies) == [2, 4, 5]
    assert len(list(run_dir.glob("tensorboard/plugins/profile/*/*.xplane.pb"))) == 1
    assert [row for row in wandb.rows if "original_masked_reconstruction" not in row] == rows
    assert wandb.rows[-1]["original_masked_reconstruction"] == 8 * [(8, 24, 1)]
    assert wandb.closed == [0]


@pytest.mark.slow
def test_the_command_finds_what_the_run_found_at_its_end(halves_set, tmp_path):
    run_dir, output = tmp_path / "run", tmp_path / "results.json"
    flags = (f"--data={halves_set}", f"--run_dir={run_dir}", "--eval_every_epochs=9")
    assert run_command(pretrain, *TINY, *flags, "--steps=5") == 0
    assert run_command(pretrain, *TINY, *flags, "--steps=9", "--knn_every_epochs=1") == 0  # may change on resume
    last = [row["val_knn"] for row in read_rows(run_dir / "metrics.jsonl") if "val_knn" in row][-1]
    assert run_command(knn, f"--encoder={run_dir}", f"--data={halves_set}", "--k=20", f"--output={output}") == 0
    assert read_results(output)["knn"] == {"20": pytest.approx(last)}


@pytest.mark.slow
def test_a_loss_that_is_no_number_names_the_samples_of_its_batch(halves_set, tmp_path, capsys):
    flags = (f"--data={halves_set}", f"--run_dir={tmp_path}", "--steps=9", "--base_learning_rate=1e38")
    assert run_command(pretrain, *TINY, *flags, "--warmup_share=0", "--nonorm_pix_loss") == 1
    found = json.loads((tmp_path / "non_finite_loss.json").read_text())
    error = capsys.readouterr().err
    assert f"ERROR: The loss of step {found['step']} is {found['loss']}. Its batch holds the samples " in error
    batches = pipeline.load(
        halves_set,
        split="train",
        view="pretrain",
        batch_size=8,
        image_size=8,
        channels=1,
        start_step=found["step"] - 1,
    )
    np.testing.assert_array_equal(found["samples"], next(iter(batches))["index"])
    assert f"{', '.join(map(str, found['samples']))} of the split" in error


@pytest.mark.parametrize("options", [{}, {"shuffle_block_shards": 2, "seed": 7}, {"max_streams": 1}])
def test_the_samples_of_a_batch_are_known_without_reading(tmp_path, options):
    """Batches that span shards, streams and epochs, against the `index` that batches bring."""
    images = [encode(np.full((8, 8), number, "uint8")) for number in range(23)]
    shard_set = write_shard_set(tmp_path, images, shard_samples=[5, 2, 7, 9])
    recipe = override(PRETRAIN_RECIPES["vit_tiny"], {"batch_size": 6, **options})
    order = {name: getattr(recipe, name) for name in ("seed", "shuffle_block_shards", "max_streams")}
    loaded = pipeline.load(shard_set, view="pretrain", batch_size=6, image_size=8, channels=1, **order)
    for number, batch in enumerate(loaded.take(9)):
        assert batch_samples(shard_set.split(None), recipe, number) == batch["index"].numpy().tolist()


@pytest.fixture
def unlabelled_set(tmp_path):
    images = [encode(np.full((8, 8), number, "uint8")) for number in range(30)]
    write_shard_set(tmp_path, images, shard_samples=[30])
    return str(tmp_path)


REFUSED = {
    "profile order": (("--profile_steps=5,2",), "profile_steps takes the first and the last step"),
    "profile range": (("--profile_steps=2,9",), "which has 4 steps. Received: 2,9"),
    "samples alone": (("--knn_samples=25",), "knn_samples is for knn_every_epochs, which is unset"),
    "few samples": (("--knn_every_epochs=1", "--knn_samples=19"), "looks for 20 neighbours. Received: 19 samples"),
    "no epochs": (("--knn_every_epochs=0",), "knn_every_epochs must be above 0"),
    "no validation": (("--knn_every_epochs=1", "--val_split=none"), "knn_every_epochs needs a validation split"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_watched_is_refused(name, halves_set, tmp_path, capsys):
    flags, sentence = REFUSED[name]
    given = (*TINY, f"--data={halves_set}", f"--run_dir={tmp_path / 'run'}", "--steps=4", *flags)
    assert run_command(pretrain, *given) == 1
    error = capsys.readouterr().err
    assert error.startswith("ERROR: ") and sentence in error
    assert not (tmp_path / "run").exists()


def test_knn_without_classes_is_refused(unlabelled_set, tmp_path, capsys):
    given = (f"--data={unlabelled_set}", f"--run_dir={tmp_path / 'run'}", "--knn_every_epochs=1", "--steps=4")
    assert run_command(pretrain, *TINY, *given) == 1
    assert "knn_every_epochs needs a shard set with classes" in capsys.readouterr().err


def test_a_tracker_that_is_not_installed_is_refused(halves_set, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("keras_mae.training.experiment_tracker.importlib.util.find_spec", lambda name: None)
    given = (f"--data={halves_set}", f"--run_dir={tmp_path / 'run'}", "--wandb_project=x", "--steps=4")
    assert run_command(pretrain, *TINY, *given) == 1
    assert "--wandb_project needs the package wandb" in capsys.readouterr().err


TWO_REPLICAS = """
import sys
import numpy as np
import pipeline
from functools import partial
from keras_mae.evaluation.features import make_encode, pooled, read_features
from keras_mae.evaluation.knn import check_classes
from keras_mae.models import VisionTransformer
from keras_mae.training.strategy import make_strategy, split_cpu

split_cpu(2, "mirrored")
strategy = make_strategy("mirrored")
with strategy.scope():
    encoder = VisionTransformer(8, 2, 1, 16, 2, 2, pixel_mean=.5, pixel_std=.5)
    encoder.build()
load = partial(pipeline.load, sys.argv[1], split="train", view="eval", batch_size=8, image_size=8, channels=1)
check_classes(pipeline.distribute(strategy, load), strategy)
for samples in (None, 20):
    features = read_features(make_encode(pooled(encoder), strategy), pipeline.distribute(strategy, load), samples)
    batch, labels, _ = next(iter(load(batch_size=35)))
    np.testing.assert_array_equal(features.index, np.arange(samples or 35))
    np.testing.assert_array_equal(features.labels, labels[:samples])
    np.testing.assert_allclose(features.vectors, np.asarray(encoder(batch["image"]))[:samples, 0], atol=1e-5)
print("each image once")
"""


@pytest.mark.slow
def test_two_replicas_bring_each_image_once(halves_set):
    command = [sys.executable, "-c", TWO_REPLICAS, halves_set]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
    assert process.stdout == "each image once\n", process.stderr[-3000:]
