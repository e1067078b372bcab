"""The Beam engine writes the bytes of the local one, goes on where a run ended, and fails with the same sentence.

Tests marked `beam` need Apache Beam (extra `beam`). FnApiRunner is Beam's own runner for one machine; DirectRunner
would first try to download another.
"""

import errno
import json
import os
import sys

import pytest

from keras_mae.commandline import CommandError
from pipeline import writing
from pipeline.image_files import ImageOptions
from pipeline.locations import Location, SourceError
from pipeline.sources import FolderSource, Item
from pipeline.writing import ShardTask
from tools import beam_engine, shard_run, unfinished
from tools.shard_plan import ShardOptions
from tools.sharding import make_shards

RUNNER = ["--runner=FnApiRunner"]
# 2 or 3 shards for the images of these tests
OPTIONS = ShardOptions(shard_mb=0.04, val_fraction=0.2)


def make(source, output, options=OPTIONS, **more):
    return make_shards(FolderSource(source), output, options, workers=1, log=lambda line: None, **more)


def make_with_beam(source, output, options=OPTIONS, runner=RUNNER, **more):
    return make(source, output, options, engine=beam_engine.beam_engine(str(output), runner), **more)


def contents(root):
    """All files of a shard set, and what the report says besides times."""
    files = {path.name: path.read_bytes() for path in root.iterdir() if path.name != "report.json"}
    report = json.loads((root / "report.json").read_bytes())
    for split in report["splits"].values():
        del split["last_run"]
    return files, report


def fail_at(monkeypatch, number, error):
    # Whoever writes shard `number` gets `error` when it is about to be whole.
    original = writing.index_bytes
    written = []

    def index_bytes(rows):
        written.append(rows)
        if len(written) > number:
            raise error
        return original(rows)

    monkeypatch.setattr(writing, "index_bytes", index_bytes)


def task_of(root, image, number=0, **options):
    return ShardTask(str(root), "train", number, 0, [Item("a.png", 0, Location(str(image)))], **options)


def begin(root):
    """Begins a split as a run does, and returns the file for failures."""
    unfinished.resume(str(root), "train", {}, restart=False)
    return str(root / ".train.unfinished" / beam_engine.FAILURE_NAME)


def test_a_task_file_gives_back_the_task():
    items = [
        Item("cat/\udcff.jpg", 3, Location("/images/cat/\udcff.jpg", 512, 1024)),
        Item("b", 0, Location("s3://bucket/b"), (("seg.png", Location("s3://bucket/c", 0, 7)),), {"x": [1.5, None]}),
    ]
    options = ImageOptions(encoder="jpeg", quality=80, resize_short_side=256, exif="apply")
    for task in (
        ShardTask("/out", "train", 7, 4200, items, options, True),
        ShardTask("gs://bucket/out", "val", 0, 0, [Item("a", None, Location("/a"))]),
    ):
        assert beam_engine.task_from_json(beam_engine.task_to_json(task)) == task


def test_without_beam_the_command_says_what_to_install(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "apache_beam"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(CommandError, match=r'needs Apache Beam: pip install "keras-mae\[beam\]"'):
        beam_engine.beam_engine(str(tmp_path), [])


def test_a_worker_that_does_not_see_the_output_says_so(tmp_path):
    with pytest.raises(RuntimeError, match="cannot read its task .*task-000002.json does not exist.*must see --output"):
        beam_engine.write_shard_of(("train", 2), str(tmp_path), str(tmp_path / "failure.json"), {})


@pytest.mark.parametrize("skip_damaged", [False, True])
def test_a_worker_that_does_not_see_the_images_reports_it(tmp_path, skip_damaged):
    failure = begin(tmp_path)
    task = task_of(tmp_path, tmp_path / "nowhere" / "a.png", skip_damaged=skip_damaged)
    (tmp_path / ".train.unfinished" / "task-000000.json").write_bytes(beam_engine.task_to_json(task))
    beam_engine.write_shard_of(("train", 0), str(tmp_path), failure, shard_run.library_versions())
    with pytest.raises(CommandError, match="sees none of the 1 images of its shard, such as .*nowhere/a.png"):
        beam_engine._raise_reported(failure)
    assert not list(tmp_path.glob("train-*"))


def test_a_worker_with_other_libraries_reports_it(flat_images, tmp_path):
    failure = begin(tmp_path / "out")
    task = task_of(tmp_path / "out", flat_images / "0.png")
    (tmp_path / "out" / ".train.unfinished" / "task-000000.json").write_bytes(beam_engine.task_to_json(task))
    versions = {**shard_run.library_versions(), "Pillow": "1.1"}
    beam_engine.write_shard_of(("train", 0), str(tmp_path / "out"), failure, versions)
    with pytest.raises(CommandError, match=r"has Pillow \d.*the machine of the command 1.1"):
        beam_engine._raise_reported(failure)
    assert not list((tmp_path / "out").glob("train-*"))


def test_after_a_failure_no_further_shard_is_begun(flat_images, tmp_path):
    failure = begin(tmp_path / "out")
    task = task_of(tmp_path / "out", flat_images / "0.png")
    (tmp_path / "out" / ".train.unfinished" / "task-000000.json").write_bytes(beam_engine.task_to_json(task))
    arguments = (("train", 0), str(tmp_path / "out"), failure, shard_run.library_versions())
    beam_engine._report(failure, SourceError, "x")
    beam_engine.write_shard_of(*arguments)
    assert not list((tmp_path / "out").glob("train-*"))
    os.remove(failure)
    beam_engine.write_shard_of(*arguments)
    assert len(list((tmp_path / "out").glob("train-*"))) == 2


@pytest.mark.beam
def test_beam_writes_the_bytes_of_the_local_engine(images, tmp_path):
    (images / "cat" / "wrong.JPEG").write_bytes((images / "dog" / "2.png").read_bytes())
    shard_set = make_with_beam(images, tmp_path / "beam")
    make(images, tmp_path / "local")
    assert [len(split.shards) > 1 for split in shard_set.splits.values()] == [True, False]
    assert contents(tmp_path / "beam") == contents(tmp_path / "local")


@pytest.mark.beam
@pytest.mark.parametrize(
    "runner",
    [
        [*RUNNER, "--direct_running_mode=multi_processing", "--direct_num_workers=2"],
        [*RUNNER, "--direct_running_mode=multi_threading", "--direct_num_workers=2"],
        # The way to Flink and Spark: a job server, here one in this process.
        ["--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK"],
    ],
    ids=["processes", "threads", "job_server"],
)
def test_every_kind_of_worker_writes_the_same_bytes(images, tmp_path, monkeypatch, request, runner):
    monkeypatch.setenv("PYTHONPATH", str(request.config.rootpath))
    monkeypatch.chdir(tmp_path)
    make_with_beam(images.relative_to(tmp_path), "beam", runner=runner)
    make(images, "local")
    assert contents(tmp_path / "beam") == contents(tmp_path / "local")


@pytest.mark.beam
def test_tasks_name_files_so_that_other_machines_find_them(tmp_path, monkeypatch):
    monkeypatch.setattr(beam_engine, "write_shard_of", lambda *arguments: None)
    monkeypatch.chdir(tmp_path)
    begin(tmp_path / "out")
    item = Item("a", None, Location("in/a", 512, 7), (("seg.png", Location("b")), ("png", Location("s3://x/c"))))
    with pytest.raises(CommandError, match="1 of 1 shards"):
        list(beam_engine.beam_engine("out", RUNNER)([ShardTask("out", "train", 0, 0, [item])]))
    task = beam_engine.task_from_json((tmp_path / "out" / ".train.unfinished" / "task-000000.json").read_bytes())
    assert task.root == str(tmp_path / "out")
    assert task.items[0].image == (str(tmp_path / "in" / "a"), 512, 7)
    assert [location.file for _, location in task.items[0].members] == [str(tmp_path / "b"), "s3://x/c"]


@pytest.mark.beam
def test_ctrl_c_cancels_the_job(images, tmp_path, monkeypatch):
    import apache_beam

    class Running:
        is_cancelled = False

        def wait_until_finish(self):
            raise KeyboardInterrupt

        def cancel(self):
            self.is_cancelled = True

    running = Running()
    monkeypatch.setattr(apache_beam.Pipeline, "run", lambda pipeline: running)
    with pytest.raises(KeyboardInterrupt):
        make_with_beam(images, tmp_path / "out")
    assert running.is_cancelled


@pytest.mark.beam
def test_an_output_behind_a_url_is_written_by_workers(images, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    url = f"memory://{tmp_path.name}"
    make_with_beam(images, url)
    make(images, tmp_path / "local")
    files = fsspec.filesystem("memory").find(f"/{tmp_path.name}")
    expected, _ = contents(tmp_path / "local")
    assert {path.rsplit("/", 1)[1] for path in files} == {*expected, "report.json"}
    for name, data in expected.items():
        assert fsspec.filesystem("memory").cat(f"/{tmp_path.name}/{name}") == data


@pytest.mark.beam
def test_beam_goes_on_with_a_local_run_and_a_local_one_with_beam(images, tmp_path, monkeypatch):
    make(images, tmp_path / "expected")
    for name, first, second in (("a", make, make_with_beam), ("b", make_with_beam, make)):
        with monkeypatch.context() as patch:
            fail_at(patch, 1, OSError(errno.ENOSPC, "No space left on device"))
            with pytest.raises(CommandError):
                first(images, tmp_path / name)
        whole = sorted((tmp_path / name).glob("*.idx"))
        times = [path.stat().st_mtime_ns for path in whole]
        assert len(whole) == 1
        second(images, tmp_path / name)
        assert [path.stat().st_mtime_ns for path in whole] == times
        assert contents(tmp_path / name) == contents(tmp_path / "expected")


@pytest.mark.beam
def test_nothing_is_left_to_do_after_beam(images, tmp_path):
    first = make_with_beam(images, tmp_path / "out")
    before = contents(tmp_path / "out")
    assert make_with_beam(images, tmp_path / "out") == first
    assert contents(tmp_path / "out") == before


@pytest.mark.beam
def test_tasks_are_written_one_by_one(images, tmp_path):
    # A task is asked for when the one before it is a file.
    begin(tmp_path / "out")
    folder = tmp_path / "out" / ".train.unfinished"
    seen = []

    def tasks():
        for number in range(3):
            seen.append(len(list(folder.glob("task-*.json"))))
            yield task_of(tmp_path / "out", images / "cat" / "1.JPEG", number)

    engine = beam_engine.beam_engine(str(tmp_path / "out"), RUNNER)
    assert [written.number for written in engine(tasks())] == [0, 1, 2]
    assert seen == [0, 1, 2]


def sentence_of(run, *arguments, **more):
    with pytest.raises((CommandError, SourceError)) as caught:
        run(*arguments, **more)
    return type(caught.value), str(caught.value)


@pytest.mark.beam
def test_a_bad_image_ends_both_engines_with_the_same_sentence(images, tmp_path):
    (images / "dog" / "bad.jpg").write_bytes(b"not an image")
    kind, sentence = sentence_of(make_with_beam, images, tmp_path / "beam")
    assert (kind, sentence) == sentence_of(make, images, tmp_path / "local")
    assert kind is SourceError and "'dog/bad.jpg' cannot be used" in sentence
    # The same output then takes the images that can be used.
    make_with_beam(images, tmp_path / "beam", on_error="skip")
    make(images, tmp_path / "local", on_error="skip")
    assert contents(tmp_path / "beam") == contents(tmp_path / "local")
    _, report = contents(tmp_path / "beam")
    assert sum(split["skipped"]["count"] for split in report["splits"].values()) == 1


@pytest.mark.beam
def test_a_full_disk_ends_both_engines_with_the_same_sentence(images, tmp_path, monkeypatch):
    sentences = []
    for run in (make, make_with_beam):
        with monkeypatch.context() as patch:
            fail_at(patch, 0, OSError(errno.ENOSPC, "No space left on device"))
            sentences.append(sentence_of(run, images, tmp_path / "out"))
        assert not (tmp_path / "out").exists()
    assert sentences[0] == sentences[1]
    assert "is full: about 1 MB more are needed. Free some space" in sentences[0][1]


@pytest.mark.beam
def test_other_errors_of_a_worker_reach_the_runner(images, tmp_path, monkeypatch):
    # So that it can try again.
    fail_at(monkeypatch, 0, OSError(errno.EIO, "Input/output error"))
    with pytest.raises(RuntimeError, match="Input/output error"):
        make_with_beam(images, tmp_path / "out")


@pytest.mark.beam
def test_what_a_worker_reported_is_said_instead_of_the_runners_error(images, tmp_path, monkeypatch):
    def report_and_crash(place, root, failure, versions):
        beam_engine._report(failure, SourceError, "an image is damaged")
        raise RuntimeError("another worker")

    monkeypatch.setattr(beam_engine, "write_shard_of", report_and_crash)
    with pytest.raises(SourceError, match="an image is damaged"):
        make_with_beam(images, tmp_path / "out")


@pytest.mark.beam
def test_the_failure_of_a_run_that_was_killed_does_not_stop_the_next(images, tmp_path):
    failure = begin(tmp_path / "out")
    beam_engine._report(failure, SourceError, "an image is damaged")
    engine = beam_engine.beam_engine(str(tmp_path / "out"), RUNNER)
    written = list(engine([task_of(tmp_path / "out", images / "cat" / "1.JPEG")]))
    assert [shard.shard.samples for shard in written] == [1]
    assert not os.path.exists(failure)


@pytest.mark.beam
def test_shards_that_are_missing_in_the_end_are_an_error(images, tmp_path, monkeypatch):
    monkeypatch.setattr(beam_engine, "write_shard_of", lambda *arguments: None)
    with pytest.raises(CommandError, match=r"ended, but \d of \d shards are not in .*the first is number 0 of 'train'"):
        make_with_beam(images, tmp_path / "out")


@pytest.mark.beam
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runner=Nephele"], "does not accept --runner: Unexpected pipeline runner: Nephele"),
        (["--runner=no.such.Runner"], "does not accept --runner: No module named 'no'"),
        ([*RUNNER, "--direct_num_wrkers=2"], "has no option '--direct_num_wrkers=2'"),
        ([*RUNNER, "input"], "has no option 'input'"),
        (["--runner=FlinkRunner", "input"], "has no option 'input'"),
        ([*RUNNER, "--direct_num_workers=two"], "--direct_num_workers: invalid int value: 'two'"),
        ([*RUNNER, "--direct_running_mode=x"], "--direct_running_mode: invalid choice: 'x'"),
        ([*RUNNER, "--job_name=x", "--setup_file=y.py", "--direct_num_workers"], "expected one argument"),
    ],
)
def test_a_mistake_in_beams_options_is_one_sentence(tmp_path, arguments, message):
    with pytest.raises(CommandError, match=message) as caught:
        beam_engine.beam_engine(str(tmp_path), arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.beam
def test_options_that_only_a_job_server_knows_are_left_to_it(tmp_path):
    beam_engine.beam_engine(str(tmp_path), ["--runner=FlinkRunner", "--flink_master=host:8081", "--faster_copy=true"])
