"""The file of one checkpoint: every variable by its path, and a JSON state. Whole or not there.

It is an `.npz`, which `numpy.load` reads too. Writing goes in pieces that hold no lock of Python's for long, so that a
thread can do it while training goes on. The same content gives the same bytes.
"""

import contextlib
import io
import json
import os
import pathlib
import time
import zipfile
from collections.abc import Callable, Mapping

import numpy as np

STATE = "__state__"
PIECE_BYTES = 4 << 20


class DamagedCheckpointError(ValueError):
    """A file that is no whole checkpoint; the message says what is wrong with it."""


def write_checkpoint(
    path: pathlib.Path, arrays: Mapping[str, np.ndarray], state: dict, rest: Callable[[float], None] | None = None
) -> None:
    """Writes beside the name, flushes to the disk, then renames.

    Args:
        path: of the checkpoint.
        arrays: name -> array.
        state: JSON values.
        rest: called after each piece with the seconds that it took; may wait, to leave the processor to others.

    Raises:
        OSError: the disk is full, or the folder cannot be written; an older `path` is as it was.
    """
    temporary = path.with_suffix(".tmp")
    try:
        with open(temporary, "wb") as file:
            _write_arrays(file, {**arrays, STATE: np.asarray(json.dumps(state))}, rest)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def read_checkpoint(path: pathlib.Path) -> tuple[dict, dict[str, np.ndarray]]:
    """State and arrays; every byte of them is checked.

    Raises:
        DamagedCheckpointError: they are not what was written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if STATE not in names:
                raise ValueError("it is no checkpoint of a training: there is no state in it")
            arrays = {name: _read_array(archive, name) for name in names}
        return json.loads(str(arrays.pop(STATE))), arrays
    except MemoryError:
        raise
    except Exception as error:  # zipfile, NumPy and json raise a dozen kinds on damaged bytes
        raise DamagedCheckpointError(_reason(path, error)) from error


def _write_arrays(file, arrays: Mapping[str, np.ndarray], rest: Callable[[float], None] | None) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            array = np.asarray(array, order="C")
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, np.lib.format.header_data_from_array_1_0(array))
                content = array.reshape(-1).view("uint8")
                for start in range(0, content.size, PIECE_BYTES):
                    begin = time.monotonic()
                    member.write(content[start : start + PIECE_BYTES])
                    if rest is not None:
                        rest(time.monotonic() - begin)


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    # As a whole first, which checks its CRC. np.load reads as far as the array's own header says, which may be damaged.
    return np.lib.format.read_array(io.BytesIO(archive.read(f"{name}.npy")), allow_pickle=False)


def _reason(path: pathlib.Path, error: Exception) -> str:
    if path.is_file() and not path.stat().st_size:
        return "it is empty"
    if path.is_file() and not zipfile.is_zipfile(path):
        return "it is cut short, or no checkpoint"
    return str(error) or type(error).__name__


def _sync_folder(folder: pathlib.Path) -> None:
    # Makes the new name outlive a loss of power, before older checkpoints go; not all file systems can.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
