"""What watches a run: profile, log, evaluations, pictures, and the best evaluation's weights."""

import functools
from collections.abc import Callable

from keras_mae.recipes import interval_steps
from keras_mae.training.best_epoch import BestEpoch
from keras_mae.training.optimizer import Optimizer
from keras_mae.training.periodic import Evaluation, Images
from keras_mae.training.profiling import Profiling
from keras_mae.training.step_log import StepLog
from keras_mae.training.trainer import Trainer, weighted_means
from keras_mae.training.workers import is_chief


def make_best_epoch(task, recipe, data, model, checkpoints, strategy, common) -> BestEpoch | None:
    """What keeps the weights of the best evaluation, in the process that writes; None where none are to be kept."""
    if task.best_metric is None or data.validation is None or not is_chief(strategy):
        return None
    steps_per_epoch = data.samples / recipe.batch_size
    return BestEpoch(
        **common, checkpoints=checkpoints, model=model, metric=task.best_metric, steps_per_epoch=steps_per_epoch
    )


def watching_callbacks(task, recipe, data, trainer, schedule, log, common, best, profile_steps) -> list:
    """Callbacks for profile, log, evaluations and pictures; evaluations alone where another worker writes.

    Args:
        task, recipe, data: of the run.
        trainer: a `Trainer`, in its strategy's scope.
        schedule: number of an update -> learning rate.
        log: a `RunLog` or `NoLog`.
        common: `start_step` and `total_steps` of all callbacks.
        best: what `make_best_epoch` gave.
        profile_steps: first and last step to trace, or None.
    """
    strategy = trainer.distribute_strategy
    every = interval_steps(recipe, "eval_every", data.samples)
    writes = is_chief(strategy)
    callbacks = []
    if writes and profile_steps is not None:
        callbacks.append(Profiling(**common, steps=profile_steps, folder=log.tensorboard_dir))
    if writes:
        callbacks.append(_step_log(recipe, data, trainer.optimizer, schedule, log, common))
    if data.validation is not None:
        evaluate = functools.partial(_evaluate, trainer.model, data, strategy)
        if best is not None:
            callbacks.append(best)
            evaluate = best.watched(evaluate)
        evaluate = _on_averages(trainer, evaluate)
        callbacks.append(Evaluation(**common, log=log, every=every, evaluate=evaluate))
    for epochs, make in task.evaluations:
        between = max(1, round(epochs * data.samples / recipe.batch_size))
        evaluate = _on_averages(trainer, make(trainer.model, data, strategy))
        callbacks.append(Evaluation(**common, log=log, every=between, evaluate=evaluate))
    if task.draw is not None and writes:
        draw = functools.partial(task.draw, trainer.model, data.preview(8))
        callbacks.append(Images(**common, log=log, every=every, draw=draw))
    return callbacks


def _step_log(recipe, data, optimizer, schedule, log, common) -> StepLog:
    return StepLog(
        **common,
        log=log,
        every=interval_steps(recipe, "log_every", data.samples),
        schedule=lambda step: schedule(_update_of_step(optimizer, step)),
        batch_size=recipe.batch_size,
        samples=data.samples,
        reading=lambda: {**data.reading(), **_loss_scale_figures(optimizer)},
    )


def _update_of_step(optimizer: Optimizer, step: int) -> int:
    """The number of a step's update, from 0: the step's, but for updates that the loss scale has skipped."""
    return step if optimizer.loss_scale is None else max(0, int(optimizer.iterations.numpy()) - 1)


def _loss_scale_figures(optimizer: Optimizer) -> dict[str, float]:
    return {} if optimizer.loss_scale is None else optimizer.loss_scale.figures()


def _on_averages(trainer: Trainer, evaluate: Callable[[], dict]) -> Callable[[], dict]:
    def evaluate_averages():
        with trainer.optimizer.averaged_weights():
            return evaluate()

    return evaluate_averages


def _evaluate(model, data, strategy) -> dict[str, float]:
    return weighted_means(model, data.validation(), strategy)
