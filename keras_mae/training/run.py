"""The one door to training: a model builder, data and a recipe in; a trained, checkpointed, exported model out."""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Callable

import keras
import tensorflow as tf

from keras_mae.recipes import Recipe, interval_steps, peak_learning_rate, total_steps, warmup_steps
from keras_mae.training import run_dir as run_folder
from keras_mae.training.checkpoint_writer import CheckpointWriter
from keras_mae.training.checkpointing import Checkpointing
from keras_mae.training.checkpoints import CheckpointError, Checkpoints, own_weights
from keras_mae.training.data_errors import DataError, named_data_errors
from keras_mae.training.experiment_tracker import TrackerError, WandbTracker
from keras_mae.training.finite_loss import FiniteLoss, NonFiniteLossError
from keras_mae.training.interruption import stop_requests
from keras_mae.training.metrics_log import cut_back
from keras_mae.training.optimizer import Optimizer
from keras_mae.training.run_log import NoLog, RunLog
from keras_mae.training.run_options import ProfilingError, RunOptions, check_profile_steps
from keras_mae.training.schedules import WarmupCosine
from keras_mae.training.shared_run import check_same_step, opened, stopping_together
from keras_mae.training.strategy import dtype_policy, make_strategy, set_determinism, split_cpu
from keras_mae.training.trainer import Trainer
from keras_mae.training.watching import make_best_epoch, watching_callbacks
from keras_mae.training.workers import HostError, all_succeed, is_chief, named_host_errors, num_own_replicas

RUN_ERRORS = (
    run_folder.RunDirError,
    CheckpointError,
    NonFiniteLossError,
    DataError,
    ProfilingError,
    TrackerError,
    HostError,
)


@dataclasses.dataclass(frozen=True)
class Data:
    """The data of a run.

    Attributes:
        samples: in the training split.
        identity: JSON values that tell this data from other data (fingerprint, split); kept in recipe.json.
        train: step -> endless batches from that step's on, distributed over the replicas (`pipeline.distribute`).
        state: step -> place in the data after so many batches, JSON values; kept in checkpoints.
        preview: count -> features of the first few images, for pictures.
        validation: -> one pass of padded batches (features, labels, weights), distributed too; None where there is no
            such split.
        reading: -> figures of the input pipeline for the log, name -> number.
        in_order: -> one pass over the training split as `validation` gives its split; None where nothing needs it.
        batch_samples: number of a batch, from 0 -> numbers of its samples in the split; None where they are not known.
        image_dtype: "uint8" or "uint16".
    """

    samples: int
    identity: dict
    train: Callable[[int], tf.data.Dataset | tf.distribute.DistributedDataset]
    state: Callable[[int], dict]
    preview: Callable[[int], dict]
    validation: Callable[[], tf.data.Dataset | tf.distribute.DistributedDataset] | None = None
    reading: Callable[[], dict[str, float]] = dict
    in_order: Callable[[], tf.data.Dataset | tf.distribute.DistributedDataset] | None = None
    batch_samples: Callable[[int], list[int]] | None = None
    image_dtype: str = "uint8"


@dataclasses.dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
        command: name kept in recipe.json; a run folder belongs to one command.
        build_model: dtype policy -> model.
        build_optimizer: (built model, learning-rate schedule) -> optimizer.
        export: (model, folder) -> None, after the last step.
        draw: (model, features) -> name -> images for TensorBoard; None for none.
        evaluations: further ones: (epochs between, make), where make(model, data, strategy) gives a function to name ->
            number, which is logged as `val_NAME`.
        best_metric: of the evaluation on the validation split, the higher the better: the weights of its best
            evaluation are exported too, to EXPORT/best; None for no such thing.
    """

    command: str
    build_model: Callable
    build_optimizer: Callable
    export: Callable
    draw: Callable | None = None
    evaluations: tuple[tuple[float, Callable], ...] = ()
    best_metric: str | None = None


@dataclasses.dataclass(frozen=True)
class Devices:
    """What `start_devices` started.

    Attributes:
        strategy: of tf.distribute.
        policy: Keras dtype policy of the model.
    """

    strategy: tf.distribute.Strategy
    policy: keras.DTypePolicy


def start_devices(options: RunOptions, recipe: Recipe) -> Devices:
    """Sets determinism and seeds, and starts the devices. To be called before anything else of TensorFlow.

    Raises:
        ValueError: unknown option, or a batch size that replicas and accumulation steps do not divide.
    """
    if options.virtual_cpus != 1:
        split_cpu(options.virtual_cpus, options.strategy)
    set_determinism(options.deterministic)
    strategy = make_strategy(options.strategy, options.workers, options.tpu)
    replicas = strategy.num_replicas_in_sync
    if recipe.batch_size % replicas:
        raise ValueError(
            "The global batch is split evenly over the replicas. "
            f"Received: batch_size={recipe.batch_size}, replicas={replicas}"
        )
    if recipe.batch_size // replicas % recipe.accumulation_steps:
        raise ValueError(
            "The share of the batch that a replica has is split evenly over its accumulation steps. Received: "
            f"batch_size={recipe.batch_size}, replicas={replicas}, accumulation_steps={recipe.accumulation_steps}"
        )
    keras.utils.set_random_seed(recipe.seed)
    return Devices(strategy, dtype_policy(options.precision))


def run(task: Task, recipe: Recipe, data: Data, options: RunOptions, devices: Devices) -> None:
    """Trains with `fit` from the newest checkpoint (or from the start) to the recipe's last step, then exports.

    Raises:
        RunDirError: the run folder holds another run, or is in use.
        CheckpointError: the checkpoints do not fit.
        NonFiniteLossError: the loss became NaN or infinite.
        DataError: damaged data.
        ProfilingError: the run has no such steps to profile.
        TrackerError: Weights & Biases does not start.
        HostError: another worker has stopped or failed.
        KeyboardInterrupt: Ctrl-C or SIGTERM, in any worker; the step was finished and saved.
    """
    folder = pathlib.Path(options.run_dir)
    steps = total_steps(recipe, data.samples)
    check_profile_steps(options.profile_steps, steps)
    description = {
        "command": task.command,
        "recipe": dataclasses.asdict(recipe),
        "data": data.identity,
        "total_steps": steps,
    }
    strategy, writes = devices.strategy, is_chief(devices.strategy)
    with named_host_errors(), stop_requests() as stop_requested, opened(folder, description, strategy):
        with devices.strategy.scope():
            trainer, schedule = _build_trainer(task, recipe, data, devices.policy)
        checkpoints = Checkpoints(folder / "checkpoints", keep=recipe.keep_checkpoints)
        # Not the seed states: the batches bring every random number with them.
        variables = [*own_weights(trainer.model), *trainer.optimizer.variables]
        start = _resume(checkpoints, variables, data, trainer.optimizer)
        check_same_step(start, folder, strategy)
        if writes:
            checkpoints.clean(start)
            cut_back(folder / "metrics.jsonl", start)
        common = {"start_step": start, "total_steps": steps}
        best = make_best_epoch(task, recipe, data, trainer.model, checkpoints, devices.strategy, common)
        if start < steps:
            if writes:
                _say_start(task, recipe, data, devices.strategy, start, steps)
            with (
                named_data_errors(),
                named_host_errors(),
                stopping_together(trainer, stop_requested) as all_stop,
                _open_log(folder, options.wandb_project, description, writes) as log,
                _checkpoint_writer(checkpoints, variables, devices.strategy) as writer,
            ):
                callbacks = [
                    FiniteLoss(**common, run_dir=folder, batch_samples=data.batch_samples if writes else None),
                    *watching_callbacks(
                        task, recipe, data, trainer, schedule, log, common, best, options.profile_steps
                    ),
                    Checkpointing(
                        **common,
                        writer=writer,
                        every_steps=interval_steps(recipe, "checkpoint_every", data.samples),
                        every_minutes=recipe.checkpoint_every_minutes,
                        state=lambda step: {"data": data.state(step), **_loss_scale_state(trainer.optimizer)},
                        stop_requested=all_stop,
                    ),
                ]
                trainer.fit(
                    data.train(start), steps_per_epoch=steps - start, callbacks=callbacks, verbose=0, shuffle=False
                )
        with all_succeed(strategy):
            if writes:
                _export(task, trainer, best, checkpoints, folder, start, steps)


def _export(task, trainer, best, checkpoints, folder, start, steps) -> None:
    """Writes the models, unless an earlier process of the run has, and says so."""
    export = folder / "export"
    if (
        start == steps
        and export.exists()
        and export.stat().st_mtime_ns >= checkpoints.paths()[-1].stat().st_mtime_ns
        and (best is None or best.is_exported(export / "best"))
    ):
        print(f"{folder}: this run is finished ({start} steps); its models are in {export}")
        return
    with trainer.optimizer.averaged_weights():
        task.export(trainer.model, export)
    if best is not None:
        best.export(task.export, export / "best")
    print(f"{folder}: finished {steps} steps; models in {export}, log in {folder / 'metrics.jsonl'}")


def _resume(checkpoints: Checkpoints, variables: list, data: Data, optimizer: Optimizer) -> int:
    """Restores the newest checkpoint; returns the number of steps done."""
    state = checkpoints.restore(variables)
    if state is None:
        return 0
    if state["data"] != data.state(state["step"]):
        raise CheckpointError(
            f"The checkpoint of step {state['step']} stands elsewhere in the data. "
            f"Expected: {data.state(state['step'])}. Received: {state['data']}"
        )
    if optimizer.loss_scale is not None and "loss_scale" in state:  # the run may have begun in another precision
        optimizer.loss_scale.restore(state["loss_scale"])
    return state["step"]


def _loss_scale_state(optimizer: Optimizer) -> dict:
    # Not among the variables: a run may go on in another precision.
    return {} if optimizer.loss_scale is None else {"loss_scale": optimizer.loss_scale.state()}


def _build_trainer(task, recipe, data, policy) -> tuple[Trainer, WarmupCosine]:
    """Model, optimizer and their variables, in the strategy's scope."""
    model = task.build_model(policy)
    model.build()
    schedule = WarmupCosine(
        peak_learning_rate(recipe),
        total_steps(recipe, data.samples),
        warmup_steps(recipe, data.samples),
        recipe.min_learning_rate,
    )
    optimizer = task.build_optimizer(model, schedule)
    optimizer.global_clipnorm, optimizer.ema_decay = recipe.clip_global_norm, recipe.ema_decay
    optimizer.build(model.trainable_variables)
    if policy.compute_dtype == "float16":
        optimizer.scale_losses()
    compiled = _compiled()
    if compiled == "elementwise" and tf.distribute.get_strategy().num_replicas_in_sync == 1:
        optimizer.compile_updates()  # it would not add up the gradients of several replicas
    trainer = Trainer(model, compiled=compiled, accumulation_steps=recipe.accumulation_steps)
    trainer.compile(optimizer=optimizer, jit_compile=False)  # XLA is inside the step; Keras' own would clash
    return trainer, schedule


def _compiled() -> str:
    # What XLA compiles of a step, see `Trainer`; for a TPU it compiles all that the strategy runs.
    strategy = tf.distribute.get_strategy()
    if isinstance(strategy, tf.distribute.TPUStrategy):
        return "nothing"
    if tf.config.list_physical_devices("GPU"):
        return "step"
    return "elementwise" if num_own_replicas(strategy) == 1 else "nothing"


def _open_log(folder, wandb_project, description, writes) -> RunLog | NoLog:
    if not writes:
        return NoLog()
    tracker = None if wandb_project is None else WandbTracker(folder, wandb_project, description)
    return RunLog(folder, tracker)


def _checkpoint_writer(checkpoints, variables, strategy) -> contextlib.AbstractContextManager[CheckpointWriter | None]:
    # One worker writes: the state is the same on all.
    return CheckpointWriter(checkpoints, variables) if is_chief(strategy) else contextlib.nullcontext()


def _say_start(task, recipe, data, strategy, start, steps) -> None:
    warmup = warmup_steps(recipe, data.samples)
    if warmup >= steps:
        print(
            f"WARNING: the warmup of {warmup:.0f} steps outlasts the run of {steps}: the learning rate never reaches "
            "its peak. --warmup_share=.05 ties the warmup to the run.",
            file=sys.stderr,
        )
    print(
        f"{task.command}: {data.samples} images, global batch {recipe.batch_size} on "
        f"{strategy.num_replicas_in_sync} replica(s), "
        + (f"going on at step {start} of {steps}" if start else f"{steps} steps"),
        file=sys.stderr,
    )
