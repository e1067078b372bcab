"""What commands share on their command line: where the data is, where the run goes, on what it runs."""

from absl import flags

from keras_mae.training.cluster import WorkerFlags
from keras_mae.training.experiment_tracker import check_wandb
from keras_mae.training.run_options import (
    DETERMINISTIC,
    ONE_PROCESS_STRATEGIES,
    PRECISIONS,
    STRATEGIES,
    RunOptions,
    parse_profile_steps,
)
from pipeline.load_options import ENGINES

POSITIONS = ("resize", "recompute")  # as layers.position_resize has them, which needs Keras


def define_run_flags() -> None:
    """Defines --data, --split, --val_split, --run_dir, what to run on, and how to read."""
    flags.DEFINE_string("data", None, "Folder of a shard set, as tools.make_shards writes it.")
    flags.DEFINE_string("split", None, "Split to train on; unset: train, or the only one.")
    flags.DEFINE_string("val_split", None, "Split to evaluate on; unset: val, where there is one; none: no evaluation.")
    flags.DEFINE_string("run_dir", None, "Folder for recipe, logs, checkpoints and the exported model.")
    define_strategy_flags()
    define_precision_flag()
    flags.DEFINE_string("deterministic", "auto", f"Bit-exact repetition: {', '.join(DETERMINISTIC)}. auto: on CPUs.")
    flags.DEFINE_integer("virtual_cpus", 1, "Split the CPU into so many devices, to try --strategy=mirrored.")
    flags.DEFINE_list("profile_steps", None, "First and last step to trace for TensorBoard's profiler: 100,110.")
    flags.DEFINE_string("wandb_project", None, "Log to this project of Weights & Biases, too (extra wandb).")
    flags.DEFINE_integer("max_corrupt", 0, "Images that may be skipped because they cannot be decoded; each is named.")
    define_reading_flags()


def define_strategy_flags() -> None:
    """Defines --strategy, and who the workers of strategy=multi_worker are."""
    flags.DEFINE_string("strategy", "auto", f"Devices: {', '.join(STRATEGIES)}. mirrored: all GPUs of this machine.")
    flags.DEFINE_string("coordinator", None, "multi_worker without Slurm: HOST:PORT where all can reach process 0.")
    flags.DEFINE_integer("num_processes", None, "multi_worker without Slurm: number of processes.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "multi_worker without Slurm: number of this process, from 0.")
    flags.DEFINE_float("wait_seconds", WorkerFlags.wait_seconds, "multi_worker: for all processes to start.")
    flags.DEFINE_string("tpu", None, "strategy=tpu: unset on a TPU VM, or the name or grpc:// address of a TPU.")


def define_one_process_flags() -> None:
    """Defines --strategy and --precision of a command that always runs as one process."""
    names = ", ".join(ONE_PROCESS_STRATEGIES)
    flags.DEFINE_string("strategy", "auto", f"Devices: {names}. mirrored: all GPUs of this machine.")
    define_precision_flag()


def define_precision_flag() -> None:
    """Defines --precision."""
    names = ", ".join(PRECISIONS)
    flags.DEFINE_string("precision", "auto", f"{names}. auto: bfloat16 on GPUs and TPUs, float32 on CPUs.")


def define_encoder_flags() -> None:
    """Defines --encoder and --positions."""
    flags.DEFINE_string("encoder", None, "Pre-trained encoder: .keras file, SavedModel folder or export folder.")
    flags.DEFINE_enum(
        "positions",
        "resize",
        POSITIONS,
        "What becomes of the encoder's position table under another --image_size: bicubic, or sin-cos computed anew.",
    )


def worker_flags(values: flags.FlagValues) -> WorkerFlags:
    """The flags of `define_strategy_flags` that name workers."""
    return WorkerFlags(values.coordinator, values.num_processes, values.process_id, values.wait_seconds)


def define_reading_flags() -> None:
    """Defines how shards are read, which changes nothing of what is read: --num_threads, --engine, --cache_dir, ..."""
    flags.DEFINE_integer("num_threads", None, "Threads that decode images; unset: one for each processor.")
    flags.DEFINE_enum(
        "engine", "auto", ENGINES, "host: Python threads with native decoders; graph: TensorFlow alone. auto: host."
    )
    flags.DEFINE_string("cache_dir", None, "Local folder for copies of shards that lie behind a URL.")
    flags.DEFINE_float("cache_gb", 100, "Upper bound of all copies in --cache_dir, in GB.")
    flags.DEFINE_string(
        "data_service", None, "tf.data service that decodes images on other machines: grpc://HOST:PORT."
    )


def reading_options(values: flags.FlagValues) -> dict:
    """The flags of `define_reading_flags` as arguments of `pipeline.load`, but for the data service."""
    return {
        "num_threads": values.num_threads,
        "engine": values.engine,
        "cache_dir": values.cache_dir,
        "cache_bytes": round(values.cache_gb * 1e9),
    }


def run_options(values: flags.FlagValues) -> RunOptions:
    """The flags that say where and on what to run, and who watches.

    Raises:
        ValueError: profile_steps are no steps, or wandb_project needs a package that is missing.
    """
    check_wandb(values.wandb_project)
    return RunOptions(
        run_dir=values.run_dir,
        strategy=values.strategy,
        precision=values.precision,
        deterministic=values.deterministic,
        virtual_cpus=values.virtual_cpus,
        profile_steps=parse_profile_steps(values.profile_steps),
        wandb_project=values.wandb_project,
        workers=worker_flags(values),
        tpu=values.tpu,
    )
