"""The one door to training: a model builder, data and a recipe in; a trained, checkpointed, exported model out."""

import contextlib
import dataclasses
import pathlib
import re
import shutil
import sys
from collections.abc import Callable

import keras
import tensorflow as tf

from keras_mae.recipes import Recipe, peak_learning_rate, total_steps, warmup_steps
from keras_mae.training import run_dir as run_folder
from keras_mae.training.callbacks import Checkpointing, Evaluation, Images, NonFiniteLossError, StepLog
from keras_mae.training.checkpoints import CheckpointError, Checkpoints
from keras_mae.training.metrics_log import cut_back
from keras_mae.training.schedules import WarmupCosine
from keras_mae.training.strategy import dtype_policy, make_strategy, set_determinism, split_cpu
from keras_mae.training.trainer import Trainer, weighted_means


class DataError(RuntimeError):
    """The data could not be read while training; the last checkpoint stays as it was."""


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
        train: step -> endless dataset that starts with that step's batch.
        validation: -> one pass of padded batches (features, labels, weights); None where there is no such split.
    """

    samples: int
    identity: dict
    train: Callable[[int], tf.data.Dataset]
    validation: Callable[[], tf.data.Dataset] | None = None


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


def start_devices(options: RunOptions, recipe: Recipe) -> tf.distribute.Strategy:
    """Sets determinism and seeds, and starts the devices. To be called before anything else of TensorFlow.

    Raises:
        ValueError: unknown option, or a batch size that the replicas do not divide.
    """
    if options.virtual_cpus != 1:
        split_cpu(options.virtual_cpus)
    set_determinism(options.deterministic)
    strategy = make_strategy(options.strategy)
    replicas = strategy.num_replicas_in_sync
    if recipe.batch_size % replicas:
        raise ValueError(
            "The global batch is split evenly over the replicas. "
            f"Received: batch_size={recipe.batch_size}, replicas={replicas}"
        )
    keras.utils.set_random_seed(recipe.seed)
    return strategy


def run(task: Task, recipe: Recipe, data: Data, options: RunOptions, strategy: tf.distribute.Strategy) -> None:
    """Trains with `fit` from the newest checkpoint (or from the start) to the recipe's last step, then exports.

    Raises:
        RunDirError: the run folder holds another run, or is in use.
        CheckpointError: the checkpoints do not fit.
        NonFiniteLossError: the loss became NaN or infinite.
    """
    folder = pathlib.Path(options.run_dir)
    steps = total_steps(recipe, data.samples)
    description = {
        "command": task.command,
        "recipe": dataclasses.asdict(recipe),
        "data": data.identity,
        "total_steps": steps,
    }
    with run_folder.locked(folder):
        run_folder.claim(folder, description)
        with strategy.scope():
            trainer = _build_trainer(task, recipe, data, dtype_policy(options.precision))
        checkpoints = Checkpoints(folder / "checkpoints", keep=recipe.keep_checkpoints)
        # Weights, not seed states: the batches bring every random number with them.
        variables = [*trainer.model.weights, *trainer.optimizer.variables]
        state = checkpoints.restore(variables)
        start = state["step"] if state else 0
        cut_back(folder / "metrics.jsonl", start)
        if start >= steps and (folder / "export").exists():
            print(f"{folder}: this run is finished ({start} steps); its models are in {folder / 'export'}")
            return
        if start < steps:
            _say_start(task, recipe, data, strategy, start, steps)
            shutil.rmtree(folder / "export", ignore_errors=True)
            callbacks = _callbacks(task, recipe, data, trainer, strategy, start, steps, folder, checkpoints, variables)
            trainer.fit(
                data.train(start),
                steps_per_epoch=steps - start,
                callbacks=callbacks,
                verbose=0,
                shuffle=False,
            )
        task.export(trainer.model, folder / "export")
    print(f"{folder}: finished {steps} steps; models in {folder / 'export'}, log in {folder / 'metrics.jsonl'}")


@contextlib.contextmanager
def _named_data_errors():
    """Turns what the input pipeline asserts about damaged data into one sentence."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        assertion = re.search(r"assertion failed: (\[.*\])", error.message)
        if assertion is None:
            raise
        sentence = " ".join(part.replace("\\'", "'") for part in re.findall(r"\[(.*?)\]", assertion[1]))
        raise DataError(f"{sentence}. tools.verify_shards names damaged shards.") from error


def _build_trainer(task, recipe, data, policy) -> Trainer:
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
    # On CPUs XLA is slower than oneDNN in bfloat16, and refuses several logical devices.
    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    one_device = tf.distribute.get_strategy().num_replicas_in_sync == 1
    trainer = Trainer(model, xla=on_gpu or (one_device and policy.compute_dtype == "float32"))
    trainer.compile(optimizer=optimizer, jit_compile=False)  # XLA is inside the step; Keras' own would clash
    return trainer


def _callbacks(task, recipe, data, trainer, strategy, start, steps, folder, checkpoints, variables) -> list:
    """Logs first, checkpoint last: a checkpoint's step has all its rows in the log."""
    writer = tf.summary.create_file_writer(str(folder / "tensorboard"))
    every = max(1, round(recipe.eval_every_epochs * data.samples / recipe.batch_size))
    callbacks = [
        StepLog(
            start,
            steps,
            run_dir=folder,
            writer=writer,
            every=recipe.log_every_steps,
            batch_size=recipe.batch_size,
            samples=data.samples,
        )
    ]
    if data.validation is not None:
        callbacks.append(
            Evaluation(
                start,
                steps,
                run_dir=folder,
                writer=writer,
                every=every,
                evaluate=lambda: weighted_means(trainer.model, data.validation(), strategy),
            )
        )
    if task.draw is not None:
        features = _first_features(data)
        callbacks.append(
            Images(start, steps, writer=writer, every=every, draw=lambda: task.draw(trainer.model, features))
        )
    callbacks.append(
        Checkpointing(
            start,
            steps,
            checkpoints=checkpoints,
            every=recipe.checkpoint_every_steps,
            variables=variables,
            state=lambda step: {"data": _data_state(recipe, data, step)},
        )
    )
    return callbacks


def _data_state(recipe: Recipe, data: Data, step: int) -> dict:
    """Place in the endless sequence of samples after `step` batches."""
    epoch, position = divmod(step * recipe.batch_size, data.samples)
    return {"seed": recipe.seed, "epoch": epoch, "position": position}


def _first_features(data: Data, count: int = 8) -> dict:
    """The first few samples of the validation split (or of the training order), for pictures."""
    batch = next(iter(data.validation() if data.validation else data.train(0)))
    features = batch[0] if isinstance(batch, tuple) else batch
    return {name: value[:count] for name, value in features.items()}


def _say_start(task, recipe, data, strategy, start, steps) -> None:
    print(
        f"{task.command}: {data.samples} images, global batch {recipe.batch_size} on "
        f"{strategy.num_replicas_in_sync} replica(s), "
        + (f"going on at step {start} of {steps}" if start else f"{steps} steps"),
        file=sys.stderr,
    )
