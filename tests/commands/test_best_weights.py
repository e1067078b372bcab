"""finetune exports the weights of its best evaluation beside the last ones, and evaluate takes either."""

import json

import numpy as np
import pytest
from fixtures.commands import TINY, run_command

from keras_mae import evaluate, finetune
from keras_mae.training.metrics_log import read_rows
from keras_mae.training.saved_model import load_model
from keras_mae.training.step_log import StepLog

# Enough to have them all right before the end
FLAGS = ("--from_scratch", "--steps=12", "--eval_every_steps=2", "--base_learning_rate=2", "--layer_decay=1")
FLAGS = (*TINY, "--deterministic=false", *FLAGS, "--warmup_steps=2", "--noflip", "--min_area=.9")


def accuracies(run_dir):
    return {row["step"]: row["val_accuracy"] for row in read_rows(run_dir / "metrics.jsonl") if "val_accuracy" in row}


def weights_of(folder):
    return load_model(folder).get_weights()


@pytest.fixture(scope="module")
def finetuned(halves_set, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("best") / "run"
    assert run_command(finetune, *FLAGS, f"--data={halves_set}", f"--run_dir={run_dir}") == 0
    return run_dir


def test_both_exports_are_what_the_log_says_of_them(finetuned, halves_set, tmp_path):
    logged = accuracies(finetuned)
    highest = max(logged.values())
    first = min(step for step, value in logged.items() if value == highest)
    best = json.loads((finetuned / "export" / "best" / "best.json").read_text())
    assert best == {"step": first, "epoch": pytest.approx(first * 8 / 35), "val_accuracy": highest}
    assert first < 12
    pairs = zip(weights_of(finetuned / "export"), weights_of(finetuned / "export" / "best"), strict=True)
    assert not all(np.array_equal(last, kept) for last, kept in pairs)
    for which, accuracy in (("best", highest), ("last", logged[12])):
        output = tmp_path / f"{which}.json"
        command = (f"--run_dir={finetuned}", f"--which={which}", f"--data={halves_set}", f"--output={output}")
        assert run_command(evaluate, *command, "--batch_size=9") == 0
        assert json.loads(output.read_text())["accuracy"] == pytest.approx(accuracy)


def test_which_weights_is_a_question_to_run_folders(finetuned, halves_set, capsys):
    command = (f"--model={finetuned / 'export'}", "--which=best", f"--data={halves_set}")
    assert run_command(evaluate, *command) == 1
    assert "--which is about the models of --run_dir" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("ema", [(), ("--ema_decay=.6",)], ids=["weights", "averages"])
@pytest.mark.parametrize("killed_at", [5, 9])
def test_a_killed_run_exports_the_same_best(halves_set, tmp_path, monkeypatch, killed_at, ema):
    class Killed(BaseException):
        pass

    def kill(self, logs):
        after_step(self, logs)
        if self.step == killed_at:
            raise Killed

    after_step = StepLog.after_step
    given = (*FLAGS, *ema, f"--data={halves_set}", "--checkpoint_every_steps=4")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run_command(finetune, *given, f"--run_dir={whole}") == 0
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(StepLog, "after_step", kill)
        run_command(finetune, *given, f"--run_dir={killed}")
    assert run_command(finetune, *given, f"--run_dir={killed}") == 0
    for folder in ("export", "export/best"):
        pairs = zip(weights_of(whole / folder), weights_of(killed / folder), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)
    a, b = ((folder / "export" / "best" / "best.json").read_text() for folder in (whole, killed))
    assert a == b
