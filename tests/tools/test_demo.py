"""The demo's own parts: how it splits images, and its page. (`make demo` is the test of the whole.)"""

import json
import re

import numpy as np
import pytest
from fixtures.shard_sets import encode

from pipeline.manifest import load_manifest
from pipeline.sources import SourceError
from tools.demo import DemoData, last_value, shard, split_images
from tools.demo_report import write_report


@pytest.fixture
def class_folders(tmp_path):
    for number in range(40):
        path = tmp_path / "images" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(np.full((8, 8), number, np.uint8)))
    return tmp_path / "images"


def test_held_out_images_are_never_trained_on(class_folders):
    data = split_images(class_folders, labels_per_class=3, held_out_share=0.2, seed=0)
    assert len(data.held_out) == 8 and len(data.unlabelled) == 32 and len(data.labelled) == 6
    assert not set(data.held_out) & set(data.unlabelled)
    assert set(data.labelled) <= set(data.unlabelled)
    assert sorted(path.split("/")[0] for path in data.labelled) == ["cat"] * 3 + ["dog"] * 3
    assert split_images(class_folders, 3, 0.2, seed=1) != data


def test_too_few_images_of_a_class_are_named(class_folders):
    with pytest.raises(SourceError, match="cat.* has 20 images; the demo needs at least"):
        split_images(class_folders, labels_per_class=17, held_out_share=0.2, seed=0)


def test_the_shard_set_has_three_splits(class_folders, tmp_path):
    data = split_images(class_folders, labels_per_class=3, held_out_share=0.2, seed=0)
    stale = DemoData(unlabelled=data.held_out, labelled=[], held_out=[])
    for path in stale.unlabelled:  # as a killed run with another seed leaves them
        link = tmp_path / "out" / "splits" / "train" / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(class_folders / path)
    shards = shard(data, class_folders, tmp_path / "out", seed=0)
    splits = load_manifest(shards).splits
    assert {name: split.samples for name, split in splits.items()} == {"train": 32, "labelled": 6, "held_out": 8}


def test_the_page_holds_figures_and_pictures(tmp_path):
    for run, rows in (
        ("pretrain", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "val_loss": 1.5}]),
        ("finetune", [{"step": 2, "val_accuracy": 0.875}]),
        ("scratch", [{"step": 2, "val_accuracy": 0.5}]),
    ):
        (tmp_path / run).mkdir()
        (tmp_path / run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    picture = tmp_path / "reconstructions.png"
    picture.write_bytes(encode(np.zeros((8, 8), np.uint8)))
    results = {
        "finetune_accuracy": last_value(tmp_path / "finetune", "val_accuracy"),
        "scratch_accuracy": last_value(tmp_path / "scratch", "val_accuracy"),
        "labels": 100,
        "held_out_images": 1000,
        "unlabelled_images": 4000,
        "saved_model": "a <b>",
        "reconstructions": str(picture),
        "seed": 0,
        "seconds": 12.3,
    }
    write_report(tmp_path, results)
    page = (tmp_path / "report.html").read_text()
    assert "87.5%" in page and "50.0%" in page and "a &lt;b&gt;" in page
    assert len(re.findall(r'src="data:image/png;base64,[\w+/=]{50,}"', page)) == 2
