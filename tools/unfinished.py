"""Shards of a run that has not finished: marked while they are written, removed if it fails.

A hidden file `.SPLIT.unfinished` lies beside the shards from before the first one until after the manifest
lists them. So files without a manifest entry are known to be this software's own, and a run that was killed
can simply be run again.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from keras_mae.commandline import CommandError
from pipeline.atomic import temporary_path
from pipeline.manifest import MANIFEST_NAME


@contextlib.contextmanager
def unfinished_files(output: Path, files: dict[str, list[str]]) -> Iterator[None]:
    """Makes the folder `output` and marks splits in it as unfinished until the block ends well.

    If the block raises, the files and marks are removed, and `output` too if it was made here.

    Args:
        output: folder of the shard set.
        files: for each split that no manifest lists, the names of the files that the block will write.

    Raises:
        CommandError: `output` cannot be written, or holds files of such a split that no killed run left.
    """
    is_new = not output.exists()
    marks = [_mark(output, split) for split in files]
    try:
        output.mkdir(parents=True, exist_ok=True)
        for split in files:
            _remove_leftovers(output, split)
        for mark in marks:
            mark.write_text("tools.make_shards is writing this split, or was killed while it did.\n")
    except OSError as error:
        raise CommandError(f"--output={output} cannot be written: {error.strerror}; choose another folder") from None
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for name in (name for names in files.values() for name in names):
                (output / name).unlink(missing_ok=True)
                temporary_path(output / name).unlink(missing_ok=True)
            for mark in marks:
                mark.unlink(missing_ok=True)
            if is_new:
                output.rmdir()
        raise
    for mark in marks:
        mark.unlink()


def clear_mark(output: Path, split: str) -> None:
    """Removes the mark of a finished split, which a kill between the manifest and the end leaves behind."""
    _mark(output, split).unlink(missing_ok=True)


def _mark(output: Path, split: str) -> Path:
    return output / f".{split}.unfinished"


def _remove_leftovers(output: Path, split: str) -> None:
    pattern = re.compile(rf"\.?{re.escape(split)}-\d{{6}}\.(tar|idx)(\.tmp)?")
    leftovers = sorted(path for path in output.iterdir() if pattern.fullmatch(path.name))
    if leftovers and not _mark(output, split).exists():
        raise CommandError(
            f"{leftovers[0]} exists, and no {MANIFEST_NAME} lists it; "
            f"move or delete {split}-*.tar and {split}-*.idx there, or choose another --output"
        )
    for path in leftovers:
        path.unlink()
