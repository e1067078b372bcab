"""What a worker that is not the chief checks in the run folder, and how a request to stop travels."""

import keras
import pytest
import tensorflow as tf

from keras_mae.training import run_dir, shared_run
from keras_mae.training.keras_fit import WorkersModel
from keras_mae.training.shared_run import opened, stopping_together

RUN = {"command": "pretrain", "recipe": {"depth": 2, "sizes": (1, 2)}, "data": {}, "total_steps": 5}


@pytest.fixture
def second_worker(monkeypatch):
    """Makes this process one that is not the chief, and that does not wait."""
    monkeypatch.setattr(shared_run, "is_chief", lambda strategy: False)
    monkeypatch.setattr(shared_run, "SEEN_SECONDS", 0.0)


def test_a_worker_writes_nothing_into_a_run_that_it_sees(second_worker, tmp_path):
    run_dir.claim(tmp_path, RUN)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with opened(tmp_path, RUN, tf.distribute.get_strategy()):
        pass
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_worker_that_does_not_see_the_run_folder_says_so(second_worker, tmp_path):
    with (
        pytest.raises(run_dir.RunDirError, match=r"does not see the file .*recipe\.json that worker 0 has written"),
        opened(tmp_path / "run", RUN, tf.distribute.get_strategy()),
    ):
        pass
    assert not (tmp_path / "run").exists()


def test_a_worker_with_another_recipe_names_the_field(second_worker, tmp_path):
    run_dir.claim(tmp_path, RUN)
    other = {**RUN, "recipe": {**RUN["recipe"], "depth": 3}}
    with (
        pytest.raises(run_dir.RunDirError, match="recipe.depth of the run is 2, received 3"),
        opened(tmp_path, other, tf.distribute.get_strategy()),
    ):
        pass


class Counted(WorkersModel):
    """Reports two figures of each batch."""

    def train_step(self, data):
        return {"loss": tf.reduce_sum(data), "count": tf.cast(tf.shape(data)[0], tf.float32)}


def fitted(stop_at=None):
    """The logs of three steps; a stop is asked for before step `stop_at`."""
    model, figures, stops = Counted(), [], []
    model.built = True
    model.compile()
    model.stop_requested = lambda: len(figures) + 1 == stop_at

    def note(batch, logs):
        figures.append(dict(logs))
        stops.append(model.all_stop())

    callback = keras.callbacks.LambdaCallback(on_train_batch_end=note)
    data = tf.data.Dataset.from_tensor_slices(tf.constant([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])).batch(2)
    model.fit(data, verbose=0, shuffle=False, callbacks=[callback])
    return figures, stops


def test_fit_gives_the_figures_of_each_step_by_name():
    figures, stops = fitted()
    assert figures == [{"loss": 3.0, "count": 2.0}, {"loss": 7.0, "count": 2.0}, {"loss": 11.0, "count": 2.0}]
    assert stops == [False] * 3


def test_a_request_to_stop_travels_with_the_step():
    assert fitted(stop_at=2)[1] == [False, True, False]


def test_a_process_without_others_stops_as_soon_as_it_is_asked():
    asked = []
    model = Counted()
    with stopping_together(model, lambda: bool(asked)) as stop:
        assert not stop()
        asked.append(1)
        assert stop()
