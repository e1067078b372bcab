"""The complexity report adds up, and tells what `keras_mae.models.complexity` counts."""

import functools
import json

import pytest
from fixtures.commands import run_command

from keras_mae.recipes import PRETRAIN_RECIPES
from tools import benchmark
from tools.benchmark_flops import count_flops, flops_text

run = functools.partial(run_command, benchmark, takes_words=True)
BASE = PRETRAIN_RECIPES["vit_base"]


def test_every_total_is_the_sum_of_its_parts():
    results = count_flops(BASE, "float32")
    for counts in (results["parameters"], *results["forward_flops"].values()):
        assert counts["total"] == sum(sum(counts[group].values()) for group in ("encoder", "decoder"))
    assert sum(results["parameters"]["encoder"].values()) == 85_798_656
    assert results["parameters"]["total"] == 111_907_840
    forward = results["forward_flops"]
    assert results["ratio"] == forward["mask_tokens"]["total"] / forward["visible"]["total"]
    assert json.loads(json.dumps(results)) == results


def test_figures_of_vit_base_are_those_counted_by_hand():
    results = count_flops(BASE, "float32")
    # 49 visible patches and the class token: 12 blocks of 12 D^2 weights; attention twice tokens^2 x D
    blocks = 12 * (2 * 50 * 12 * 768**2 + 4 * 50**2 * 768)
    decoder_blocks = 8 * (2 * 197 * 12 * 512**2 + 4 * 197**2 * 512)
    embedding, others = 2 * 49 * 768 * 768, 2 * 50 * 768 * 512 + 2 * 197 * 512 * 768
    expected = blocks + decoder_blocks + embedding + others
    assert results["forward_flops"]["visible"]["total"] == expected
    assert results["step_flops"]["visible"]["none"] == 3 * expected - embedding
    # With every patch embedded and a gradient of the pixels: the 58.7 GFLOP that counters find in the reference.
    assert (3 * (expected + 2 * 147 * 768 * 768)) / 1e9 == pytest.approx(58.7, abs=0.05)


def test_bfloat16_halves_what_is_kept():
    full, half = (count_flops(BASE, precision)["estimated_memory"] for precision in ("float32", "bfloat16"))
    for name, kept in full["kept_bytes_per_image"].items():
        for remat, size in kept.items():
            assert size == 2 * half["kept_bytes_per_image"][name][remat]
        assert kept["blocks"] < kept["none"] / 5
    assert full["state_bytes"] == half["state_bytes"]


def test_the_text_tells_every_figure():
    text = flops_text(count_flops(PRETRAIN_RECIPES["vit_large"], "float32"))
    for figure in ("303,301,632", "329,541,888", "41.280", "134.020", "3.25", "123.8", "401.8", "estimate: MB kept"):
        assert figure in text
    assert "encoder 1024/24/16, decoder 512/8/16" in text


def test_the_command_counts_a_recipe_with_other_fields(tmp_path, capsys):
    output = tmp_path / "flops.json"
    assert run("flops", "--recipe=vit_small", "--decoder_depth=1", "--image_size=32,64", f"--json={output}") == 0
    results = json.loads(output.read_text())
    assert (results["sizes"]["decoder_depth"], results["sizes"]["num_patches"]) == (1, 8)
    assert "decoder 256/1/8 (width/blocks/heads), 8 patches of 16 pixels" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--image_size=30"], "multiples of the patch size"),
        (["--decoder_num_heads=7"], "Received: width=512, num_heads=7"),
        (["--mask_ratio=0"], "At least one patch must be removed"),
        (["--target=pca", "--target_file=file"], "only models of pixels are counted"),
        (["--workers=2"], "--workers is for the benchmarks shards, pipeline, step, received it with flops"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, sentence, capsys):
    assert run("flops", *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("ERROR: ") and sentence in error and "Traceback" not in error
