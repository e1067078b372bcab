"""A trace of the named steps, and which steps may be named."""

import types

import pytest
import tensorflow as tf

from keras_mae.training.profiling import Profiling
from keras_mae.training.run_options import ProfilingError, check_profile_steps, parse_profile_steps


@pytest.fixture
def profiler(monkeypatch):
    """List of what the profiler is told, in place of the profiler."""
    told = []

    class Trace:
        def __init__(self, name, step_num, _r):
            self.step = step_num

        def __enter__(self):
            told.append(f"begin {self.step}")

        def __exit__(self, *error):
            told.append(f"end {self.step}")

    fake = types.SimpleNamespace(start=told.append, stop=lambda: told.append("stop"), Trace=Trace)
    monkeypatch.setattr("tensorflow.profiler.experimental", fake)
    return told


def run_steps(callback, count):
    for batch in range(count):
        callback.on_train_batch_begin(batch)
        callback.on_train_batch_end(batch)


def test_the_named_steps_are_traced(profiler):
    run_steps(Profiling(0, 9, steps=(3, 4), folder="tensorboard"), 9)
    assert profiler == ["tensorboard", "begin 3", "end 3", "begin 4", "end 4", "stop"]


@pytest.mark.parametrize(("start", "traced"), [(3, ["tensorboard", "begin 4", "end 4", "stop"]), (4, []), (8, [])])
def test_a_run_that_goes_on_traces_what_is_left(profiler, start, traced):
    run_steps(Profiling(start, 9, steps=(3, 4), folder="tensorboard"), 9 - start)
    assert profiler == traced


@pytest.mark.parametrize("words", [["100"], ["a", "b"], ["0", "5"], ["7", "5"], ["1", "2", "3"], ["1.5", "2"], []])
def test_anything_but_two_steps_in_order_is_refused(words):
    with pytest.raises(ProfilingError, match=f"such as 100,110. Received: {','.join(words)}$"):
        parse_profile_steps(words)


def test_steps_are_parsed():
    assert (parse_profile_steps(["100", "110"]), parse_profile_steps(["5", "5"])) == ((100, 110), (5, 5))
    assert parse_profile_steps(None) is None


def test_steps_behind_the_end_are_refused():
    check_profile_steps(None, 10)
    check_profile_steps((1, 10), 10)
    with pytest.raises(ProfilingError, match="which has 10 steps. Received: 5,11"):
        check_profile_steps((5, 11), 10)


def test_tensorboards_profiler_finds_the_trace(tmp_path, capsys):
    double = tf.function(lambda x: 2 * x)
    callback = Profiling(0, 3, steps=(2, 2), folder=tmp_path)
    for batch in range(3):
        callback.on_train_batch_begin(batch)
        double(tf.constant(1.0))
        callback.on_train_batch_end(batch)
    (trace,) = tmp_path.glob("plugins/profile/*/*.xplane.pb")
    assert b"train" in trace.read_bytes()
    assert f"{tmp_path}: a trace of the steps 2 to 2" in capsys.readouterr().out
