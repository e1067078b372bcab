"""Features on disk: `.npy` with a line of JSON an image beside it, or Parquet with both in one file.

Rows are appended to a hidden folder `.NAME.unfinished` beside the output, which also says what they are and how far
they go, so that a pass that was killed goes on behind its last whole block. The output appears under its name when all
is there. Beside it lies `NAME.json`: what it was made of.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from keras_mae.training.atomic import write_text

SUFFIXES = (".npy", ".parquet")
PARQUET_ROWS = 1024  # of a row group


class FeatureFileError(ValueError):
    """The output cannot be written, or holds something else."""


def check_output(output: pathlib.Path) -> None:
    """Raises FeatureFileError unless a file of this name can be written."""
    if output.suffix not in SUFFIXES:
        raise FeatureFileError(f"--output must end in {' or '.join(SUFFIXES)}. Received: {output}")
    if not output.parent.is_dir():
        raise FeatureFileError(f"There is no folder {output.parent} to write {output.name} into.")
    if output.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise FeatureFileError(
                f"writing {output.name} needs the package pyarrow: pip install 'keras-mae[parquet]'"
            ) from None


def ids_path(output: pathlib.Path) -> pathlib.Path:
    """Where the ids of an `.npy` are: a line of JSON a row."""
    return output.with_suffix(".jsonl")


def description_path(output: pathlib.Path) -> pathlib.Path:
    """Where it says what an output was made of."""
    return output.with_name(output.name + ".json")


def is_finished(output: pathlib.Path, plan: Mapping) -> bool:
    """Whether the output is there already.

    Args:
        output: as of `FeatureWriter`.
        plan: as of `FeatureWriter`.

    Raises:
        FeatureFileError: it is there, but not of this plan.
    """
    if not output.exists():
        return False
    _check_plan(description_path(output), plan, f"{output} exists already")
    shutil.rmtree(_unfinished(output), ignore_errors=True)  # of a run that was killed at its very end
    return True


class FeatureWriter:
    """Writes rows block by block.

    Args:
        output: `.npy` or `.parquet`.
        row_shape: shape of the features of an image; float32.
        plan: what decides the rows, as JSON values.

    Attributes:
        batches: how many batches of the pass are written; 0 in the beginning.
        rows: how many rows.

    Raises:
        FeatureFileError: an unfinished output is of another plan, or another process writes it.
    """

    def __init__(self, output: pathlib.Path, row_shape: Sequence[int], plan: Mapping):
        self.output, self.row_shape, self.plan = output, tuple(row_shape), plan
        self.folder = _unfinished(output)
        self.folder.mkdir(exist_ok=True)
        self._files = contextlib.ExitStack()
        self._rows_file = self._open("rows.npy")
        try:
            fcntl.flock(self._rows_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._files.close()
            raise FeatureFileError(f"{output} is being written by another process.") from None
        self._ids_file = self._open("ids.jsonl")
        try:
            self._begin()
        except FeatureFileError:
            self._files.close()
            raise

    def _open(self, name):
        # For reading and writing anywhere; an older file stays as it is.
        descriptor = os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o666)
        return self._files.enter_context(os.fdopen(descriptor, "r+b"))

    def _begin(self) -> None:
        plan, progress = self.folder / "plan.json", self.folder / "progress.json"
        if plan.exists():
            _check_plan(plan, self.plan, f"{self.folder} holds an unfinished {self.output.name}")
        else:
            write_text(plan, json.dumps(self.plan, indent=1) + "\n")
        state = json.loads(progress.read_text()) if progress.exists() else {"batches": 0, "rows": 0, "ids_bytes": 0}
        self.batches, self.rows = state["batches"], state["rows"]
        self._rows_file.seek(0)
        self._write_header()
        for file, end in (
            (self._rows_file, self._rows_file.tell() + self.rows * 4 * int(np.prod(self.row_shape))),
            (self._ids_file, state["ids_bytes"]),
        ):
            file.seek(end)
            file.truncate()

    def append(self, vectors: np.ndarray, ids: Sequence[Mapping], batches: int) -> None:
        """Adds rows.

        Args:
            vectors: float32 (rows, ...), as many numbers a row as `row_shape` has.
            ids: of each row, JSON values by name.
            batches: number of batches that they are of.
        """
        self._rows_file.write(np.ascontiguousarray(vectors, "<f4").data)
        self._ids_file.write("".join(json.dumps(row) + "\n" for row in ids).encode())
        self._sync()
        self.batches, self.rows = self.batches + batches, self.rows + len(ids)
        state = {"batches": self.batches, "rows": self.rows, "ids_bytes": self._ids_file.tell()}
        write_text(self.folder / "progress.json", json.dumps(state) + "\n")

    def finish(self) -> None:
        """Gives the output its name."""
        self._rows_file.seek(0)
        self._write_header()
        self._sync()
        description = {**self.plan, "rows": self.rows, "row_shape": self.row_shape}
        write_text(description_path(self.output), json.dumps(description, indent=1) + "\n")
        rows = self.folder / "rows.npy"
        if self.output.suffix == ".parquet":
            rows = self.folder / "rows.parquet"
            _write_parquet(rows, self.folder, description)
        else:
            os.replace(shutil.copyfile(self.folder / "ids.jsonl", self.folder / "ids.copy"), ids_path(self.output))
        os.replace(rows, self.output)
        self._files.close()
        shutil.rmtree(self.folder)

    def _write_header(self) -> None:
        # NumPy leaves room for the number of rows to grow, so that the header keeps its size.
        header = {"descr": "<f4", "fortran_order": False, "shape": (self.rows, *self.row_shape)}
        np.lib.format.write_array_header_1_0(self._rows_file, header)

    def _sync(self) -> None:
        for file in (self._rows_file, self._ids_file):
            file.flush()
            os.fsync(file.fileno())

    def __enter__(self):
        return self

    def __exit__(self, *error):
        """Leaves what is missing to a later run."""
        self._files.close()


def _unfinished(output: pathlib.Path) -> pathlib.Path:
    return output.with_name(f".{output.name}.unfinished")


def _check_plan(path: pathlib.Path, plan: Mapping, sentence: str) -> None:
    try:
        before = json.loads(path.read_text())
        changed = [name for name, value in json.loads(json.dumps(plan)).items() if before.get(name) != value]
    except (OSError, ValueError, AttributeError):
        raise FeatureFileError(f"{sentence}, but {path} does not say of what; remove it or take another name") from None
    if changed:
        found = ", ".join(f"{name} was {before.get(name)!r} and is now {plan[name]!r}" for name in changed)
        raise FeatureFileError(f"{sentence}, made otherwise: {found}. Remove it, or give another --output")


def _write_parquet(path: pathlib.Path, folder: pathlib.Path, description: Mapping) -> None:
    """One row an image: the columns of its id, and `features`, a list of fixed length."""
    import pyarrow
    from pyarrow import parquet

    rows = np.load(folder / "rows.npy", mmap_mode="r")
    width = int(np.prod(rows.shape[1:]))
    metadata = {"keras_mae": json.dumps(description)}
    with contextlib.ExitStack() as stack:
        writer = None
        for start, ids in _groups(folder / "ids.jsonl"):
            numbers = pyarrow.array(np.asarray(rows[start : start + len(ids)]).reshape(-1))
            features = pyarrow.FixedSizeListArray.from_arrays(numbers, width)
            table = pyarrow.Table.from_pylist(ids, _schema(pyarrow, ids[0])).append_column("features", features)
            if writer is None:
                schema = table.schema.with_metadata(metadata)
                writer = stack.enter_context(parquet.ParquetWriter(path, schema))
            writer.write_table(table.replace_schema_metadata(metadata))


def _schema(pyarrow, row: Mapping):
    kinds = {"index": pyarrow.int64(), "label": pyarrow.int32()}
    return pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in row])


def _groups(path: pathlib.Path) -> Iterator[tuple[int, list[dict]]]:
    """(number of the first row, rows) of each row group."""
    ids: list[dict] = []
    with open(path) as lines:
        for number, line in enumerate(lines):
            # Names of files need not be valid text, those in Parquet must.
            row = json.loads(line)
            ids.append(
                {k: v.encode(errors="backslashreplace").decode() if isinstance(v, str) else v for k, v in row.items()}
            )
            if len(ids) == PARQUET_ROWS:
                yield number + 1 - len(ids), ids
                ids = []
    if ids:
        yield number + 1 - len(ids), ids
