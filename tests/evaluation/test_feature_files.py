"""Files of features hold what was appended, row by row, and go on where a killed run stopped."""

import json
import sys

import numpy as np
import pytest

from keras_mae.evaluation.feature_files import (
    FeatureFileError,
    FeatureWriter,
    check_output,
    description_path,
    ids_path,
    is_finished,
)

PLAN = {"encoder": "abc", "layers": [1, 3], "image_size": (8, 12)}


def draw_rows(count, shape=(3,), seed=0):
    vectors = np.random.default_rng(seed).standard_normal((count, *shape)).astype("float32")
    ids = [
        {"index": i, "file": f"{i}.png", "label": i % 2 - 1, "class": None if i % 2 == 0 else "b"} for i in range(count)
    ]
    return vectors, ids


def write(output, vectors, ids, sizes, plan=PLAN):
    """Appends blocks of these sizes and finishes."""
    with FeatureWriter(output, vectors.shape[1:], plan) as writer:
        for size in sizes:
            rows = slice(writer.rows, writer.rows + size)
            writer.append(vectors[rows], ids[rows], batches=1)
        writer.finish()


@pytest.mark.parametrize("shape", [(3,), (4, 6)])
def test_an_npy_holds_the_rows_and_lines_beside_it_their_ids(tmp_path, shape):
    vectors, ids = draw_rows(15, shape)
    output = tmp_path / "f.npy"
    write(output, vectors, ids, (9, 5, 1))
    np.testing.assert_array_equal(np.load(output), vectors)
    assert [json.loads(line) for line in ids_path(output).read_text().splitlines()] == ids
    assert json.loads(description_path(output).read_text()) == {
        "encoder": "abc",
        "layers": [1, 3],
        "image_size": [8, 12],
        "rows": 15,
        "row_shape": list(shape),
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.jsonl", "f.npy", "f.npy.json"]


def test_parquet_holds_both(tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("keras_mae.evaluation.feature_files.PARQUET_ROWS", 4)
    vectors, ids = draw_rows(10, (2, 3))
    ids[7]["file"] = "\udcff.png"  # a name that is no valid text
    output = tmp_path / "f.parquet"
    write(output, vectors, ids, (10,))
    table = parquet.read_table(output)
    found = table.to_pylist()
    np.testing.assert_array_equal(np.array([row.pop("features") for row in found], "float32"), vectors.reshape(10, 6))
    ids[7]["file"] = "\\udcff.png"
    assert found == ids
    assert json.loads(table.schema.metadata[b"keras_mae"])["row_shape"] == [2, 3]
    assert parquet.ParquetFile(output).num_row_groups == 3


def test_a_killed_run_goes_on_behind_its_last_whole_block(tmp_path):
    vectors, ids = draw_rows(12)
    output = tmp_path / "f.npy"
    with FeatureWriter(output, (3,), PLAN) as writer:
        writer.append(vectors[:5], ids[:5], batches=2)
    for name in ("rows.npy", "ids.jsonl"):  # killed in the middle of a block
        with open(writer.folder / name, "ab") as file:
            file.write(b"torn")
    assert not output.exists() and not is_finished(output, PLAN)
    with FeatureWriter(output, (3,), PLAN) as writer:
        assert (writer.rows, writer.batches) == (5, 2)
        writer.append(vectors[5:], ids[5:], batches=3)
        writer.finish()
    np.testing.assert_array_equal(np.load(output), vectors)
    assert [json.loads(line) for line in ids_path(output).read_text().splitlines()] == ids
    assert is_finished(output, PLAN)


def test_an_output_of_another_plan_is_refused(tmp_path):
    vectors, ids = draw_rows(4)
    output, other = tmp_path / "f.npy", {**PLAN, "layers": [3]}
    with FeatureWriter(output, (3,), PLAN) as writer:
        writer.append(vectors, ids, batches=1)
    with pytest.raises(FeatureFileError, match=r"holds an unfinished f.npy, .* layers was \[1, 3\] and is now \[3\]"):
        FeatureWriter(output, (3,), other)
    write(output, vectors, ids, ())
    with pytest.raises(FeatureFileError, match=r"f.npy exists already, .* layers was \[1, 3\]"):
        is_finished(output, other)
    description_path(output).unlink()
    with pytest.raises(FeatureFileError, match="does not say of what"):
        is_finished(output, PLAN)


def test_a_second_process_is_kept_out(tmp_path):
    with FeatureWriter(tmp_path / "f.npy", (3,), PLAN), pytest.raises(FeatureFileError, match="another process"):
        FeatureWriter(tmp_path / "f.npy", (3,), PLAN)
    with FeatureWriter(tmp_path / "f.npy", (3,), PLAN) as writer:
        assert writer.rows == 0


@pytest.mark.parametrize(
    "name, sentence", [("f.csv", "must end in .npy or .parquet"), ("no/f.npy", "There is no folder .*no to write")]
)
def test_an_impossible_output_is_refused(tmp_path, name, sentence):
    with pytest.raises(FeatureFileError, match=sentence):
        check_output(tmp_path / name)


def test_parquet_without_pyarrow_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(FeatureFileError, match=r"needs the package pyarrow: pip install 'keras-mae\[parquet\]'"):
        check_output(tmp_path / "f.parquet")
