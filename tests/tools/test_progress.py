"""Progress: silent for short work, then rate and time left."""

import io

from tools.progress import Progress


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
