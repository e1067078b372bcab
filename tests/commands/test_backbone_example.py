"""examples/backbone.py runs as it says."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from fixtures.tiny_vit import TINY_VIT

from keras_mae.models import VisionTransformer

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "backbone.py"


@pytest.mark.slow
def test_the_example_trains_a_head_and_then_everything(halves_set, tmp_path, monkeypatch, capsys):
    encoder = VisionTransformer(**TINY_VIT)
    encoder.build()
    encoder.save(tmp_path / "encoder.keras")
    flags = [f"--encoder={tmp_path / 'encoder.keras'}", f"--data={halves_set}", "--steps=20", "--batch_size=8"]
    monkeypatch.setattr(sys, "argv", ["backbone.py", *flags])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    found = re.search(r"frozen ([\d.]+), trained with the head ([\d.]+)", capsys.readouterr().out)
    assert all(0 <= float(accuracy) <= 1 for accuracy in found.groups())
