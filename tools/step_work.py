"""Training steps as `tools.benchmark step` times them, inside a process of their own.

  python -m tools.step_work train TRAINING.json
  python -m tools.step_work matmuls TRAINING.json

calls the function of that name with the description of the work and prints a JSON object.
"""

import contextlib
import json
import pathlib
import sys
import tempfile
import time

import numpy as np
import tensorflow as tf

from keras_mae.models.complexity import count_parts, step_flops
from keras_mae.pretrain import build_mae
from keras_mae.recipes import PretrainRecipe, from_json
from keras_mae.training.adamw import AdamW
from keras_mae.training.run import Data, Task, run, start_devices
from keras_mae.training.run_options import RunOptions
from tools.benchmark_flops import architecture_of
from tools.step_peers import peak_memory_bytes

FACTORS = 3  # products of a dense layer in a step: forward, and the gradients of its input and of its weights


class EnoughError(Exception):
    """All steps are timed: ends a run before its checkpoint and its export, which no step has."""


class StepClock:
    """Notes the moments of a run, and ends it after `steps` steps.

    Attributes:
        build: the model is about to be built.
        fit: `fit` is about to be called.
        steps: the end of each step: its loss is known.
    """

    def __init__(self, steps: int):
        self.num_steps = steps
        self.build = self.fit = None
        self.steps: list[float] = []

    def after_step(self) -> dict:
        """Called when a step's loss is known and finite; adds nothing to the log."""
        self.steps.append(time.perf_counter())
        if len(self.steps) == self.num_steps:
            raise EnoughError
        return {}

    def figures(self) -> dict:
        """Seconds until `fit`, until the end of the first step, and of each later step."""
        return {
            "build_seconds": self.fit - self.build,
            "seconds_to_first_step": self.steps[0] - self.build,
            "step_seconds": np.diff(self.steps).tolist(),
        }


def train(training: dict) -> dict:
    """The recipe's own training: `fit` on one synthetic batch that is in memory, repeated."""
    recipe = _recipe(training)
    clock = StepClock(training["steps"])

    def build_model(policy):
        clock.build = time.perf_counter()
        return build_mae(recipe, policy)

    def batches(start_step):
        clock.fit = time.perf_counter()
        return dataset

    task = Task(
        command="pretrain",
        build_model=build_model,
        build_optimizer=lambda model, schedule: AdamW(
            schedule, weight_decay=recipe.weight_decay, beta_1=recipe.beta_1, beta_2=recipe.beta_2
        ),
        export=lambda model, folder: None,
    )
    with tempfile.TemporaryDirectory(prefix="benchmark-step-") as folder:
        options = RunOptions(folder, strategy="none", precision=training["precision"])
        devices = start_devices(options, recipe)
        dataset = tf.data.Dataset.from_tensors(_features(recipe)).repeat()
        # A row of the log, and with it `reading`, follows each step whose loss is finite.
        data = Data(recipe.batch_size, {}, batches, lambda step: {}, lambda count: {}, reading=clock.after_step)
        with contextlib.suppress(EnoughError):
            run(task, recipe, data, options, devices)
        rows = pathlib.Path(folder, "metrics.jsonl").read_text().splitlines()
    return {**clock.figures(), "loss": json.loads(rows[-1])["loss"], "peak_memory_bytes": peak_memory_bytes()}


def _recipe(training: dict) -> PretrainRecipe:
    fields = {**from_json(training["recipe"]), "steps": training["steps"], "log_every_steps": 1}
    return PretrainRecipe(**fields)


def _features(recipe: PretrainRecipe) -> dict[str, np.ndarray]:
    model = build_mae(recipe, "float32")
    generator = np.random.default_rng(0)
    shape = (recipe.batch_size, *model.encoder.image_size, recipe.channels)
    noise = generator.uniform(size=(recipe.batch_size, model.num_draws)).astype("float32")
    return {"image": generator.integers(0, 256, shape, dtype="uint8"), "noise": noise}


def matmuls(training: dict) -> dict:
    """The products of all dense layers of a step, each shape alone and as often as it occurs.

    Attention's products count as if they ran at the same rate.
    """
    recipe = _recipe(training)
    architecture = architecture_of(recipe)
    denses = [dense for group in count_parts(architecture).values() for part in group.values() for dense in part.denses]
    dtype = tf.dtypes.as_dtype(training["precision"])
    operands = [_operands(dense, recipe.batch_size, dtype) for dense in denses]
    share = sum(FACTORS * dense.flops for dense in denses) / step_flops(architecture)
    seconds = []
    for _ in range(training["steps"]):
        times = [_seconds_of_products(*given) for given in operands]
        seconds.append(sum(dense.count * each for dense, each in zip(denses, times, strict=True)) / share)
    return {"step_seconds": seconds[1:], "peak_memory_bytes": peak_memory_bytes()}


def _operands(dense, batch_size, dtype):
    # Input, weights and gradient of the output.
    rows = batch_size * dense.rows
    shapes = ((rows, dense.inputs), (dense.inputs, dense.outputs), (rows, dense.outputs))
    return [tf.cast(tf.random.stateless_normal(shape, (0, 1)), dtype) for shape in shapes]


def _products(x, weights, gradient):
    return (
        tf.linalg.matmul(x, weights),
        tf.linalg.matmul(gradient, weights, transpose_b=True),
        tf.linalg.matmul(x, gradient, transpose_a=True),
    )


def _seconds_of_products(x, weights, gradient) -> float:
    start = time.perf_counter()
    _products(x, weights, gradient)
    tf.test.experimental.sync_devices()
    return time.perf_counter() - start


def main(words: list[str]) -> None:
    training = json.loads(pathlib.Path(words[1]).read_text())
    tf.config.threading.set_intra_op_parallelism_threads(training["threads"])
    print(json.dumps(WORK[words[0]](training)))


WORK = {work.__name__: work for work in (train, matmuls)}

if __name__ == "__main__":
    main(sys.argv[1:])
