"""Devices, hosts, precision and determinism of a run."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

import keras
import tensorflow as tf

from keras_mae.training import slurm
from keras_mae.training.cluster import EXAMPLE, Cluster, Summons, WorkerFlags, find_workers, gather_workers, own_gpus
from keras_mae.training.rendezvous import MissingWorkers
from keras_mae.training.run_options import ALONE, DETERMINISTIC, ONE_PROCESS_STRATEGIES, PRECISIONS, STRATEGIES
from keras_mae.training.tpu import start_tpu


def split_cpu(count: int, strategy: str) -> None:
    """Splits the CPU into `count` logical devices, to try `strategy` without several GPUs.

    Raises:
        ValueError: `count` is below 1, or nothing would use the devices.
        RuntimeError: TensorFlow has already started.
    """
    if count < 1:
        raise ValueError(f"virtual_cpus must be at least 1. Received: {count}")
    if strategy != "mirrored" or tf.config.list_physical_devices("GPU"):
        raise ValueError(
            "virtual_cpus is for strategy=mirrored on a machine without GPUs; nothing would use them here."
        )
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)


def make_strategy(name: str, workers: WorkerFlags = ALONE, tpu: str | None = None) -> tf.distribute.Strategy:
    """The tf.distribute strategy of the given name. To be called before anything else of TensorFlow.

    Args:
        name: "none" one device; "mirrored" all GPUs of this machine, or all logical CPUs where there is no GPU;
            "multi_worker" all GPUs of several processes, each of which runs the same command; "tpu" all cores of a TPU;
            "auto" multi_worker where `workers`, TF_CONFIG or srun name several processes, tpu where `tpu` names one,
            else mirrored where there are several GPUs, else none.
        workers: who the processes are; where it says nothing, the environment does, see `find_workers`.
        tpu: see `start_tpu`; "local" if None.

    Raises:
        ValueError: unknown name, options of another strategy, or nothing says who the workers are.
        MissingWorkers: not all of them came.
    """
    _check("strategy", name, STRATEGIES)
    if tpu is not None and name not in ("auto", "tpu"):
        raise ValueError(f"tpu is for strategy=tpu. Received: tpu={tpu!r}, strategy={name}")
    if workers.is_given() and name not in ("auto", "multi_worker"):
        raise ValueError(
            f"coordinator, num_processes and process_id are for strategy=multi_worker. Received: strategy={name}"
        )
    if name == "tpu" or tpu is not None:
        return start_tpu(tpu or "local")
    summons = _find_workers(name, workers) if name in ("auto", "multi_worker") else None
    if summons is not None and summons.num_processes > 1:
        return _start_workers(gather_workers(summons, workers.wait_seconds))
    return make_one_process_strategy("auto" if name == "multi_worker" else name)


def make_one_process_strategy(name: str) -> tf.distribute.Strategy:
    """A strategy for the devices of this process alone, whatever TF_CONFIG or Slurm say of others.

    Args:
        name: "none" one device; "mirrored" all GPUs of this machine, or all logical CPUs where there is no GPU; "auto"
            mirrored where there are several GPUs, else none.

    Raises:
        ValueError: unknown name.
    """
    _check("strategy", name, ONE_PROCESS_STRATEGIES)
    gpus = tf.config.list_logical_devices("GPU")
    if name == "none" or (name == "auto" and len(gpus) < 2):
        return tf.distribute.get_strategy()
    devices = gpus or tf.config.list_logical_devices("CPU")
    with _without_tf_config():
        return tf.distribute.MirroredStrategy([device.name for device in devices])


@contextlib.contextmanager
def _without_tf_config() -> Iterator[None]:
    # MirroredStrategy, too, would take the workers that it names.
    config = os.environ.pop("TF_CONFIG", None)
    try:
        yield
    finally:
        if config is not None:
            os.environ["TF_CONFIG"] = config


def _find_workers(name: str, workers: WorkerFlags) -> Summons | None:
    # For "auto" only what surely means one run of several processes.
    summons = find_workers(os.environ, workers)
    if name == "multi_worker" and summons is None:
        raise ValueError(
            "strategy=multi_worker does not know who the workers are. Expected: --coordinator, --num_processes and "
            f"--process_id; or Slurm's srun; or the environment variable TF_CONFIG, {EXAMPLE}. Received: none of them"
        )
    if name == "auto" and summons is not None and summons.num_processes > 1:
        if summons.source == "Slurm" and not slurm.is_step(os.environ):
            _say(f"NOTE: this Slurm job has {summons.num_processes} tasks, but srun did not start this process: alone.")
            return None
        if summons.process == 0:
            _say(f"{summons.source} names {summons.num_processes} processes: strategy=multi_worker")
    return summons


def _start_workers(cluster: Cluster) -> tf.distribute.MultiWorkerMirroredStrategy:
    gpus = tf.config.list_physical_devices("GPU")
    tf.config.set_visible_devices(own_gpus(cluster, gpus), "GPU")
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(cluster.addresses)}),
        task_type="worker",
        task_id=cluster.worker,
        rpc_layer="grpc",
    )
    # It waits in C++, where Python would never see a Ctrl-C, and leaves a handler behind that swallows SIGTERM.
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    except tf.errors.OpError as error:
        raise MissingWorkers(f"TensorFlow could not connect the workers: {error.message.splitlines()[0]}") from error
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def dtype_policy(precision: str) -> keras.DTypePolicy:
    """Keras policy for a precision, of float32 weights; "auto" is bfloat16 on GPUs and TPUs, float32 on CPUs.

    Raises:
        ValueError: unknown precision.
    """
    _check("precision", precision, PRECISIONS)
    if precision == "auto":
        is_fast = tf.config.list_physical_devices("GPU") or tf.config.list_logical_devices("TPU")
        precision = "bfloat16" if is_fast else "float32"
    return keras.DTypePolicy(precision if precision == "float32" else f"mixed_{precision}")


def set_determinism(deterministic: str) -> None:
    """Makes TensorFlow's ops deterministic: "true", "false", or "auto" (only where there is no GPU: there it is free).

    Raises:
        ValueError: unknown value.
    """
    _check("deterministic", deterministic, DETERMINISTIC)
    no_gpu = not tf.config.list_physical_devices("GPU")
    if deterministic == "true" or (deterministic == "auto" and no_gpu):
        os.environ["TF_DETERMINISTIC_OPS"] = "1"
        tf.config.experimental.enable_op_determinism()


def _check(name: str, value: str, expected: tuple[str, ...]) -> None:
    if value not in expected:
        raise ValueError(f"{name} must be one of {', '.join(expected)}. Received: {value!r}")
