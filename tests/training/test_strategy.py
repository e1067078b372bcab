"""Which strategy is chosen, and what is refused before anything starts."""

import json

import pytest
import tensorflow as tf
from fixtures.worker_processes import tf_config

from keras_mae.training import strategy as strategies
from keras_mae.training import tpu
from keras_mae.training.cluster import Cluster, WorkerFlags
from keras_mae.training.strategy import dtype_policy, make_strategy
from keras_mae.training.workers import all_succeed, exchange, is_chief

SRUN = {
    "SLURM_JOB_ID": "7",
    "SLURM_PROCID": "0",
    "SLURM_STEP_NODELIST": "a[1-2]",
    "SLURM_STEP_NUM_TASKS": "2",
}


@pytest.fixture
def starts(monkeypatch):
    """Lists the summons and the clusters of workers that would have met and started; nothing names any yet."""
    for name in ("TF_CONFIG", *SRUN, "SLURM_NTASKS", "SLURM_JOB_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    made = []

    def gather(summons, wait_seconds):
        made.append(summons)
        return Cluster(("a:1", "b:1"), summons.process)

    monkeypatch.setattr(strategies, "gather_workers", gather)
    monkeypatch.setattr(strategies, "_start_workers", lambda cluster: made.append(cluster) or "several workers")
    return made


def set_all(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_auto_takes_the_only_device_where_nothing_names_several(starts):
    assert make_strategy("auto") is tf.distribute.get_strategy()
    assert starts == []


@pytest.mark.parametrize("variables", [SRUN, {"TF_CONFIG": tf_config(["a:1", "b:1"], 0)}])
def test_auto_takes_several_workers_where_the_environment_names_them(starts, monkeypatch, capsys, variables):
    set_all(monkeypatch, variables)
    assert make_strategy("auto") == "several workers"
    assert starts[0].num_processes == 2
    assert "names 2 processes: strategy=multi_worker" in capsys.readouterr().err


def test_only_the_chief_says_what_auto_takes(starts, monkeypatch, capsys):
    set_all(monkeypatch, {**SRUN, "SLURM_PROCID": "1"})
    make_strategy("auto")
    assert capsys.readouterr().err == ""


def test_auto_takes_the_coordinator_of_the_command_line(starts):
    assert make_strategy("auto", WorkerFlags("a:1", 2, 1)) == "several workers"
    assert starts[0].process == 1


def test_a_batch_script_of_slurm_without_srun_runs_alone_and_says_so(starts, monkeypatch, capsys):
    set_all(
        monkeypatch, {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": "a[1-4]"}
    )
    assert make_strategy("auto") is tf.distribute.get_strategy()
    assert "this Slurm job has 4 tasks, but srun did not start this process" in capsys.readouterr().err
    assert make_strategy("multi_worker") == "several workers"


@pytest.mark.parametrize("name", ["none", "mirrored"])
def test_a_strategy_of_one_process_looks_at_no_environment(starts, monkeypatch, name):
    monkeypatch.setenv("TF_CONFIG", "damaged")
    make_strategy(name)
    assert starts == []


def test_a_cluster_of_one_process_needs_no_other(starts, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", tf_config(["a:1"], 0))
    assert make_strategy("multi_worker") is tf.distribute.get_strategy()
    assert starts == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "multi"}, "strategy must be one of auto, none, mirrored, multi_worker, tpu. Received: 'multi'"),
        ({"name": "multi_worker"}, "does not know who the workers are"),
        ({"name": "none", "workers": WorkerFlags("a:1", 2, 0)}, "are for strategy=multi_worker. Received: strategy=no"),
        ({"name": "mirrored", "tpu": "local"}, "tpu is for strategy=tpu. Received: tpu='local', strategy=mirrored"),
    ],
)
def test_options_that_nothing_would_use_are_refused(starts, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_strategy(**arguments)


@pytest.mark.parametrize(
    "config", ["{", json.dumps({"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}})]
)
def test_a_damaged_tf_config_is_refused(starts, monkeypatch, config):
    monkeypatch.setenv("TF_CONFIG", config)
    for name in ("auto", "multi_worker"):
        with pytest.raises(ValueError, match="TF_CONFIG does not say who the workers are"):
            make_strategy(name)


def test_a_process_without_others_is_the_chief_and_agrees_with_itself():
    alone = tf.distribute.get_strategy()
    assert is_chief(alone)
    assert exchange(alone, "ä") == ["ä"]
    with pytest.raises(ValueError, match="mine"), all_succeed(alone):
        raise ValueError("mine")


@pytest.fixture
def tpu_calls(monkeypatch):
    """Lists what is asked of a TPU that is not there."""
    calls = []

    def record(name):
        return lambda *args, **kwargs: calls.append((name, *args, *kwargs.items())) or name

    monkeypatch.setattr(tf.distribute.cluster_resolver, "TPUClusterResolver", record("resolver"))
    monkeypatch.setattr(tf.config, "experimental_connect_to_cluster", record("connect"))
    monkeypatch.setattr(tf.tpu.experimental, "initialize_tpu_system", record("initialize"))
    monkeypatch.setattr(tf.distribute, "TPUStrategy", record("strategy"))
    monkeypatch.setattr(tpu, "_probe", lambda name: None)
    return calls


LOCAL = [("resolver", ("tpu", "local")), ("initialize", "resolver"), ("strategy", "resolver")]


def test_a_tpu_elsewhere_is_connected_to_initialized_and_made_a_strategy(tpu_calls):
    assert make_strategy("tpu", tpu="my-tpu") == "strategy"
    resolver, *others = LOCAL
    assert tpu_calls == [("resolver", ("tpu", "my-tpu")), ("connect", "resolver"), *others]


@pytest.mark.parametrize("arguments", [{"name": "tpu"}, {"name": "auto", "tpu": "local"}])
def test_the_tpu_of_this_machine_needs_no_connection(tpu_calls, arguments):
    assert make_strategy(**arguments) == "strategy"
    assert tpu_calls == LOCAL


def test_a_tpu_computes_in_bfloat16_unless_told_otherwise(monkeypatch):
    assert dtype_policy("auto").compute_dtype == "float32"
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: ["core"] if kind == "TPU" else [])
    assert dtype_policy("auto").compute_dtype == "bfloat16"
    assert dtype_policy("float32").compute_dtype == "float32"


def test_a_tpu_that_does_not_start_is_one_sentence(tpu_calls, monkeypatch):
    def fail(resolver):
        raise tf.errors.NotFoundError(None, None, "TPUs not found in the cluster. And\nmore of that")

    monkeypatch.setattr(tf.tpu.experimental, "initialize_tpu_system", fail)
    with pytest.raises(
        ValueError, match=r"^No TPU 'local' could be started\..*The reason: TPUs not found in the cl\w+$"
    ):
        make_strategy("tpu")


def test_a_tpu_that_nothing_answers_for_is_named():
    with pytest.raises(ValueError, match=r"No TPU 'grpc://localhost:1'.*nothing answers at localhost:1"):
        make_strategy("tpu", tpu="grpc://localhost:1")


def test_a_command_of_one_process_does_not_wait_for_others(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", tf_config(["localhost:1", "localhost:2"], 0))
    for name in ("auto", "none", "mirrored"):
        assert strategies.make_one_process_strategy(name).num_replicas_in_sync == 1
    with pytest.raises(ValueError, match="strategy must be one of auto, none, mirrored. Received: 'multi_worker'"):
        strategies.make_one_process_strategy("multi_worker")
