"""Progress: silent for short work, then rate and time left."""

import io
import threading

from tools.progress import Progress, announced


def test_short_work_is_silent():
    stream = io.StringIO()
    progress = Progress(10, 1000, stream, clock=iter([0.0, 1.0, 1.9]).__next__)
    progress.add(5, 500)
    progress.add(5, 500)
    progress.close()
    assert stream.getvalue() == ""


def test_long_work_shows_rate_and_time_left():
    stream = io.StringIO()
    now = [0.0]
    progress = Progress(400, 400_000_000, stream, clock=lambda: now[0])
    now[0] = 100.0
    progress.add(100, 100_000_000)
    now[0] = 101.0
    progress.add(1, 1)  # too soon for another line
    assert stream.getvalue() == "100/400 images, 1 images/s, 1.0 MB/s, 0:05:00 left\n"


def test_long_work_is_announced_and_short_work_is_not():
    stream = io.StringIO()
    with announced("listing", after=60.0, stream=stream):
        pass
    assert stream.getvalue() == ""
    spoken = threading.Event()
    stream.flush = spoken.set
    with announced("listing", after=0.0, stream=stream):
        assert spoken.wait(10)
    assert stream.getvalue() == "listing\n"


def test_counts_are_shown_beside_the_rates_and_no_rate_of_bytes_that_nobody_counts():
    stream, now = io.StringIO(), iter([0.0, 10.0, 10.0, 10.0])
    progress = Progress(100, 0, stream, lambda: next(now), unit="tars")
    progress.add(20, 0, {"skipped": 2, "cmyk": 0})
    assert stream.getvalue() == "20/100 tars, 2 tars/s, 0:00:40 left, 2 skipped\n"
