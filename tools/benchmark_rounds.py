"""Contestants that do the same work in turn, round after round, so that what disturbs the machine disturbs all."""

import dataclasses
import os
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One way to do the work.

    Attributes:
        name: in the results.
        text: what it is, for the reader of a table.
        run: does the work into an empty folder, and returns seconds.
        check: raises if what `run` has left in the folder is not whole.
    """

    name: str
    text: str
    run: Callable[[Path], float]
    check: Callable[[Path], None]


def run_rounds(
    contestants: Sequence[Contestant], repeats: int, output: Path, log: Callable[[str], None]
) -> dict[str, list[float]]:
    """Lets every contestant run once in each round, each round beginning with another one.

    A first round fills the caches and is not counted; in it, outputs are checked. Before each run the output of the
    one before is deleted, and everything is written to disk, outside the timing.

    Args:
        contestants: with different names.
        repeats: rounds that are counted.
        output: folder to work in; made anew for each run, deleted at the end.
        log: is given a line for each round.

    Returns:
        For each name, the seconds of each round.
    """
    seconds = {contestant.name: [] for contestant in contestants}
    try:
        for number in range(repeats + 1):
            log(f"round {number} of {repeats}" if number else "first round, not counted")
            first = number % len(contestants)
            for contestant in (*contestants[first:], *contestants[:first]):
                _make_empty(output)
                elapsed = contestant.run(output)
                if number:
                    seconds[contestant.name].append(elapsed)
                else:
                    contestant.check(output)
    finally:
        shutil.rmtree(output, ignore_errors=True)
    return seconds


def _make_empty(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    os.sync()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of some values, to 4 digits."""
    figures = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: float(f"{value:.4g}") for name, value in figures.items()}


def speed_ratio(seconds: Mapping[str, Sequence[float]], name: str, other: str) -> dict[str, float]:
    """How many times as fast as another a contestant was, compared round by round."""
    return spread([theirs / ours for ours, theirs in zip(seconds[name], seconds[other], strict=True)])


def summary(
    contestants: Sequence[Contestant], seconds: Mapping[str, Sequence[float]], yardstick: str, images: int, size: int
) -> dict[str, dict[str, Any]]:
    """For each contestant its times, its speed, and the ratio to the speed of one of them.

    Args:
        contestants: in the order of the result.
        seconds: as `run_rounds` returns them.
        yardstick: name of the contestant to compare with.
        images: that each run handled.
        size: their bytes.
    """
    rows = {}
    for contestant in contestants:
        times = seconds[contestant.name]
        median = statistics.median(times)
        rows[contestant.name] = {
            "text": contestant.text,
            "rounds": [round(value, 4) for value in times],
            "seconds": spread(times),
            "images_per_second": round(images / median, 1),
            "mb_per_second": round(size / 1e6 / median, 1),
            "ratio": speed_ratio(seconds, contestant.name, yardstick),
        }
    return rows


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows of `summary` as text; the first one is the yardstick."""
    yardstick = next(iter(rows.values()))["text"]
    lines = [f"{'':<39}{'seconds':>8} {'(spread)':<15}{'images/s':>9}{'MB/s':>7}  times {yardstick}"]
    for row in rows.values():
        seconds = row["seconds"]
        times = f"{seconds['median']:>8.2f} {'({min:.2f}-{max:.2f})'.format(**seconds):<15}"
        speed = f"{row['images_per_second']:>9,.0f}{row['mb_per_second']:>7,.0f}"
        lines.append(f"{row['text']:<39}{times}{speed}  {ratio_text(row['ratio'])}")
    return "\n".join(lines)


def ratio_text(ratio: Mapping[str, float]) -> str:
    """A ratio with its spread."""
    return "{median:.2f} ({min:.2f}-{max:.2f})".format(**ratio)
