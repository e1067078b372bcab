"""The one door to training: a model builder, data and a recipe in; a trained, checkpointed, exported model out."""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable

import keras
import tensorflow as tf

from keras_mae.recipes import Recipe, peak_learning_rate, total_steps, warmup_steps
from keras_mae.training import run_dir as run_folder
from keras_mae.training.callbacks import Checkpointing, Evaluation, Images, NonFiniteLossError, StepLog
from keras_mae.training.checkpoints import CheckpointError, Checkpoints
from keras_mae.training.data_errors import DataError, named_data_errors
from keras_mae.training.interruption import stop_requests
from keras_mae.training.metrics_log import cut_back
from keras_mae.training.schedules import WarmupCosine
from keras_mae.training.strategy import (
    ONE_HOST_STRATEGIES,
    dtype_policy,
    make_strategy,
    set_determinism,
    split_cpu,
)
from keras_mae.training.trainer import Trainer, weighted_means

RUN_ERRORS = (run_folder.RunDirError, CheckpointError, NonFiniteLossError, DataError)


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Where and on what a run is carried out; nothing here changes what is learned beyond rounding.

    Attributes:
        run_dir: folder of recipe.json, logs, checkpoints and export.
        strategy: "auto", "none" or "mirrored".
        precision: "auto", "float32" or "bfloat16".
        deterministic: "auto", "true" or "false".
        virtual_cpus: logical devices the CPU is split into.
    """

    run_dir: str
    strategy: str = "auto"
    precision: str = "auto"
    deterministic: str = "auto"
    virtual_cpus: int = 1


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
    """

    samples: int
    identity: dict
    train: Callable[[int], tf.data.Dataset | tf.distribute.DistributedDataset]
    state: Callable[[int], dict]
    preview: Callable[[int], dict]
    validation: Callable[[], tf.data.Dataset | tf.distribute.DistributedDataset] | None = None
    reading: Callable[[], dict[str, float]] = dict


@dataclasses.dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
        command: name kept in recipe.json; a run folder belongs to one command.
        build_model: dtype policy -> model.
        build_optimizer: (built model, learning-rate schedule) -> optimizer.
        export: (model, folder) -> None, after the last step.
        draw: (model, features) -> name -> images for TensorBoard; None for none.
    """

    command: str
    build_model: Callable
    build_optimizer: Callable
    export: Callable
    draw: Callable | None = None


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
        ValueError: unknown option, or a batch size that the replicas do not divide.
    """
    if options.strategy == "multi_worker":
        raise ValueError(
            "Training on several hosts is not supported yet; strategy=multi_worker is for keras_mae.evaluate. "
            f"Expected here: {', '.join(ONE_HOST_STRATEGIES)}"
        )
    if options.virtual_cpus != 1:
        split_cpu(options.virtual_cpus, options.strategy)
    set_determinism(options.deterministic)
    strategy = make_strategy(options.strategy)
    replicas = strategy.num_replicas_in_sync
    if recipe.batch_size % replicas:
        raise ValueError(
            "The global batch is split evenly over the replicas. "
            f"Received: batch_size={recipe.batch_size}, replicas={replicas}"
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
        KeyboardInterrupt: Ctrl-C or SIGTERM; the step was finished and saved.
    """
    folder = pathlib.Path(options.run_dir)
    steps = total_steps(recipe, data.samples)
    description = {
        "command": task.command,
        "recipe": dataclasses.asdict(recipe),
        "data": data.identity,
        "total_steps": steps,
    }
    with run_folder.locked(folder), stop_requests() as stop_requested:
        run_folder.claim(folder, description)
        with devices.strategy.scope():
            trainer, schedule = _build_trainer(task, recipe, data, devices.policy)
        checkpoints = Checkpoints(folder / "checkpoints", keep=recipe.keep_checkpoints)
        # Weights, not seed states: the batches bring every random number with them.
        variables = [*trainer.model.weights, *trainer.optimizer.variables]
        start = _resume(checkpoints, variables, data)
        cut_back(folder / "metrics.jsonl", start)
        export = folder / "export"
        if start < steps:
            _say_start(task, recipe, data, devices.strategy, start, steps)
            with named_data_errors():
                common = {"start_step": start, "total_steps": steps}
                callbacks = [
                    *_log_callbacks(task, recipe, data, trainer, devices.strategy, schedule, folder, common),
                    Checkpointing(
                        **common,
                        checkpoints=checkpoints,
                        every=recipe.checkpoint_every_steps,
                        variables=variables,
                        state=lambda step: {"data": data.state(step)},
                        stop_requested=stop_requested,
                    ),
                ]
                trainer.fit(
                    data.train(start), steps_per_epoch=steps - start, callbacks=callbacks, verbose=0, shuffle=False
                )
        elif export.exists() and export.stat().st_mtime_ns >= checkpoints.paths()[-1].stat().st_mtime_ns:
            print(f"{folder}: this run is finished ({start} steps); its models are in {export}")
            return
        task.export(trainer.model, export)
    print(f"{folder}: finished {steps} steps; models in {export}, log in {folder / 'metrics.jsonl'}")


def _resume(checkpoints: Checkpoints, variables: list, data: Data) -> int:
    """Restores the newest checkpoint; returns the number of steps done."""
    state = checkpoints.restore(variables)
    if state is None:
        return 0
    if state["data"] != data.state(state["step"]):
        raise CheckpointError(
            f"The checkpoint of step {state['step']} stands elsewhere in the data. "
            f"Expected: {data.state(state['step'])}. Received: {state['data']}"
        )
    return state["step"]


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
    optimizer.build(model.trainable_variables)
    compiled = _compiled()
    if compiled == "elementwise":
        optimizer.compile_updates()
    trainer = Trainer(model, compiled=compiled)
    trainer.compile(optimizer=optimizer, jit_compile=False)  # XLA is inside the step; Keras' own would clash
    return trainer, schedule


def _compiled() -> str:
    # What XLA compiles of a step, see `Trainer`.
    if tf.config.list_physical_devices("GPU"):
        return "step"
    return "elementwise" if tf.distribute.get_strategy().num_replicas_in_sync == 1 else "nothing"


def _log_callbacks(task, recipe, data, trainer, strategy, schedule, folder, common) -> list:
    """Log, evaluation and pictures."""
    writer = tf.summary.create_file_writer(str(folder / "tensorboard"))
    every = max(1, round(recipe.eval_every_epochs * data.samples / recipe.batch_size))
    callbacks = [
        StepLog(
            **common,
            run_dir=folder,
            writer=writer,
            every=recipe.log_every_steps,
            schedule=schedule,
            batch_size=recipe.batch_size,
            samples=data.samples,
            reading=data.reading,
        )
    ]
    if data.validation is not None:
        evaluate = functools.partial(_evaluate, trainer.model, data, strategy)
        callbacks.append(Evaluation(**common, run_dir=folder, writer=writer, every=every, evaluate=evaluate))
    if task.draw is not None:
        draw = functools.partial(task.draw, trainer.model, data.preview(8))
        callbacks.append(Images(**common, writer=writer, every=every, draw=draw))
    return callbacks


def _evaluate(model, data: Data, strategy) -> dict[str, float]:
    return weighted_means(model, data.validation(), strategy)


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
