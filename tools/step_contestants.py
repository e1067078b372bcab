"""Ways to run training steps, each in a process of its own, for `tools.benchmark_step`.

Ours trains with `fit` as `keras_mae.pretrain` does; the peer is the same model in PyTorch; the floor does nothing but
the matrix products of the dense layers. Each is given the same description, and prints the seconds of its steps.
"""

import dataclasses
import json
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keras_mae.commandline import CommandError
from keras_mae.recipes import PretrainRecipe
from tools.benchmark_processes import timed
from tools.benchmark_rounds import Contestant

# Steps before those that count: the first one traces and compiles, the second fills what the first did not.
WARMUP_STEPS = 2
PEER = "Hugging Face ViTMAE, PyTorch eager, SDPA, fused AdamW"
_PEERS_SCRIPT = Path(__file__).with_name("step_peers.py")
# Choices of a recipe that the peer does not offer
_PEER_CHOICES = {
    "mask_kind": "random",
    "target": "pixels",
    "encoder_mask_tokens": False,
    "loss_on_all_patches": False,
    "remat": "none",
}


@dataclasses.dataclass(frozen=True)
class Training:
    """What every contestant is to do.

    Attributes:
        recipe: model, batch size, optimizer and schedule.
        precision: "float32" or "bfloat16".
        timed_steps: steps that count; WARMUP_STEPS come before them.
        threads: of each process.
    """

    recipe: PretrainRecipe
    precision: str
    timed_steps: int
    threads: int

    def __post_init__(self):
        if self.timed_steps < 1:
            raise CommandError(f"--timed_steps must be at least 1, received {self.timed_steps}")

    @property
    def steps(self) -> int:
        """All steps of a process."""
        return WARMUP_STEPS + self.timed_steps


def contestant(
    name: str, text: str, words: list[str], training: Training, folder: Path, note: Callable[[dict[str, Any]], None]
) -> Contestant:
    """A command that is given the description of the work, and prints what came of it.

    Args:
        name: in the results.
        text: what it is.
        words: the command, without the name of the file that describes the work.
        training: what it is to do.
        folder: for that file.
        note: is given what each run has printed.
    """
    file = folder / f"{name}.json"
    file.write_text(
        json.dumps(
            {
                "recipe": dataclasses.asdict(training.recipe),
                "precision": training.precision,
                "steps": training.steps,
                "threads": training.threads,
            }
        )
    )

    def run(output: Path) -> float:
        result = printed(timed([*words, str(file)])[1])
        seconds = result["step_seconds"] = result["step_seconds"][WARMUP_STEPS - 1 :]  # the first is not in it
        if len(seconds) != training.timed_steps:
            raise CommandError(f"{name} did {len(seconds)} of {training.timed_steps} steps; nothing can be compared")
        if not math.isfinite(result.get("loss", 0.0)):  # the floor has none
            raise CommandError(f"the loss of {name} is {result['loss']}; expected a finite number")
        note(result)
        return statistics.median(seconds)

    def no_check(output: Path) -> None:
        pass  # it leaves nothing, and what it prints is checked each time

    return Contestant(name, text, run, no_check)


def own_words(work: str) -> list[str]:
    """The command for a function of `tools.step_work`."""
    return [sys.executable, "-m", "tools.step_work", work]


def peer_words(python: str, work: str) -> list[str]:
    """The command for a function of `tools/step_peers.py`, run by another `python`."""
    return [python, "-P", str(_PEERS_SCRIPT), work]  # -P: modules of this folder shall not hide others


def peer_packages(python: str) -> dict[str, dict[str, str]]:
    """The packages that the peer needs in the environment of `python`: `versions`, and `missing` with the reason.

    Raises:
        CommandError: it cannot be run.
    """
    try:
        return printed(timed(peer_words(python, "versions"))[1])
    except OSError as error:
        raise CommandError(
            f"--peer_python={python} cannot be run: {error.strerror}; expected the path of a Python, 3.11 or newer"
        ) from None


def peer_obstacle(recipe: PretrainRecipe) -> str | None:
    """What of a recipe the peer cannot do, as --flag=value; None: it can do all."""
    if not isinstance(recipe.image_size, int) and len(set(recipe.image_size)) > 1:
        return f"--image_size={','.join(map(str, recipe.image_size))}"
    others = [name for name, value in _PEER_CHOICES.items() if getattr(recipe, name) != value]
    return f"--{others[0]}={getattr(recipe, others[0])}" if others else None


def printed(text: str) -> dict[str, Any]:
    """The JSON object on the last line; libraries may print lines of their own before."""
    return json.loads(text.strip().rpartition("\n")[2])
