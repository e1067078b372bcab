"""Rows of list files: .csv, .tsv, .jsonl and .parquet, streamed once and then read again by their position.

Of each row only its place in the file is kept, 8 bytes, so that a list of millions fits in memory whatever its
rows say. What cannot be read again in place, a list behind a URL or in Parquet, is first unpacked into a
temporary file, which goes when the list does. This module imports pyarrow only for Parquet.
"""

import array
import csv
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from pipeline.locations import SourceError, is_url, named_errors, open_file, suffix_of
from pipeline.sources.base import JSON_NUMBERS

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_SUFFIXES = (".jsonl", ".ndjson")
PARQUET_SUFFIX = ".parquet"
LIST_SUFFIXES = (*DELIMITERS, *JSON_SUFFIXES, PARQUET_SUFFIX)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_PARQUET_ROWS = 4096  # unpacked at a time
_JSON = json.JSONDecoder(**JSON_NUMBERS)


class RowError(ValueError):
    """A row cannot be used; the message says why, as the second half of a sentence on the row."""


class TextLines:
    """The lines of a UTF-8 file, their line ends included.

    Args:
        file: open for reading.
        name: what messages call it.

    Attributes:
        number: of the line that was given last, from 1 on.
        end: its end in bytes from the start of the file.
    """

    def __init__(self, file: BinaryIO, name: str):
        self.number = self.end = 0
        self._file, self._name = file, name

    def __iter__(self) -> Iterator[str]:
        for data in self._file:
            self.number += 1
            self.end += len(data)
            try:
                yield _decode(data)
            except UnicodeDecodeError as error:
                raise SourceError(
                    f"{self._name}, line {self.number} is not UTF-8 ({error.reason}: {data[error.start]:#x}); "
                    "save the file as UTF-8"
                ) from None


class ListFile:
    """A list whose rows are streamed by `rows`, and then given again by `read`.

    Args:
        file: path or URL of a list; its suffix says the format.

    Attributes:
        file: the same, as text.
        line: where the row starts that `rows` gave last: its line, from 1 on; of Parquet its row.

    Raises:
        SourceError: `file` is a folder, or has none of `LIST_SUFFIXES`.
    """

    def __init__(self, file: str | os.PathLike):
        self.file = os.fspath(file)
        kinds = f"expected a file ending in {', '.join(LIST_SUFFIXES)}"
        if not is_url(self.file) and os.path.isdir(self.file):
            raise SourceError(f"{self.file} is a folder and no list; {kinds}")
        self._suffix = suffix_of(self.file)
        if self._suffix not in LIST_SUFFIXES:
            raise SourceError(f"{self.file} is no list that can be read; {kinds}, received {self._suffix!r}")
        self._unpacked: BinaryIO | None = None

    def where(self) -> str:
        """What messages call the row that was given last."""
        return f"{self.file}, {'row' if self._suffix == PARQUET_SUFFIX else 'line'} {self.line}"

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields the columns of each row.

        Raises:
            SourceError: the file or a row cannot be read; the message names the line.
        """
        self._starts = array.array("q")
        self.line = 1
        parse = self._delimited_rows if self._suffix in DELIMITERS else self._json_rows
        with self._open() as file:
            self._status = _status(file.fileno())
            lines = TextLines(file, self.file)
            try:
                for start, values in parse(lines):
                    self._starts.append(start)
                    yield values
            except RowError as error:
                raise SourceError(f"{self.where()} {error}") from None
            self._starts.append(lines.end)

    def read(self, positions: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Yields the columns of some rows, counted from 0, once `rows` has given all.

        Raises:
            SourceError: the file is gone or has changed.
        """
        parse = self._parse_delimited if self._suffix in DELIMITERS else _parse_json
        with self._reopen() as file:
            descriptor = file.fileno()
            if _status(descriptor) != self._status:
                raise SourceError(f"{self.file} changed while shards were made; start again")
            for position in positions:
                start, end = self._starts[position], self._starts[position + 1]
                yield parse(_decode(os.pread(descriptor, end - start, start)))

    def _open(self) -> BinaryIO:
        if self._suffix != PARQUET_SUFFIX and not is_url(self.file):
            return open_file(self.file)
        self._unpacked = tempfile.TemporaryFile()  # without a name: it is gone with the process, however that ends
        weakref.finalize(self, self._unpacked.close)
        with open_file(self.file) as file, named_errors(self.file):
            if self._suffix == PARQUET_SUFFIX:
                _unpack_parquet(self.file, file, self._unpacked)
            else:
                shutil.copyfileobj(file, self._unpacked)
        return self._reopen()

    def _reopen(self) -> BinaryIO:
        if self._unpacked is None:
            return open_file(self.file)
        self._unpacked.seek(0)  # which also writes what is still buffered
        return open(self._unpacked.fileno(), "rb", closefd=False)

    def _json_rows(self, lines: TextLines) -> Iterator[tuple[int, dict[str, Any]]]:
        start = 0
        for text in lines:
            if not text.isspace():
                self.line = lines.number
                yield start, _parse_json(text)
            start = lines.end

    def _delimited_rows(self, lines: TextLines) -> Iterator[tuple[int, dict[str, Any]]]:
        start, self._columns = 0, None
        try:
            for fields in self._reader(lines):
                if not fields:  # an empty line
                    pass
                elif self._columns is None:
                    self._columns = self._check_header(fields)
                else:
                    yield start, self._name_fields(fields)
                start, self.line = lines.end, lines.number + 1
        except csv.Error as error:
            raise RowError(f"is damaged: {error}") from None

    def _reader(self, lines: Iterator[str]) -> Iterator[list[str]]:
        return csv.reader(iter(lines), delimiter=DELIMITERS[self._suffix], strict=True, skipinitialspace=True)

    def _check_header(self, fields: list[str]) -> list[str]:
        if twice := [name for name in fields if fields.count(name) > 1]:
            raise RowError(f"names two columns {twice[0]!r}; expected different names")
        return fields

    def _name_fields(self, fields: list[str]) -> dict[str, Any]:
        if len(fields) != len(self._columns):
            raise RowError(
                f"has {len(fields)} fields; expected {len(self._columns)}, the columns that the first line names"
            )
        return dict(zip(self._columns, fields, strict=True))

    def _parse_delimited(self, text: str) -> dict[str, Any]:
        return self._name_fields(next(self._reader([text])))


def _decode(data: bytes) -> str:
    return data.removeprefix(_BYTE_ORDER_MARK).decode()


def _parse_json(text: str) -> dict[str, Any]:
    try:
        values = _JSON.decode(text)
    except (ValueError, RecursionError) as error:
        raise RowError(f"is no JSON: {error}; expected one object in each line") from None
    if type(values) is not dict:
        raise RowError(f'holds {values!r}; expected an object in each line, such as {{"image": "a.jpg"}}')
    return values


def _status(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def _unpack_parquet(name: str, source: BinaryIO, target: BinaryIO) -> None:
    # Writes the rows as JSON lines.
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise SourceError(f"reading {name} needs the package pyarrow: pip install 'keras-mae[parquet]'") from None
    try:
        table = parquet.ParquetFile(source)
        columns = table.schema_arrow.names
        if len(set(columns)) != len(columns):
            raise SourceError(f"{name} has two columns of one name among {', '.join(columns)}; rename one")
        for batch in table.iter_batches(_PARQUET_ROWS):
            for row in batch.to_pylist():
                target.write(json.dumps(row, default=_plain).encode() + b"\n")
    except (pyarrow.ArrowException, OSError) as error:
        raise SourceError(f"{name} cannot be read as Parquet: {error}") from None
    except RowError as error:
        raise SourceError(f"{name} {error}") from None


def _plain(value: Any) -> str:
    # Times, dates and decimals as text.
    if isinstance(value, bytes):
        raise RowError("has a column that holds bytes; expected paths, text and numbers. Leave the column out")
    return str(value)
