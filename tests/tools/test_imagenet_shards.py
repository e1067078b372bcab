"""The archives of ImageNet become shards in one command, with a PNG, a CMYK JPEG and a cut file among the images."""

import io
import json
import re

import numpy as np
import pytest
import webdataset
from fixtures.commands import run_command
from fixtures.imagenet_archives import make_imagenet_archives
from PIL import Image

from pipeline.manifest import load_manifest
from tools import make_shards
from tools.shard_faults import find_faults

scipy_io = pytest.importorskip("scipy.io")
PNG, CMYK, CUT = "n02119789_10.JPEG", "n01440764_3.JPEG", "n03938244_17.JPEG"
PNG_SAMPLE, CMYK_SAMPLE, CUT_SAMPLE = (f"{name[:9]}/{name}" for name in (PNG, CMYK, CUT))


def encoded(mode, format, seed):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, len(mode)), dtype=np.uint8)
    Image.frombytes(mode, (24, 20), pixels.tobytes()).save(file, format)
    return file.getvalue()


@pytest.fixture
def archives(tmp_path):
    (tmp_path / "downloads").mkdir()
    cut = encoded("RGB", "JPEG", 2)
    special = {PNG: encoded("RGB", "PNG", 0), CMYK: encoded("CMYK", "JPEG", 1), CUT: cut[: len(cut) // 2]}
    return make_imagenet_archives(
        tmp_path / "downloads", images_per_class=4, num_classes=5, num_val=12, special=special
    )


def shard(archives, output, *more):
    return run_command(
        make_shards,
        "--source=imagenet",
        f"--train_tar={archives.train_tar}",
        f"--val_tar={archives.val_tar}",
        f"--devkit={archives.devkit}",
        f"--output={output}",
        "--shard_mb=.03",
        *more,
    )


def read(output, split):
    """With webdataset: for each sample by name, its label, and its image's extension and bytes."""
    tars = sorted(map(str, output.glob(f"{split}-*.tar")))
    assert len(tars) > 1
    samples = {}
    for sample in webdataset.WebDataset(tars, shardshuffle=False):
        (extension,) = sample.keys() & {"jpg", "png", "webp"}
        assert sample.keys() == {"__key__", "__url__", "__local_path__", "cls", "json", extension}
        samples[json.loads(sample["json"])["source"]] = (int(sample["cls"]), extension, sample[extension])
    assert len(samples) == load_manifest(output).splits[split].samples
    return samples


def devkit_labels(archives):
    """For each class of the devkit by its number, its WordNet id and how many classes' ids come before that.

    Of the entries in meta.mat, classes are those at the bottom of WordNet.
    """
    synsets = scipy_io.loadmat(archives.devkit_folder / "data" / "meta.mat", struct_as_record=False)["synsets"]
    entries = [entry for (entry,) in synsets if entry.wordnet_height.item() == 0]
    wnids = {int(entry.ILSVRC2012_ID.item()): str(entry.WNID.item()) for entry in entries}
    return {number: (wnid, sum(other < wnid for other in wnids.values())) for number, wnid in wnids.items()}


def test_every_label_is_the_devkits(archives, tmp_path):
    assert shard(archives, tmp_path / "out", "--on_error=skip", "--workers=1") == 0
    labels = devkit_labels(archives)
    label_of = dict(labels.values())
    assert list(label_of.values()) != sorted(label_of.values())  # the devkit has an order of its own
    assert sorted(label_of, key=label_of.get) == list(load_manifest(tmp_path / "out").classes)
    train = {name: label for name, (label, *_) in read(tmp_path / "out", "train").items()}
    assert train == {name: label_of[name[:9]] for name in archives.train if name != CUT_SAMPLE}
    truth = (archives.devkit_folder / "data" / "ILSVRC2012_validation_ground_truth.txt").read_text().split()
    val = {name: label for name, (label, *_) in read(tmp_path / "out", "val").items()}
    assert val == {f"ILSVRC2012_val_{i:08d}.JPEG": labels[int(number)][1] for i, number in enumerate(truth, 1)}


def test_images_are_stored_as_they_are_but_for_the_cmyk_one(archives, tmp_path):
    assert shard(archives, tmp_path / "out", "--on_error=skip", "--workers=1") == 0
    train, val = read(tmp_path / "out", "train"), read(tmp_path / "out", "val")
    _, extension, data = train.pop(CMYK_SAMPLE)
    converted, original = (Image.open(io.BytesIO(image)) for image in (data, archives.train[CMYK_SAMPLE][1]))
    assert (extension, converted.format, converted.mode, original.mode) == ("png", "PNG", "RGB", "CMYK")
    np.testing.assert_array_equal(np.asarray(converted), np.asarray(original.convert("RGB")))
    stored = {name: (extension, data) for name, (_, extension, data) in (train | val).items()}
    assert stored == {
        name: ("png" if name == PNG_SAMPLE else "jpg", data)
        for name, (_, data) in (archives.train | archives.val).items()
        if name not in (CUT_SAMPLE, CMYK_SAMPLE)
    }


def test_what_was_unusual_is_counted_and_named_in_the_report(archives, tmp_path, capsys):
    assert shard(archives, tmp_path / "out", "--on_error=skip", "--workers=1") == 0
    train, val = (json.loads((tmp_path / "out" / "report.json").read_bytes())["splits"][s] for s in ("train", "val"))
    noted = {note: (found["count"], found["samples"]) for note, found in train["notes"].items()}
    assert noted == {
        "cmyk": (1, [CMYK_SAMPLE]),
        "misnamed": (1, [PNG_SAMPLE]),
        "reencoded": (1, []),
    }
    assert (train["samples"], train["skipped"]["count"]) == (19, 1)
    (skipped,) = train["skipped"]["samples"]
    assert skipped["name"] == CUT_SAMPLE and "cut" in skipped["reason"]
    assert (val["samples"], val["skipped"]["count"], val["notes"]) == (12, 0, {})
    assert "1 skipped" in capsys.readouterr().out


def test_a_cut_image_ends_the_run_with_its_name_and_the_run_goes_on_without_it(archives, tmp_path, capsys):
    assert shard(archives, tmp_path / "out", "--workers=1") == 1
    error = capsys.readouterr().err
    assert re.fullmatch(f"ERROR: '{CUT_SAMPLE}' cannot be used: it is cut.*--on_error=skip.*\n", error)
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert shard(archives, tmp_path / "out", "--workers=1", "--on_error=skip") == 0
    assert shard(archives, tmp_path / "fresh", "--workers=1", "--on_error=skip") == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def contents(output):
    """All files by name; of the report, what is no time."""
    files = {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}
    report = json.loads(files["report.json"])
    for split in report["splits"].values():
        del split["last_run"]
    return files | {"report.json": report}


def test_two_workers_write_what_one_writes_and_no_fault_is_found(archives, tmp_path):
    for workers in (1, 2):
        assert shard(archives, tmp_path / str(workers), "--on_error=skip", f"--workers={workers}") == 0
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert list(find_faults(load_manifest(tmp_path / "1"), deep=True)) == []
