"""pretrain, finetune and evaluate from end to end on a tiny set, and what they refuse."""

import json
import re
import shutil

import numpy as np
import pytest
from fixtures.commands import TINY, TINY_DECODER, run_command

from keras_mae import evaluate, finetune, pretrain
from keras_mae.models import DiscreteVAE
from keras_mae.models.pca_file import PatchPCA
from keras_mae.training.metrics_log import read_rows
from keras_mae.training.model_card import read_card
from keras_mae.training.saved_model import load_encoder, load_model
from tools import check_saved_model, reconstruct

# Deterministic ops, once on, stay on in this process, and would keep Keras from using XLA in other tests.
TINY = (*TINY, "--deterministic=false")


@pytest.fixture(scope="module")
def pretrained(halves_set, tmp_path_factory):
    """Run folder of a pre-training of 12 steps."""
    run_dir = tmp_path_factory.mktemp("runs") / "pretrain"
    flags = (f"--data={halves_set}", f"--run_dir={run_dir}", "--steps=12", "--norm_pix_loss=false")
    assert run_command(pretrain, *TINY, *TINY_DECODER, *flags, "--checkpoint_every_steps=5") == 0
    return run_dir


def test_pretraining_leaves_what_is_contracted(pretrained):
    recipe = json.loads((pretrained / "recipe.json").read_text())
    assert (recipe["command"], recipe["recipe"]["steps"], recipe["recipe"]["embed_dim"]) == ("pretrain", 12, 16)
    rows = read_rows(pretrained / "metrics.jsonl")
    losses = [row["loss"] for row in rows if "loss" in row]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 13))
    assert losses[-1] < losses[0]
    assert all(loss == float(np.float32(loss)) for loss in losses)
    assert {row["step"] for row in rows if "val_loss" in row} == {4, 8, 12}
    assert sorted(p.name for p in (pretrained / "checkpoints").iterdir()) == ["step-00000010.npz", "step-00000012.npz"]
    exported = {path.name for path in (pretrained / "export").iterdir()}
    assert exported == {"encoder.keras", "saved_model", "card.json", "README.md"}
    assert list((pretrained / "tensorboard").glob("events*"))


def test_a_finished_run_says_so(pretrained, halves_set, capsys):
    before = (pretrained / "metrics.jsonl").read_bytes()
    flags = (f"--data={halves_set}", f"--run_dir={pretrained}", "--steps=12", "--norm_pix_loss=false")
    assert run_command(pretrain, *TINY, *TINY_DECODER, *flags) == 0
    assert "this run is finished" in capsys.readouterr().out
    assert (pretrained / "metrics.jsonl").read_bytes() == before


def test_going_on_equals_going_through(pretrained, halves_set, tmp_path):
    """12 steps at once, against 7 (as if killed) and then the rest: every loss and weight to the last bit."""
    flags = ("--norm_pix_loss=false", f"--data={halves_set}", f"--run_dir={tmp_path}", "--checkpoint_every_steps=5")

    class Killed(BaseException):
        pass

    def kill(self, logs):
        original(self, logs)
        if self.step == 7:
            raise Killed

    from keras_mae.training.step_log import StepLog

    original = StepLog.after_step
    StepLog.after_step = kill
    try:
        with pytest.raises(Killed):
            run_command(pretrain, *TINY, *TINY_DECODER, *flags, "--steps=12")
    finally:
        StepLog.after_step = original
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl") if "loss" in row][-1] == 7
    assert run_command(pretrain, *TINY, *TINY_DECODER, *flags, "--steps=12") == 0

    def trace(folder):
        return [(row["step"], row.get("loss"), row.get("val_loss")) for row in read_rows(folder / "metrics.jsonl")]

    assert trace(tmp_path) == trace(pretrained)
    a, b = (load_encoder(folder / "export") for folder in (tmp_path, pretrained))
    assert all(np.array_equal(x, y) for x, y in zip(a.weights, b.weights, strict=True))


@pytest.mark.parametrize("form", ["export/encoder.keras", "export/saved_model"])
def test_fine_tuning_learns_and_moves_the_encoder(pretrained, halves_set, tmp_path, form, capsys):
    run_dir = tmp_path / "finetune"
    flags = (f"--data={halves_set}", f"--run_dir={run_dir}", "--steps=24", "--layer_decay=.8", "--noflip")
    learn = ("--min_area=.9", "--base_learning_rate=.3", f"--encoder={pretrained / form}")
    assert run_command(finetune, *TINY, *flags, *learn) == 0
    losses = [row["loss"] for row in read_rows(run_dir / "metrics.jsonl") if "loss" in row]
    assert losses[-1] < 0.9 * losses[0]
    before, after = load_encoder(pretrained / "export", final_norm=False), load_model(run_dir).encoder
    moved = [not np.array_equal(a, b) for a, b in zip(before.weights, after.weights, strict=True)]
    assert all(moved)
    output = tmp_path / "results.json"
    command = (f"--run_dir={run_dir}", f"--data={halves_set}", f"--output={output}", "--batch_size=3")
    assert run_command(evaluate, *command) == 0
    results = json.loads(output.read_text())
    assert (results["split"], results["samples"]) == ("val", 9)
    logged = [row["val_accuracy"] for row in read_rows(run_dir / "metrics.jsonl") if "val_accuracy" in row][-1]
    assert results["accuracy"] == pytest.approx(logged)
    check = (f"--export={run_dir / 'export'}", f"--data={halves_set}")
    assert run_command(check_saved_model, *check) == 0
    assert "equal to the Keras model on 9 images" in capsys.readouterr().out


def test_reconstruct_draws_a_figure(pretrained, halves_set, tmp_path):
    output = tmp_path / "figure.png"
    flags = (f"--run_dir={pretrained}", f"--output={output}")
    assert run_command(reconstruct, *flags, f"--data={halves_set}", "--count=3") == 0
    assert output.read_bytes().startswith(b"\x89PNG")


def write_pca(path, seed=0, patch_size=2):
    rng, values = np.random.default_rng(seed), patch_size**2
    basis = np.linalg.qr(rng.standard_normal((values, values)))[0].astype("float32")
    sizes = {"patch_size": patch_size, "channels": 1, "pixel_mean": (0.5,), "pixel_std": (0.5,)}
    with open(path, "wb") as file:
        PatchPCA(np.zeros(values, "float32"), basis[:3], np.ones(3), values, **sizes, source={}).write(file)


CHOICES = ("--mask_kind=block", "--encoder_mask_tokens", "--loss_on_all_patches")


def test_a_run_keeps_its_target(halves_set, tmp_path, capsys):
    """The copy is enough to go on and to load the run; another file under the same name is refused."""
    run_dir, pca = tmp_path / "run", tmp_path / "pca.npz"
    write_pca(pca)
    flags = (f"--data={halves_set}", f"--run_dir={run_dir}", "--target=pca", f"--target_file={pca}", *CHOICES)
    command = (*TINY, *TINY_DECODER, *flags)
    assert run_command(pretrain, *command, "--steps=2") == 0
    assert (run_dir / "target" / "pca.npz").read_bytes() == pca.read_bytes()
    pca.unlink()
    assert run_command(pretrain, *command, "--steps=2") == 0
    assert "this run is finished" in capsys.readouterr().out
    model = pretrain.load_run(run_dir)
    assert (model.mask_kind, model.encoder_mask_tokens, model.loss_on_all_patches) == ("block", True, True)
    assert (model.decoder.patch_values, model.can_reconstruct) == (3, True)
    write_pca(pca, seed=1)
    assert run_command(pretrain, *command, "--steps=6") == 1
    assert "data.target_file of the run is" in capsys.readouterr().err
    assert (run_dir / "target" / "pca.npz").read_bytes() != pca.read_bytes()


@pytest.mark.slow
def test_a_run_on_tokens_is_rebuilt_with_its_tokenizer(halves_set, tmp_path):
    run_dir, file = tmp_path / "run", tmp_path / "tokenizer.keras"
    tokenizer = DiscreteVAE(channels=1, num_codes=8, hidden_dim=4, blocks_per_group=1, code_dim=4)
    tokenizer.build()
    tokenizer.save(file)
    (tmp_path / "card.json").write_text('{"source_license": "none of ours"}')
    flags = (f"--data={halves_set}", f"--run_dir={run_dir}", "--target=tokens", f"--target_file={file}", "--steps=3")
    assert run_command(pretrain, *TINY, *TINY_DECODER, *flags, "--mask_kind=grid") == 0
    file.unlink()
    assert read_card(run_dir)["source_license"] == read_card(run_dir / "target")["source_license"] == "none of ours"
    target = pretrain.load_run(run_dir).target
    for a, b in zip(target.tokenizer.weights, tokenizer.encoder.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    kept = [weight.shape for weight in target.tokenizer.weights if len(weight.shape) == 4]
    with np.load(next((run_dir / "checkpoints").glob("step-*.npz"))) as arrays:
        assert kept and not {arrays[name].shape for name in arrays.files} & set(kept)  # its file holds them already
    again = [f"--run_dir={tmp_path / 'again'}" if "run_dir" in flag else flag for flag in flags if "file" not in flag]
    again.append(f"--target_file={run_dir / 'target' / 'tokenizer.keras'}")
    assert run_command(pretrain, *TINY, *TINY_DECODER, *again, "--mask_kind=grid", f"--init={run_dir}") == 0


def test_pretraining_refuses_a_pca_of_other_patches(halves_set, tmp_path, capsys):
    write_pca(tmp_path / "pca.npz", patch_size=4)
    flags = (f"--data={halves_set}", f"--run_dir={tmp_path / 'run'}", "--target=pca")
    assert run_command(pretrain, *TINY, *TINY_DECODER, *flags, f"--target_file={tmp_path / 'pca.npz'}") == 1
    assert "was fitted with patch_size=4, but the model has patch_size=2" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


REFUSED = {
    "unknown recipe": (("--recipe=vit_enormous",), "Unknown recipe. Expected one of: vit_tiny, vit_small"),
    "image size": (("--image_size=7",), "multiples of the patch size"),
    "two warmups": (("--warmup_epochs=1", "--warmup_share=.1"), "warmup_epochs or warmup_share, not both"),
    "mask ratio": (("--mask_ratio=1",), "mask_ratio is the share of patches removed"),
    "batch size": (("--batch_size=0",), "batch_size must be above 0"),
    "numbers": (("--pixel_mean=a,b",), "pixel_mean takes numbers"),
    "channels": (("--channels=3", "--pixel_mean=.5,.5"), "pixel_mean needs 1 or channels=3 values"),
    "strategy": (("--strategy=all",), "strategy must be one of auto, none, mirrored"),
    "precision": (("--precision=float8",), "precision must be one of"),
    "missing shards": (("--data=/nowhere/at/all",), "/nowhere/at/all"),
    "split": (("--split=test",), "test"),
    "patch size": (("--patch_size=0",), "patch_size must be above 0"),
    "epochs": (("--epochs=nan",), "epochs must be above 0. Received: nan"),
    "decoder heads": (("--decoder_num_heads=3",), "multiple of the number of heads"),
    "target without file": (("--target=pca",), "target=pca and target=tokens need a target_file"),
    "no such target file": (("--target=pca", "--target_file=/nowhere.npz"), "There is no file /nowhere.npz"),
    "grid masks": (("--mask_kind=grid", "--mask_ratio=.5"), "mask_ratio must be 0.75 for grid masking"),
    "virtual devices": (("--virtual_cpus=2",), "virtual_cpus is for strategy=mirrored"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_pretraining_refuses(name, halves_set, tmp_path, capsys):
    flags, sentence = REFUSED[name]
    run_dir = tmp_path / "run"
    given = (*TINY, *TINY_DECODER, f"--data={halves_set}", f"--run_dir={run_dir}", "--steps=2", *flags)
    assert run_command(pretrain, *given) == 1
    error = capsys.readouterr().err
    assert error.startswith("ERROR: ") and sentence in error
    assert not run_dir.exists()


def test_another_run_in_the_folder_is_refused(pretrained, halves_set, capsys):
    flags = (f"--data={halves_set}", f"--run_dir={pretrained}", "--steps=12")
    assert run_command(pretrain, *TINY, *TINY_DECODER, *flags, "--norm_pix_loss=true") == 1
    assert "recipe.norm_pix_loss of the run is False, received True" in capsys.readouterr().err


def test_fine_tuning_refuses_an_encoder_that_does_not_fit(pretrained, halves_set, tmp_path, capsys):
    flags = (f"--data={halves_set}", f"--run_dir={tmp_path / 'run'}", f"--encoder={pretrained / 'export'}")
    assert run_command(finetune, *TINY, *flags, "--embed_dim=32") == 1
    assert "embed_dim is 16, the recipe has 32" in capsys.readouterr().err


def test_fine_tuning_refuses_a_drop_path_rate_of_one(halves_set, tmp_path, capsys):
    flags = (f"--data={halves_set}", f"--run_dir={tmp_path / 'run'}", "--from_scratch", "--drop_path_rate=1")
    assert run_command(finetune, *TINY, *flags) == 1
    assert "drop_path_rate must be at least 0 and below 1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_fine_tuning_needs_an_encoder_or_from_scratch(halves_set, tmp_path, capsys):
    assert run_command(finetune, *TINY, f"--data={halves_set}", f"--run_dir={tmp_path / 'run'}") == 1
    assert "--from_scratch" in capsys.readouterr().err


def test_evaluating_an_encoder_is_refused(pretrained, halves_set, capsys):
    assert run_command(evaluate, f"--model={pretrained / 'export'}", f"--data={halves_set}") == 1
    assert "no classifier but an encoder" in capsys.readouterr().err


def test_reconstruct_refuses_what_is_no_image(pretrained, tmp_path, capsys):
    path = tmp_path / "text.png"
    path.write_text("no image")
    assert run_command(reconstruct, f"--run_dir={pretrained}", f"--images={path}") == 1
    assert "text.png is not a JPEG, PNG or WebP image" in capsys.readouterr().err


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_damaged_image_is_named(halves_set, tmp_path, capsys, split):
    shards = shutil.copytree(halves_set, tmp_path / "shards")
    tar = shards / f"{split}-000000.tar"
    content = bytearray(tar.read_bytes())
    start = content.index(b"\x89PNG")
    content[start + 20 : start + 60] = bytes(40)
    tar.write_bytes(content)
    flags = (f"--data={shards}", f"--run_dir={tmp_path / 'run'}", "--steps=6")
    assert run_command(pretrain, *TINY, *TINY_DECODER, *flags) == 1
    error = capsys.readouterr().err
    assert re.search(rf"cannot be read: Sample '\d+' in {tar.name} cannot be decoded: ", error)
