"""How much memory a training has taken."""

import resource
import sys

import tensorflow as tf

# getrusage counts in KiB, on macOS in bytes.
MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024


def peak_memory() -> dict[str, float]:
    """The most memory that this process has held so far, in GB (10**9 bytes).

    Returns:
        `memory_gb`, of main memory; where there are GPUs `gpu_memory_gb` too, of the one that held most.
    """
    figures = {"memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_BYTES / 1e9, 3)}
    gpus = tf.config.list_logical_devices("GPU")
    if gpus:
        peaks = (tf.config.experimental.get_memory_info(gpu.name)["peak"] for gpu in gpus)
        figures["gpu_memory_gb"] = round(max(peaks) / 1e9, 3)
    return figures
