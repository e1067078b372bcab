"""What make_shards would replace must be of a shard set."""

import pytest

from keras_mae.commandline import CommandError
from pipeline.manifest import ShardSet, Split, write_manifest
from pipeline.sidecars import sidecar_files
from tools.foreign_files import refuse_foreign_files
from tools.shard_report import write_report


def test_an_empty_or_missing_folder_may_be_written(tmp_path):
    refuse_foreign_files(str(tmp_path), ["train"])
    refuse_foreign_files(str(tmp_path / "missing"), ["train"])


def test_what_a_killed_run_left_may_be_replaced(tmp_path):
    shard_set = ShardSet(str(tmp_path), None, {"train": Split("train", 0, (), {})})
    for name, data in sidecar_files(shard_set).items():
        (tmp_path / name).write_bytes(data)
    write_report(str(tmp_path), {"train": {"samples": 0}})
    refuse_foreign_files(str(tmp_path), ["train"])


@pytest.mark.parametrize("name", ["_info.json", "train.wids.json", "report.json"])
@pytest.mark.parametrize(
    "content",
    ["", "[1]", '{"splits": []}', '{"__kind__": 1}', "[" * 100_000, "9" * 5000, "\0\xff"],
    ids=["empty", "list", "no splits", "no kind", "too deep", "too long", "no text"],
)
def test_other_files_are_refused(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="latin-1")
    with pytest.raises(CommandError, match=f"{name} exists and is not of a shard set; move it away"):
        refuse_foreign_files(str(tmp_path), ["val", "train"])


def test_beside_a_manifest_only_the_report_must_be_of_its_kind(tmp_path):
    # The report is added to; the sidecars follow from the manifest.
    write_manifest(ShardSet(str(tmp_path), None, {}))
    (tmp_path / "_info.json").write_text("{}")
    refuse_foreign_files(str(tmp_path), ["train"])
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(CommandError, match="report.json exists and is not of a shard set"):
        refuse_foreign_files(str(tmp_path), ["train"])


def test_files_of_other_splits_do_not_matter(tmp_path):
    (tmp_path / "other.wids.json").write_text("{}")
    refuse_foreign_files(str(tmp_path), ["train"])
