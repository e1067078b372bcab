"""Where and on what a run is carried out, and what of it is watched. Imports neither Keras nor TensorFlow."""

import dataclasses
from collections.abc import Sequence

from keras_mae.training.cluster import WorkerFlags

ONE_PROCESS_STRATEGIES = ("auto", "none", "mirrored")
STRATEGIES = (*ONE_PROCESS_STRATEGIES, "multi_worker", "tpu")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
DETERMINISTIC = ("auto", "true", "false")
ALONE = WorkerFlags()


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Where and on what a run is carried out; nothing here changes what is learned beyond rounding.

    Attributes:
        run_dir: folder of recipe.json, logs, checkpoints and export.
        strategy: as `make_strategy` takes it, and so are workers and tpu.
        precision: "auto", "float32", "bfloat16" or "float16".
        deterministic: "auto", "true" or "false".
        virtual_cpus: logical devices the CPU is split into.
        profile_steps: first and last step to trace for TensorBoard's profiler; None for none.
        wandb_project: of Weights & Biases; None for none.
    """

    run_dir: str
    strategy: str = "auto"
    precision: str = "auto"
    deterministic: str = "auto"
    virtual_cpus: int = 1
    profile_steps: tuple[int, int] | None = None
    wandb_project: str | None = None
    workers: WorkerFlags = ALONE
    tpu: str | None = None


class ProfilingError(ValueError):
    """The run has no such steps to profile."""


def parse_profile_steps(words: Sequence[str] | None) -> tuple[int, int] | None:
    """First and last step of `--profile_steps=100,110`; None for none.

    Raises:
        ProfilingError: anything but two steps in order.
    """
    if words is None:
        return None
    try:
        first, last = (int(word) for word in words)
    except ValueError:
        first, last = 0, 0
    if not 1 <= first <= last:
        raise ProfilingError(
            "profile_steps takes the first and the last step to trace, counted from 1, such as 100,110. "
            f"Received: {','.join(words)}"
        )
    return first, last


def check_profile_steps(steps: tuple[int, int] | None, total_steps: int) -> None:
    """Raises ProfilingError if the run ends before the last of these steps."""
    if steps is not None and steps[1] > total_steps:
        raise ProfilingError(
            f"profile_steps must lie within the run, which has {total_steps} steps. Received: {steps[0]},{steps[1]}"
        )
