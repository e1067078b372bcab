"""Images and shards behind URLs: the bytes are those of local files."""

import json
import pathlib
import socket
import tarfile

import pytest

from pipeline import locations, writing
from pipeline.locations import Location, SourceUnavailable, join, read_location
from pipeline.manifest import load_manifest
from pipeline.sources import FolderSource, ListSource, SourceError, WebDatasetSource
from pipeline.storage import list_names, write_atomically
from tools.shard_faults import find_faults
from tools.shard_plan import ShardOptions
from tools.sharding import make_shards

fsspec = pytest.importorskip("fsspec")
OPTIONS = ShardOptions(shard_mb=0.07, val_fraction=0.1)


@pytest.fixture
def memory(tmp_path):
    """URL of a folder in fsspec's memory, which only this process sees."""
    yield f"memory://{tmp_path.name}"
    fsspec.filesystem("memory").store.clear()


def make(source, output, options=OPTIONS, **run):
    return make_shards(source, output, options, **{"workers": 1, "log": str, **run})


def contents(root):
    names = [name for name in list_names(root) if name != "report.json"]
    return {name: read_location(Location(join(root, name))) for name in names}


def test_shards_written_to_a_url_equal_local_ones(images, tmp_path, memory):
    make(FolderSource(images), tmp_path / "out")
    make(FolderSource(images), f"{memory}/out")
    assert contents(f"{memory}/out") == contents(str(tmp_path / "out"))
    assert list(find_faults(load_manifest(f"{memory}/out"))) == []


def test_images_behind_a_url_give_the_same_shards(images, tmp_path, memory):
    for path in images.rglob("*.*"):
        write_atomically(f"{memory}/images/{path.relative_to(images)}", path.read_bytes())
    make(FolderSource(images), tmp_path / "expected")
    make(FolderSource(f"{memory}/images"), tmp_path / "out")
    assert contents(str(tmp_path / "out")) == contents(str(tmp_path / "expected"))


def test_tars_behind_a_url_are_sharded_anew(images, tmp_path, memory):
    make(FolderSource(images), f"{memory}/tars", ShardOptions(shard_mb=0.07))
    make(FolderSource(images), tmp_path / "tars", ShardOptions(shard_mb=0.07))
    make(WebDatasetSource(f"{memory}/tars"), f"{memory}/out", ShardOptions(seed=1))
    make(WebDatasetSource(tmp_path / "tars"), tmp_path / "out", ShardOptions(seed=1))
    assert contents(f"{memory}/out") == contents(str(tmp_path / "out"))


def test_a_run_to_a_url_goes_on_where_it_stopped(images, memory):
    (images / "emu" / "bad.jpg").write_bytes(b"no image")
    small = ShardOptions(shard_mb=0.02)
    with pytest.raises(SourceError, match="emu/bad.jpg"):
        make(FolderSource(images), f"{memory}/out", small)
    lines = []
    make(FolderSource(images), f"{memory}/out", small, on_error="skip", log=lines.append)
    make(FolderSource(images), f"{memory}/expected", small, on_error="skip")
    assert lines[0].startswith("going on with an unfinished run: ")
    assert contents(f"{memory}/out") == contents(f"{memory}/expected")
    assert f"{memory}/out/.train.unfinished" not in list_names(f"{memory}/out")


def save_list(path: pathlib.Path, names, prefix):
    path.write_text("".join(json.dumps({"url": f"{prefix}/{name}", "class": name[:3]}) + "\n" for name in names))
    return path


def test_a_list_of_web_addresses_gives_the_images(images, tmp_path, web_server):
    names = sorted(str(path.relative_to(images)) for path in images.rglob("*.*"))
    source = ListSource(save_list(tmp_path / "list.jsonl", names, web_server(images)))
    shard_set = make(source, tmp_path / "out", ShardOptions(shard_samples=20))
    assert [shard.samples for shard in shard_set.split("train").shards] == [20, 10]
    assert shard_set.classes == ("cat", "dog", "emu")
    found = {}
    for tar in sorted((tmp_path / "out").glob("*.tar")):
        with tarfile.open(tar) as archive:
            members = {member.name: archive.extractfile(member).read() for member in archive}
        for key in sorted({name.split(".")[0] for name in members}):
            image = next(members[f"{key}.{kind}"] for kind in ("jpg", "png", "webp") if f"{key}.{kind}" in members)
            found[json.loads(members[f"{key}.json"])["source"].split("/", 3)[3]] = image
    assert found == {name: (images / name).read_bytes() for name in names}


def test_addresses_that_do_not_answer_are_skipped_and_named(images, tmp_path, web_server):
    server = web_server(images)
    source = ListSource(save_list(tmp_path / "list.jsonl", ["cat/4.jpg", "cat/gone.jpg"], server))
    make(source, tmp_path / "out", ShardOptions(), on_error="skip")
    report = json.loads((tmp_path / "out" / "report.json").read_bytes())["splits"]["train"]
    expected = {"name": f"{server}/cat/gone.jpg", "reason": f"{server}/cat/gone.jpg does not exist"}
    assert report["skipped"] == {"count": 1, "samples": [expected]}


@pytest.fixture
def dead_server(monkeypatch):
    """Address at which nobody answers; asked only once."""
    monkeypatch.setattr(locations, "PAUSES", ())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_a_server_that_is_gone_is_skipped_but_not_a_network_that_is(
    images, tmp_path, web_server, dead_server, monkeypatch
):
    server = web_server(images)
    lines = [{"url": f"{server}/cat/4.jpg"}, *({"url": f"{dead_server}/{i}.jpg"} for i in range(4))]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = ListSource(tmp_path / "list.jsonl")
    assert make(source, tmp_path / "out", ShardOptions(), on_error="skip").split("train").samples == 1
    monkeypatch.setattr(writing, "MAX_SILENT", 1)
    with pytest.raises(SourceUnavailable, match="cannot be read at this moment"):
        make(source, tmp_path / "other", ShardOptions(), on_error="skip")
