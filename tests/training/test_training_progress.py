"""The progress line: rate, time left, and no more than a terminal is wide."""

import math
import os

import pytest

from keras_mae.training.progress import Progress, duration_text


@pytest.fixture
def clock(monkeypatch):
    """List of the times that `time.monotonic` gives, one a call."""
    times = []
    monkeypatch.setattr("keras_mae.training.progress.time.monotonic", lambda: times.pop(0))
    return times


def test_progress_shows_rate_and_time_left(capsys, clock):
    clock += [0.0, 20.0]
    progress = Progress(total_steps=101)
    progress.update(1, lambda: "loss 1")
    progress.update(41, lambda: f"rate {progress.rate}")
    assert capsys.readouterr().err == "step 41/101  rate 2.0  ETA 0:00:30\n"


def test_figures_are_made_for_a_line_that_is_shown_only(capsys, clock):
    clock += [100.0, 101.0, 114.0, 116.0, 117.0]
    progress, made = Progress(total_steps=5), []
    for step in range(1, 6):
        progress.update(step, lambda step=step: made.append(step) or "")
    assert made == [1, 4, 5]  # at once, after 15 s, and at the end
    assert capsys.readouterr().err.count("\n") == 3


def test_a_long_line_is_cut_to_the_terminal(capsys, clock, monkeypatch):
    clock += [100.0, 101.0]
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((30, 24)))
    progress = Progress(total_steps=9)
    progress.update(1, lambda: "loss " + 40 * "1")
    progress.update(2, lambda: "x")
    progress.close()
    first, second = capsys.readouterr().err.removesuffix("\n").split("\r")[1:]
    assert first == f"step 1/9  loss {40 * '1'}"[:29]
    assert second == f"{'step 2/9  x  ETA 0:00:07':<29}"  # no letter of the longer line stays


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (59.9, "0:00:59"), (3600, "1:00:00"), (359999, "99:59:59"), (math.inf, "?")]
)
def test_durations_are_hours_minutes_and_seconds(seconds, text):
    assert duration_text(seconds) == text
