"""The benchmark of the step lets every contestant train the same model, and says truly what came of it.

No test looks at a speed. Work that a process of its own does in use is done in this one.
"""

import dataclasses
import functools
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf
from fixtures.commands import TINY, TINY_DECODER, run_command
from fixtures.tiny_vit import TINY_VIT

from keras_mae.commandline import CommandError
from keras_mae.models.complexity import step_flops, total
from keras_mae.pretrain import build_mae
from keras_mae.recipes import PRETRAIN_RECIPES, PretrainRecipe
from tools import benchmark, benchmark_step, step_contestants, step_peers, step_work
from tools.benchmark_flops import architecture_of
from tools.benchmark_step import check_targets, measure_step, step_text
from tools.step_contestants import WARMUP_STEPS, Training, contestant, peer_obstacle, peer_packages, peer_words

RECIPE = PretrainRecipe(
    **{**TINY_VIT, "pixel_mean": (0.5,), "pixel_std": (0.5,)},
    decoder_embed_dim=16,
    decoder_depth=1,
    decoder_num_heads=2,
    batch_size=4,
    warmup_share=0.1,
    base_learning_rate=0.5,
)
# In bfloat16 nothing is compiled by XLA on a CPU, so the first step is short.
TRAINING = Training(RECIPE, "bfloat16", timed_steps=2, threads=1)


# The first step ends after 8 s, of which a step takes 2; the step of 9 s does not count.
SOME_FIGURES = {
    "build_seconds": 1.0,
    "seconds_to_first_step": 8.0,
    "step_seconds": [9.0, 2.0, 2.0],
    "loss": 1.0,
    "peak_memory_bytes": 7,
}


def description(recipe=RECIPE, precision="bfloat16", steps=4) -> dict:
    """As a process finds it in its file."""
    return json.loads(json.dumps({"recipe": dataclasses.asdict(recipe), "precision": precision, "steps": steps}))


@pytest.fixture
def in_this_process(monkeypatch) -> list[tuple[str, dict]]:
    """Lets our own work run here, without the start of a process; holds what was asked for."""
    asked = []

    def timed(words):
        training = json.loads(Path(words[-1]).read_text())
        asked.append((words[-2], training))
        if words[0] == "other":  # the peer's Python
            return 1.0, json.dumps(SOME_FIGURES)
        return 1.0, "a line of a library\n" + json.dumps(step_work.WORK[words[-2]](training))

    monkeypatch.setattr(step_contestants, "timed", timed)
    return asked


def measure(training=TRAINING, log=lambda line: None, **options) -> dict:
    return measure_step(training, log=log, **{"peers": "none", "peer_python": "other", "repeats": 1, **options})


@pytest.fixture
def found_peer(monkeypatch):
    versions = {name: "1.0" for name in step_peers.PACKAGES}
    monkeypatch.setattr(benchmark_step, "peer_packages", lambda python: {"versions": versions, "missing": {}})


def test_results_have_every_contestant_and_ratio(in_this_process, found_peer, tmp_path, monkeypatch):
    monkeypatch.setitem(step_work.WORK, "train", lambda training: {**SOME_FIGURES, "step_seconds": [9.0, 1.0, 1.0]})
    results = measure(peers="auto", scratch=str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    rows = results["contestants"]
    assert list(rows) == ["ours", "torch", "floor"]
    names = ("images_per_second", "first_step_seconds", "peak_memory_bytes")
    assert [results[name] for name in names] == [rows["ours"][name] for name in names] == [4, 7, 7]
    assert [rows["torch"][name] for name in names] == [2, 6, 7]
    assert rows["ours"]["build_seconds"] == rows["ours"]["loss"] == 1
    assert rows["floor"]["images_per_second"] > 0 and rows["floor"]["peak_memory_bytes"] > 1e8
    assert list(results["ratios"]) == ["ours / torch", "ours / floor", "torch / floor"]
    assert results["ratios"]["ours / torch"]["median"] == 2
    assert results["peers"] == {"torch": "1.0", "transformers": "1.0"}
    assert json.loads(json.dumps(results))["ratios"] == results["ratios"]
    text = step_text(results)
    assert all(row["text"] in text for row in rows.values())
    assert all(f"speed of {pair}:" in text for pair in results["ratios"])
    assert text.count("target: ") == len(results["targets"]) == 2
    # Two rounds, the first of which is not counted, and each begins with another contestant.
    assert [work for work, _ in in_this_process] == ["train", "train", "matmuls", "train", "matmuls", "train"]
    assert len({json.dumps(training) for _, training in in_this_process}) == 1
    assert in_this_process[0][1] == {**description(), "threads": 1}


def test_training_is_real():
    model, features = build_mae(RECIPE, "float32"), step_work._features(RECIPE)
    before = float(tf.reduce_mean(model.sample_losses(features, None, model(features))))
    result = step_work.train(description(steps=20))
    assert len(result["step_seconds"]) == 19 and min(result["step_seconds"]) > 0
    assert 0 < result["build_seconds"] < result["seconds_to_first_step"]
    assert result["peak_memory_bytes"] > 1e8
    assert result["loss"] < before - 0.1  # the same batch again and again


@pytest.mark.slow
def test_other_models_train_too():
    recipe = dataclasses.replace(RECIPE, encoder_mask_tokens=True, mask_kind="grid", remat="blocks")
    result = step_work.train(description(recipe, steps=2))
    assert math.isfinite(result["loss"]) and len(result["step_seconds"]) == 1


def test_the_clock_ends_a_run_and_tells_what_took_how_long(monkeypatch):
    clock = step_work.StepClock(3)
    clock.build, clock.fit = 10.0, 12.0
    times = iter([20.0, 21.0, 23.0])
    monkeypatch.setattr(step_work.time, "perf_counter", lambda: next(times))
    assert clock.after_step() == clock.after_step() == {}
    with pytest.raises(step_work.EnoughError):
        clock.after_step()
    assert clock.figures() == {"build_seconds": 2, "seconds_to_first_step": 10, "step_seconds": [1, 2]}


@pytest.mark.parametrize("encoder_mask_tokens", [False, True])
def test_the_floor_is_the_time_of_all_flops_at_the_rate_of_the_dense_products(encoder_mask_tokens, monkeypatch):
    recipe, rate = dataclasses.replace(RECIPE, encoder_mask_tokens=encoder_mask_tokens), 1e9

    def seconds(x, weights, gradient):
        assert (x.shape[0], weights.shape[1]) == tuple(gradient.shape)
        return 3 * 2 * x.shape[0] * weights.shape[0] * weights.shape[1] / rate

    monkeypatch.setattr(step_work, "_seconds_of_products", seconds)
    result = step_work.matmuls(description(recipe, steps=3))
    expected = recipe.batch_size * step_flops(architecture_of(recipe)) / rate
    assert result["step_seconds"] == pytest.approx([expected, expected])


def test_the_products_are_those_of_a_dense_layer_and_its_gradients():
    x, weights, gradient = (tf.random.stateless_normal(shape, (0, 1)) for shape in ((5, 3), (3, 2), (5, 2)))
    with tf.GradientTape() as tape:
        tape.watch((x, weights))
        y = x @ weights
    expected = (y, *tape.gradient(y, (x, weights), output_gradients=gradient))
    for product, other in zip(step_work._products(x, weights, gradient), expected, strict=True):
        tf.debugging.assert_near(product, other)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_floor_multiplies_at_the_given_precision(precision, monkeypatch):
    dtypes = set()
    note = lambda *operands: dtypes.update(x.dtype.name for x in operands) or 1.0  # noqa: E731
    monkeypatch.setattr(step_work, "_seconds_of_products", note)
    step_work.matmuls(description(precision=precision, steps=2))
    assert dtypes == {precision}


@pytest.mark.parametrize(
    "result, sentence",
    [
        ({"step_seconds": [1.0, 1.0], "loss": 1.0}, "it did 1 of 2 steps"),
        ({"step_seconds": [1.0, 1.0, 1.0], "loss": math.nan}, "the loss of it is nan"),
    ],
)
def test_a_contestant_that_does_other_work_is_refused(result, sentence, monkeypatch, tmp_path):
    monkeypatch.setattr(step_contestants, "timed", lambda words: (1.0, json.dumps(result)))
    with pytest.raises(CommandError, match=sentence):
        contestant("it", "text", ["command"], TRAINING, tmp_path, print).run(tmp_path)


def test_the_first_steps_do_not_count(monkeypatch, tmp_path):
    noted, printed = [], {"step_seconds": [50.0, 1.0, 3.0], "loss": 1.0}
    monkeypatch.setattr(step_contestants, "timed", lambda words: (1.0, json.dumps(printed)))
    assert contestant("it", "text", ["command"], TRAINING, tmp_path, noted.append).run(tmp_path) == 2
    assert noted[0]["step_seconds"] == [1, 3] and WARMUP_STEPS == 2


@pytest.mark.parametrize(
    "overrides, flag",
    [
        ({}, None),
        ({"encoder_mask_tokens": True}, "--encoder_mask_tokens=True"),
        ({"mask_kind": "block"}, "--mask_kind=block"),
        ({"image_size": (8, 16)}, "--image_size=8,16"),
        ({"image_size": (8, 8)}, None),
        ({"remat": "blocks"}, "--remat=blocks"),
        ({"norm_pix_loss": False}, None),
    ],
)
def test_what_the_peer_cannot_do_is_named(overrides, flag):
    assert peer_obstacle(dataclasses.replace(RECIPE, **overrides)) == flag


def test_a_peer_that_cannot_run_is_named_in_one_line(in_this_process, monkeypatch):
    monkeypatch.setitem(step_work.WORK, "train", lambda training: SOME_FIGURES)
    found = {"versions": {}, "missing": {"torch": "not installed", "transformers": "not installed"}}
    monkeypatch.setattr(benchmark_step, "peer_packages", lambda python: found)
    lines = []
    results = measure(log=lines.append, peers="auto")
    assert results["peers"] is None and list(results["contestants"]) == ["ours", "floor"]
    (line,) = [line for line in lines if "torch" in line]
    assert line.startswith("torch is not measured: other cannot import torch (not installed), transformers")
    with pytest.raises(CommandError, match="--peers=required, but the peer cannot run: other cannot import torch"):
        measure(peers="required")
    masked = dataclasses.replace(TRAINING, recipe=dataclasses.replace(RECIPE, encoder_mask_tokens=True))
    with pytest.raises(CommandError, match="it has no --encoder_mask_tokens=True; compare without that flag"):
        measure(masked, peers="required")


def test_the_script_of_peers_needs_nothing_of_this_project(tmp_path):
    script = Path(step_peers.__file__)
    words = [sys.executable, "-P", str(script), "versions"]
    printed = subprocess.run(words, cwd=tmp_path, env={}, capture_output=True, text=True, check=True).stdout
    found = json.loads(printed)
    assert found["versions"].keys() | found["missing"].keys() == set(step_peers.PACKAGES)
    assert "tools" not in script.read_text().replace("tools.benchmark", "").replace("tools/", "")


def test_a_python_that_is_not_there_is_a_mistake():
    with pytest.raises(CommandError, match="--peer_python=none cannot be run: No such file"):
        peer_packages("none")


@pytest.mark.parity
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_peer_trains_the_same_model(precision, tmp_path):
    import torch

    results = []
    training = dataclasses.replace(TRAINING, precision=precision)
    peer = contestant("torch", "it", peer_words(sys.executable, "train"), training, tmp_path, results.append)
    assert peer.run(tmp_path) > 0 and math.isfinite(results[0]["loss"])
    model = step_peers.build_model(dataclasses.asdict(RECIPE))
    assert sum(weight.numel() for weight in model.parameters()) == total(architecture_of(RECIPE), "parameters")
    assert (model.config.norm_pix_loss, model.config.mask_ratio) == (True, 0.75)
    assert model.config._attn_implementation == "sdpa"
    optimizer = step_peers.build_optimizer(model, dataclasses.asdict(RECIPE))
    assert isinstance(optimizer, torch.optim.AdamW) and optimizer.defaults["fused"]


def results_of(precision, parameters, ours, first) -> dict:
    ratios = {"ours / torch": {"median": ours}, "ours / floor": {"median": ours}}
    return {"precision": precision, "parameters": parameters, "ratios": ratios, "first_step_seconds": first}


def test_targets_are_met_at_their_limit_and_missed_beyond():
    def checked(*given):
        return [(target["target"], target["met"]) for target in check_targets(results_of(*given))]

    base, large = 111_907_840, 329_541_888
    assert checked("float32", base, 0.99, 20.0) == [(">= 1", False), (">= 0.8", True), ("<= 20", True)]
    assert checked("bfloat16", base, 1.2, 20.1) == [(">= 1.2", True), ("<= 20", False)]
    assert checked("float32", large, 1.0, 40.0) == [(">= 1", True), (">= 0.8", True), ("<= 40", True)]


run = functools.partial(run_command, benchmark, takes_words=True)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--recipe=vit_giant"], "Unknown recipe. Expected one of: vit_tiny"),
        (["--depth=0"], "depth must be above 0. Received: 0"),
        (["--embed_dim=100", "--num_heads=3"], "multiple of the number of heads. Received: width=100, num_heads=3"),
        (["--remat=all"], "remat must be one of none, blocks. Received: 'all'"),
        (["--timed_steps=0"], "--timed_steps must be at least 1, received 0"),
        (["--workers=0"], "--workers must be at least 1, received 0"),
        (["--samples=3"], "--samples is for the benchmarks shards, pipeline, received it with step"),
        (["--engine=host"], "--engine is for the benchmark pipeline, received it with step"),
        (["--target=pca", "--target_file=file"], "expected --target=pixels, received 'pca'"),
        (["--peer_python=none"], "--peer_python=none cannot be run: No such file"),
        (["--json=none/results.json"], "--output=none/results.json cannot be written"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, sentence, capsys):
    assert run("step", *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("ERROR: ") and sentence in error and error.count("\n") == 1


def test_flags_of_the_step_are_refused_elsewhere(capsys):
    assert run("shards", "--embed_dim=3") == 1
    assert "--embed_dim is for the benchmarks step, flops, received it with shards" in capsys.readouterr().err


@pytest.mark.parametrize("batch_size, expected", [([], 16), (["--batch_size=32"], 32)])
def test_the_command_writes_what_it_measured(batch_size, expected, tmp_path, capsys, monkeypatch):
    given = {}

    def measure(training, **options):
        given.update(options, training=training)
        return {"images_per_second": 5}

    monkeypatch.setattr(benchmark_step, "measure_step", measure)
    monkeypatch.setattr(benchmark_step, "step_text", lambda results: f"a table of {results}")
    output = tmp_path / "results.json"
    arguments = ["--recipe=vit_base", "--precision=bfloat16", "--decoder_depth=1", "--workers=1", "--timed_steps=3"]
    assert run("step", *arguments, *batch_size, f"--json={output}") == 0
    assert json.loads(output.read_text()) == {"images_per_second": 5}
    assert "a table of {'images_per_second': 5}" in capsys.readouterr().out
    recipe = dataclasses.replace(PRETRAIN_RECIPES["vit_base"], decoder_depth=1, batch_size=expected)
    assert given["training"] == Training(recipe, "bfloat16", 3, 1)
    assert (given["peers"], given["peer_python"], given["repeats"]) == ("auto", sys.executable, 5)


@pytest.mark.slow
def test_the_whole_command_in_processes_of_its_own(tmp_path):
    output = tmp_path / "results.json"
    tiny = [word for word in (*TINY, *TINY_DECODER) if not word.startswith(("--log", "--resize"))]
    words = ["step", *tiny, "--peers=none", "--repeats=1", "--timed_steps=2", f"--json={output}"]
    subprocess.run([sys.executable, "-m", "tools.benchmark", *words], check=True)
    results = json.loads(output.read_text())
    assert results["images_per_second"] > 0 and list(results["contestants"]) == ["ours", "floor"]
