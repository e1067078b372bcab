"""--recipe=list, --print, --recipe=FILE, and recipes that bring their own start, from the command line."""

import json

import pytest
from absl import flags
from fixtures.commands import TINY, run_command

from keras_mae import finetune, pretrain, pretrain_tokenizer
from keras_mae.training.metrics_log import read_rows
from pipeline.manifest import load_manifest


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (pretrain, ("vit_base", "vit_huge_1600", "digits")),
        (finetune, ("vit_base", "vit_base_paper", "vit_huge_448", "vit_large_scratch")),
        (pretrain_tokenizer, ("dvae_small", "dvae")),
    ],
)
def test_recipes_are_listed_without_data(module, names, capsys):
    assert run_command(module, "--recipe=list") == 0
    assert set(names) <= {line.split()[0] for line in capsys.readouterr().out.splitlines()}


def test_training_asks_for_what_a_list_does_without(halves_set):
    for given, missing in (("--run_dir=run", "data"), (f"--data={halves_set}", "run_dir")):
        with pytest.raises(flags.IllegalFlagValueError, match=f"--{missing} is missing"):
            run_command(pretrain, given)


def test_a_recipe_is_printed_after_overrides_without_data(capsys):
    assert run_command(finetune, "--recipe=vit_base_scratch", "--print", "--epochs=3", "--warmup_share=.2") == 0
    text = json.loads(capsys.readouterr().out)
    assert (text["command"], text["provenance"]["recipe"]) == ("finetune", "vit_base_scratch")
    assert [text["recipe"][name] for name in ("epochs", "warmup_epochs", "warmup_share")] == [3, None, 0.2]
    assert text["derived"]["peak_learning_rate"] == pytest.approx(1.6e-3)
    assert text["derived"]["missing"].startswith("--data")


def test_with_data_the_steps_are_printed_and_nothing_is_started(halves_set, tmp_path, capsys):
    given = (f"--data={halves_set}", f"--run_dir={tmp_path / 'run'}", "--batch_size=8", "--epochs=10")
    assert run_command(pretrain, "--recipe=vit_tiny", "--print", *given) == 0
    derived = json.loads(capsys.readouterr().out)["derived"]
    assert derived["images"] == load_manifest(halves_set).split("train").samples == 35
    assert (derived["total_steps"], derived["warmup_steps"]) == (44, pytest.approx(2.2))  # 350 images / 8, 5%
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("--recipe=vit_enormous",), "Unknown recipe. Expected one of: vit_tiny, vit_small"),
        (("--recipe=/nowhere/recipe.json",), "There is no recipe file /nowhere/recipe.json"),
        (("--data=/nowhere/at/all",), "/nowhere/at/all"),
        (("--batch_size=0",), "batch_size must be above 0"),
    ],
)
def test_printing_refuses_what_training_would(given, sentence, capsys):
    assert run_command(finetune, "--print", *given) == 1
    assert sentence in capsys.readouterr().err


def test_what_is_printed_is_a_recipe_file(tmp_path, capsys):
    assert run_command(finetune, "--recipe=vit_huge_448", "--print", "--mixup=.5", "--steps=9") == 0
    file = tmp_path / "mine.json"
    file.write_text(capsys.readouterr().out)
    assert run_command(finetune, f"--recipe={file}", "--print", "--seed=1") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["recipe"] == {**json.loads(file.read_text())["recipe"], "seed": 1}
    assert "provenance" not in again  # nobody measured this one


def test_a_scratch_recipe_takes_no_encoder(halves_set, tmp_path, capsys):
    given = (f"--data={halves_set}", f"--run_dir={tmp_path / 'run'}", "--recipe=vit_base_scratch")
    assert run_command(finetune, *given, "--encoder=encoder.keras") == 1
    assert "Received: encoder=encoder.keras, from_scratch=True" in capsys.readouterr().err
    assert run_command(finetune, *given, "--nofrom_scratch") == 1
    assert "Received: encoder=None, from_scratch=False" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_recipe_of_a_run_folder_repeats_the_run(halves_set, tmp_path):
    given = (*TINY, "--from_scratch", "--images=40", "--warmup_steps=2", "--eval_every_share=.5", "--mixup=.8")
    deterministic = "--deterministic=false"  # once on it stays on in this process; without it small runs repeat too
    first, second = tmp_path / "first", tmp_path / "second"
    assert run_command(finetune, *given, deterministic, f"--data={halves_set}", f"--run_dir={first}") == 0
    again = (f"--recipe={first / 'recipe.json'}", deterministic, f"--data={halves_set}", f"--run_dir={second}")
    assert run_command(finetune, *again) == 0
    assert (second / "recipe.json").read_text() == (first / "recipe.json").read_text()

    def trace(folder):
        return [(row["step"], row.get("loss"), row.get("val_loss")) for row in read_rows(folder / "metrics.jsonl")]

    assert trace(first) == trace(second)
    assert [step for step, _, val_loss in trace(first) if val_loss is not None] == [2, 4, 5]
