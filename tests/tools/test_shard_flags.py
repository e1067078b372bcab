"""The flags that name a source and its options: each mistake is one sentence, before anything is written."""

import csv
import dataclasses

import pytest
from fixtures.commands import run_command

from keras_mae.commandline import CommandError
from pipeline.image_files import ImageOptions
from pipeline.manifest import load_manifest
from tools import make_shards
from tools.shard_flags import PATH_FLAGS, SourceChoice
from tools.shard_plan import ShardOptions


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source=zip", "--input=x"], "--source must be one of folder, imagenet, list, "),
        ([], "--input is missing: --source=folder needs it"),
        (["--source=places", "--input=x"], "--file_list is missing: --source=places needs it"),
        (["--input=x", "--devkit=y"], "--devkit is not read by --source=folder, but by imagenet"),
        (["--source=webdataset", "--input=x", "--label_column=y"], "--label_column is not read by"),
        (["--source=imagenet"], "needs --train_tar, or --val_tar and --devkit"),
        (["--source=imagenet", "--val_tar=x"], "--val_tar and --devkit go together"),
        (["--source=imagenet", "--train_tar=x", "--input=y"], "--input is not read by --source=imagenet"),
        (
            ["--source=imagenet", "--train_tar=x", "--val_tar=y", "--devkit=z", "--val_fraction=.1"],
            "--val_fraction makes a split of its own",
        ),
        (["--source=imagenet", "--train_tar=x", "--split=a"], "leave --split out"),
        (["--input=x", "--val_split=a"], "--val_split names the split that --val_fraction makes"),
        (["--source=list", "--input=x.csv", "--member=png"], "--member must be EXTENSION:COLUMN"),
        (["--source=list", "--input=x.csv", "--classes=nowhere.txt"], "nowhere.txt does not exist"),
        (["--input=x", "--quality=101"], "--quality must be a whole number from 1 to 100, received 101"),
        (["--input=x", "--resize_short_side=0"], "--resize_short_side must be"),
        (["--input=x", "--skip_if_smaller"], "--skip_if_smaller chooses between"),
        (["--input=x", "--shard_samples=0"], "--shard_samples must be at least 1"),
        (["--input=x", "--workers=0"], "--workers must be at least 1, received 0"),
        (["--input=x", "--split=a/b"], "'a/b' cannot name a split"),
        (["--input=nowhere"], "nowhere does not exist"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(tmp_path, arguments, message, capsys):
    assert run_command(make_shards, f"--output={tmp_path / 'out'}", *arguments) == 1
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_repeated_class_names_are_refused(tmp_path, capsys):
    (tmp_path / "classes.txt").write_text("crane\nmaillot\ncrane\n")
    arguments = ("--source=webdataset", "--input=x", f"--classes={tmp_path / 'classes.txt'}", "--output=y")
    assert run_command(make_shards, *arguments) == 1
    assert "must hold one class name a line, each once" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("\ufeffcrane\r\nmaillot\r\n", ("crane", "maillot")),
        ("crane\n\nma\u2028illot\x0b \x85x", ("crane", "ma\u2028illot\x0b \x85x")),
    ],
)
def test_class_names_are_the_lines_of_a_file(tmp_path, text, names):
    (tmp_path / "classes.txt").write_bytes(text.encode())
    assert SourceChoice(classes=str(tmp_path / "classes.txt")).read_classes() == names


def test_class_names_in_another_encoding_are_refused(tmp_path):
    (tmp_path / "classes.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(CommandError, match="classes.txt is not UTF-8 .*at byte 3.*; save the file as UTF-8"):
        SourceChoice(classes=str(tmp_path / "classes.txt")).read_classes()


def test_a_tilde_stands_for_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    names = [field.name for field in dataclasses.fields(SourceChoice) if field.name not in ("source", "member")]
    choice = SourceChoice(**dict.fromkeys(names, "~/x"))
    assert {name for name in names if getattr(choice, name) == "/home/me/x"} == set(PATH_FLAGS)
    assert set(names) - set(PATH_FLAGS) == {"image_column", "label_column"}
    assert SourceChoice(input="a/~/x").input == "a/~/x"


def test_every_flag_of_a_list_arrives(images, tmp_path):
    rows = [
        {"picture": path.relative_to(images), "kind": path.relative_to(images).parts[0], "mask": path}
        for path in sorted(images.rglob("*.png"))
    ]
    with open(tmp_path / "list.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "classes.txt").write_text("emu\ndog\ncat\n")
    arguments = (
        "--source=list",
        f"--input={tmp_path / 'list.csv'}",
        f"--image_root={images}",
        "--image_column=picture",
        "--label_column=kind",
        "--member=seg.png:mask",
        f"--classes={tmp_path / 'classes.txt'}",
        f"--output={tmp_path / 'out'}",
        "--split=test",
        "--seed=3",
        "--shard_samples=2",
        "--check=decode",
        "--workers=1",
    )
    assert run_command(make_shards, *arguments) == 0
    shard_set = load_manifest(tmp_path / "out")
    assert shard_set.classes == ("emu", "dog", "cat")
    assert [shard.samples for shard in shard_set.split("test").shards] == [2, 2, 2, 1]
    assert "cls" in (tmp_path / "out" / "test-000000.idx").read_text()
    assert "seg.png" in (tmp_path / "out" / "test-000000.idx").read_text()


def test_options_come_back_from_what_the_manifest_records():
    images = ImageOptions(check="decode", encoder="webp", quality=30, resize_short_side=9, skip_if_smaller=True)
    for options in (ShardOptions(), ShardOptions("a", 5, 2.0, 7, 0.25, "b", images)):
        recorded = {"source": "folder", "source_fingerprint": "0", **options.as_dict()}
        assert ShardOptions.from_dict(recorded) == options
