"""linear_probe, and fine-tuning in part, from end to end on a tiny set."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from fixtures.commands import TINY, run_command
from fixtures.tiny_vit import TINY_VIT

import pipeline
from keras_mae import cached_features, evaluate, finetune, linear_probe
from keras_mae.models import VisionTransformer
from keras_mae.recipes.probing import LINEAR_PROBE_RECIPES
from keras_mae.training import saved_model
from keras_mae.training.initial_weights import fingerprint
from keras_mae.training.metrics_log import read_rows
from keras_mae.training.saved_model import export, load_encoder, load_model, named_weights
from keras_mae.training.step_log import StepLog

# Deterministic ops, once on, stay on in this process, and would keep Keras from using XLA in other tests.
TINY = (*TINY, "--deterministic=false")
FAST = ("--learning_rate=2", "--trust_coefficient=.1", "--noflip", "--min_area=.9")


@pytest.fixture(autouse=True)
def without_saved_models(monkeypatch):
    """Writing SavedModels takes most of the time of these runs; tests/models/test_linear_probe.py writes one."""
    monkeypatch.setattr(saved_model, "write_saved_model", lambda *given: None)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Export folder of an encoder with new weights."""
    folder = tmp_path_factory.mktemp("encoder") / "export"
    model = VisionTransformer(**TINY_VIT)
    model.build()
    export(model, folder)
    return folder


class Killed(BaseException):
    pass


def killed_after(step, monkeypatch, command, *flags):
    original = StepLog.after_step

    def kill(self, logs):
        original(self, logs)
        if self.step == step:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(StepLog, "after_step", kill)
        run_command(command, *flags)


def trace(folder):
    return [(row["step"], row.get("loss"), row.get("val_loss")) for row in read_rows(folder / "metrics.jsonl")]


@pytest.mark.slow
@pytest.mark.parametrize("extra", [("--cache_features",), ()])
def test_a_probe_learns_resumes_exactly_and_is_evaluated(extra, encoder, halves_set, tmp_path, monkeypatch):
    flags = (*TINY, *FAST, f"--data={halves_set}", f"--encoder={encoder}", "--steps=12", *extra)
    flags += ("--checkpoint_every_steps=5",)
    through, stopped = tmp_path / "through", tmp_path / "stopped"
    assert run_command(linear_probe, *flags, f"--run_dir={through}") == 0
    killed_after(7, monkeypatch, linear_probe, *flags, f"--run_dir={stopped}")
    assert run_command(linear_probe, *flags, f"--run_dir={stopped}") == 0
    assert trace(stopped) == trace(through)
    a, b = (load_model(folder) for folder in (stopped, through))
    assert all(np.array_equal(x, y) for x, y in zip(a.weights, b.weights, strict=True))
    assert fingerprint(a.encoder) == fingerprint(load_encoder(encoder))
    losses = [row["loss"] for row in read_rows(through / "metrics.jsonl") if "loss" in row]
    assert losses[-1] < 0.9 * losses[0]


def test_a_probe_on_cached_features_is_evaluated_on_images(encoder, halves_set, tmp_path):
    flags = (*TINY, *FAST, f"--data={halves_set}", f"--run_dir={tmp_path}", f"--encoder={encoder}", "--steps=9")
    assert run_command(linear_probe, *flags, "--cache_features", "--pool=patch_mean") == 0
    logged = [row for row in read_rows(tmp_path / "metrics.jsonl") if "val_accuracy" in row]
    assert [row["step"] for row in logged] == [4, 8, 9]
    output = tmp_path / "results.json"
    assert run_command(evaluate, f"--run_dir={tmp_path}", f"--data={halves_set}", f"--output={output}") == 0
    results = json.loads(output.read_text())
    assert (results["samples"], results["run"]["command"]) == (9, "linear_probe")
    assert results["accuracy"] == pytest.approx(logged[-1]["val_accuracy"])
    assert results["loss"] == pytest.approx(logged[-1]["val_loss"], rel=1e-4)
    model = load_encoder(encoder)
    for split, count in (("train", 35), ("val", 9)):
        (file,) = (tmp_path / "features").glob(f"{split}-*.npz")
        sizes = {"image_size": 8, "channels": 1, "resize_size": 8}
        batch = next(iter(pipeline.load(halves_set, split=split, view="eval", batch_size=count, **sizes)))
        with np.load(file) as kept:
            np.testing.assert_array_equal(kept["labels"], batch[1])
            expected = np.asarray(model(batch[0]["image"]))[:, 1:].mean(1)
            np.testing.assert_allclose(kept["vectors"], expected, atol=1e-5)


REFUSED = {
    "no encoder": ((), "--encoder=PATH is missing"),
    "another width": (("--encoder={encoder}", "--embed_dim=32"), "embed_dim is 16, the recipe has 32"),
    "another pool": (("--encoder={encoder}", "--pool=max"), "pool must be one of class_token, patch_mean"),
    "damaged images": (
        ("--encoder={encoder}", "--cache_features", "--max_corrupt=2"),
        "max_corrupt must be 0. Received: max_corrupt=2",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_probing_refuses(name, encoder, halves_set, tmp_path, capsys):
    flags, sentence = REFUSED[name]
    flags = [flag.format(encoder=encoder) for flag in flags]
    run_dir = tmp_path / "run"
    assert run_command(linear_probe, *TINY, f"--data={halves_set}", f"--run_dir={run_dir}", *flags) == 1
    error = capsys.readouterr().err
    assert error.startswith("ERROR: ") and sentence in error and not run_dir.exists()


@pytest.mark.slow
def test_features_are_computed_once(encoder, halves_set, tmp_path, monkeypatch):
    flags = (*TINY, f"--data={halves_set}", f"--run_dir={tmp_path}", f"--encoder={encoder}", "--cache_features")
    passes = []
    original = cached_features.read_features
    monkeypatch.setattr(cached_features, "read_features", lambda *given: passes.append(1) or original(*given))
    assert run_command(linear_probe, *flags, "--steps=2") == 0
    assert run_command(linear_probe, *flags, "--steps=9") == 0
    assert len(passes) == 2  # of train and val, over both runs


def test_accumulation_is_for_one_replica():
    recipe = dataclasses.replace(LINEAR_PROBE_RECIPES["digits"], accumulation_steps=2)
    linear_probe.check_replicas(SimpleNamespace(num_replicas_in_sync=1), recipe)
    with pytest.raises(ValueError, match="accumulation_steps must be 1 on several. Received: .*replicas=2"):
        linear_probe.check_replicas(SimpleNamespace(num_replicas_in_sync=2), recipe)


@pytest.mark.slow
@pytest.mark.parametrize("number, trained", [("0.5", ("block_1/norm2", "block_1/mlp")), ("1", ("block_1",))])
def test_what_is_not_trained_stays_to_the_last_bit(number, trained, encoder, halves_set, tmp_path):
    flags = (f"--data={halves_set}", f"--run_dir={tmp_path}", f"--encoder={encoder}", "--steps=3", "--ema_decay=.5")
    assert run_command(finetune, *TINY, *flags, f"--trainable_blocks={number}") == 0
    before, after = (named_weights(load_encoder(path, final_norm=False)) for path in (encoder, tmp_path))
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith(trained)}


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (("--trainable_blocks=3",), "a whole number of blocks, at most depth=2. Received: 3"),
        (("--trainable_blocks=1", "--from_scratch"), "from_scratch has new weights"),
    ],
)
def test_parts_that_cannot_be_trained_are_refused(flags, sentence, halves_set, tmp_path, capsys):
    run_dir = tmp_path / "run"
    assert run_command(finetune, *TINY, f"--data={halves_set}", f"--run_dir={run_dir}", *flags) == 1
    error = capsys.readouterr().err
    assert error.startswith("ERROR: ") and sentence in error and not run_dir.exists()
