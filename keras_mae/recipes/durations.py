"""How long the run and its warmup last, and what comes how often: each in the unit that its field's name says.

A length can be given in epochs, steps (updates), images, or as a share of the run (.05 is 5%); it becomes steps here,
and nowhere else.
"""

import dataclasses
import math

UNITS = ("epochs", "steps", "images", "share")
INTERVALS = ("eval_every", "checkpoint_every", "log_every")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Durations:
    """Length of the run, of its warmup, and the intervals at which things happen.

    Attributes:
        batch_size: images of a step: global, over all replicas.
        epochs: length of the run in passes over the training split.
        steps: length of the run in updates; overrides epochs.
        images: length of the run in images, each time it is seen; overrides epochs.
        warmup_epochs: length of the linear warmup in epochs; part of the run.
        warmup_steps: length of the warmup in updates, instead of warmup_epochs.
        warmup_images: length of the warmup in images, instead of warmup_epochs.
        warmup_share: length of the warmup as a share of the run (0..1), instead of warmup_epochs.
        eval_every_epochs: epochs between evaluations on the validation split.
        eval_every_steps: updates between evaluations, instead of eval_every_epochs.
        eval_every_images: images between evaluations, instead of eval_every_epochs.
        eval_every_share: share of the run (0..1) between evaluations, instead of eval_every_epochs.
        checkpoint_every_epochs: epochs between checkpoints, instead of checkpoint_every_steps.
        checkpoint_every_steps: updates between checkpoints.
        checkpoint_every_images: images between checkpoints, instead of checkpoint_every_steps.
        checkpoint_every_share: share of the run (0..1) between checkpoints, instead of checkpoint_every_steps.
        log_every_epochs: epochs between rows of metrics.jsonl, instead of log_every_steps.
        log_every_steps: updates between rows of metrics.jsonl.
        log_every_images: images between rows of metrics.jsonl, instead of log_every_steps.
        log_every_share: share of the run (0..1) between rows of metrics.jsonl, instead of log_every_steps.
    """

    batch_size: int = 4096
    epochs: float = 800.0
    steps: int | None = None
    images: float | None = None
    warmup_epochs: float | None = None
    warmup_steps: float | None = None
    warmup_images: float | None = None
    warmup_share: float | None = None
    eval_every_epochs: float | None = 1.0
    eval_every_steps: int | None = None
    eval_every_images: float | None = None
    eval_every_share: float | None = None
    checkpoint_every_epochs: float | None = None
    checkpoint_every_steps: int | None = 100
    checkpoint_every_images: float | None = None
    checkpoint_every_share: float | None = None
    log_every_epochs: float | None = None
    log_every_steps: int | None = 10
    log_every_images: float | None = None
    log_every_share: float | None = None

    def __post_init__(self):
        if self.steps is not None and self.images is not None:
            raise ValueError(f"Give steps or images, not both. Received: steps={self.steps}, images={self.images}")
        for name in ("epochs", "steps", "images"):
            _check(name, getattr(self, name))
        for what in ("warmup", *INTERVALS):
            values = {name: getattr(self, name) for name in names_of(what)}
            given = [name for name, value in values.items() if value is not None]
            if len(given) != 1:
                raise ValueError(f"A recipe needs one of {' or '.join(values)}, and no other. Received: {values}")
            _check(given[0], values[given[0]], zero_allowed=what == "warmup")


def names_of(what: str) -> tuple[str, ...]:
    """The fields that give one length, in each unit: `warmup_epochs`, `warmup_steps`, ..."""
    return tuple(f"{what}_{unit}" for unit in UNITS)


def total_steps(recipe: Durations, samples: int) -> int:
    """Updates of the whole run: the number of batches that hold its images, the last one begun counts."""
    if recipe.steps is not None:
        return recipe.steps
    images = recipe.images if recipe.images is not None else recipe.epochs * samples
    return math.ceil(images / recipe.batch_size)


def warmup_steps(recipe: Durations, samples: int) -> float:
    """Updates of the warmup, fractional as it comes."""
    return _in_steps(recipe, "warmup", samples)


def interval_steps(recipe: Durations, what: str, samples: int) -> int:
    """Updates between two evaluations, checkpoints or rows of the log: the nearest whole number, at least 1.

    Args:
        recipe: has the interval.
        what: one of `INTERVALS`.
        samples: of the training split.
    """
    return max(1, round(_in_steps(recipe, what, samples)))


def _in_steps(recipe: Durations, what: str, samples: int) -> float:
    unit, value = next((u, v) for u in UNITS if (v := getattr(recipe, f"{what}_{u}")) is not None)
    if unit == "steps":
        return value
    if unit == "share":
        return value * total_steps(recipe, samples)
    return (value * samples if unit == "epochs" else value) / recipe.batch_size


def _check(name: str, value: float | None, zero_allowed: bool = False) -> None:
    highest = 1 if name.endswith("_share") else math.inf
    if value is None or (value == 0 and zero_allowed) or (0 < value <= highest and value < math.inf):
        return
    lowest = "at least 0" if zero_allowed else "above 0"
    raise ValueError(f"{name} must be {lowest}{' and at most 1' if highest == 1 else ''}. Received: {value}")
