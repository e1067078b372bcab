"""Devices, precision and determinism of a run."""

import os

import keras
import tensorflow as tf

STRATEGIES = ("auto", "none", "mirrored")
PRECISIONS = ("auto", "float32", "bfloat16")
DETERMINISTIC = ("auto", "true", "false")


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


def make_strategy(name: str) -> tf.distribute.Strategy:
    """The tf.distribute strategy of the given name.

    Args:
        name: "none" one device; "mirrored" all GPUs of this machine, or all logical CPUs where there is no GPU;
            "auto" mirrored where there are several GPUs, else none.

    Raises:
        ValueError: unknown name.
    """
    _check("strategy", name, STRATEGIES)
    gpus = tf.config.list_logical_devices("GPU")
    if name == "none" or (name == "auto" and len(gpus) < 2):
        return tf.distribute.get_strategy()
    devices = gpus or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def dtype_policy(precision: str) -> keras.DTypePolicy:
    """Keras policy for a precision: bfloat16 keeps float32 weights; "auto" is bfloat16 on GPUs, float32 on CPUs.

    Raises:
        ValueError: unknown precision.
    """
    _check("precision", precision, PRECISIONS)
    if precision == "auto":
        precision = "bfloat16" if tf.config.list_physical_devices("GPU") else "float32"
    return keras.DTypePolicy("mixed_bfloat16" if precision == "bfloat16" else "float32")


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
