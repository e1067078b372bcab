"""TPUs: from a name to a strategy."""

import socket

import tensorflow as tf

from keras_mae.training.rendezvous import split_address

_METADATA = ("metadata.google.internal", 80)  # answers on machines of Google Cloud
_PROBE_SECONDS = 10.0


def start_tpu(name: str) -> tf.distribute.Strategy:
    """A strategy over all cores of a TPU.

    Args:
        name: "local" on a TPU VM; the name or the grpc:// address of a TPU elsewhere.

    Raises:
        ValueError: there is no such TPU.
    """
    try:
        _probe(name)
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
        if name != "local":
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except (tf.errors.OpError, ValueError, RuntimeError, OSError) as error:
        raise ValueError(
            f"No TPU {name!r} could be started. Expected for --tpu: local on a TPU VM, or the name or grpc:// address "
            f"of a TPU. The reason: {_first_sentence(error)}"
        ) from error


def _probe(name: str) -> None:
    # TensorFlow itself would try for many minutes.
    if name == "local":
        return
    address = split_address(name.removeprefix("grpc://")) if name.startswith("grpc://") else _METADATA
    try:
        socket.create_connection(address, _PROBE_SECONDS).close()
    except OSError as error:
        raise OSError(f"nothing answers at {address[0]}:{address[1]} ({error.strerror or error})") from None


def _first_sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].partition(". ")[0] if lines else type(error).__name__
