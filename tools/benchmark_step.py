"""The benchmark of the training step: our `fit` beside the same model in PyTorch, and beside its matrix products alone.

Every contestant runs in a process of its own, in turn, round after round. A process does some steps that do not count,
and then times steps one by one; its time is their median. All get the same sizes, batch, share of removed patches,
precision and number of threads, and images that lie in memory.

The floor is what the machine could do if a step were nothing but matrix products, at the rate at which the dense
layers' own shapes run alone in TensorFlow. The first step is counted from the start of building the model to the end of
step 1, less a usual step.
"""

import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from keras_mae.commandline import CommandError
from keras_mae.models.complexity import step_flops, total
from tools.benchmark_flops import architecture_of
from tools.benchmark_rounds import Contestant, ratio_text, run_rounds, speed_ratio, spread
from tools.benchmark_shards import BUSY_LOAD, describe_machine
from tools.step_contestants import (
    PEER,
    Training,
    contestant,
    own_words,
    peer_obstacle,
    peer_packages,
    peer_words,
)

Log = Callable[[str], None]

DECIDING_PACKAGES = ("tensorflow", "keras", "numpy")
RATIOS = (("ours", "torch"), ("ours", "floor"), ("torch", "floor"))
# What is to be reached: in words, precision, the ratio of the results that tells, the limit
SPEED_TARGETS = (
    ("speed, against PyTorch", "float32", "ours / torch", 1.0),
    ("speed, against the floor", "float32", "ours / floor", 0.8),
    ("speed, against PyTorch", "bfloat16", "ours / torch", 1.2),
)
# Parameters of the model, from which on a first step may take so many seconds; the largest that fits counts.
FIRST_STEP_LIMITS = ((0, 20.0), (300_000_000, 40.0))


def measure_step(
    training: Training, *, peers: str, peer_python: str, repeats: int, scratch: str | None = None, log: Log = print
) -> dict[str, Any]:
    """Measures training steps.

    Args:
        training: the work.
        peers: "auto": PyTorch where it can be imported; "required": an error where it cannot; "none".
        peer_python: the Python to run it.
        repeats: rounds that are counted.
        scratch: folder for the temporary folder; None: that of the system.
        log: is given the lines to tell the user.

    Returns:
        What is written as JSON; `step_text` shows it.

    Raises:
        CommandError: something was asked for that does not work, or a contestant failed.
    """
    architecture = architecture_of(training.recipe)
    packages = _check_peer(training, peers, peer_python, log)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=scratch) as folder:
        root = Path(folder)
        machine = describe_machine(root, training.threads) | {name: version(name) for name in DECIDING_PACKAGES}
        if machine["load_at_start"] > BUSY_LOAD:
            log(f"WARNING: the machine is busy (load {machine['load_at_start']}), these times will be worth little")
        figures: dict[str, list[dict[str, Any]]] = {"ours": [], "torch": [], "floor": []}
        contestants = _contestants(training, peer_python if packages else None, root, figures)
        seconds = run_rounds(contestants, repeats, root / "output", log)
    counted = {name: found[1:] for name, found in figures.items()}  # the first round does not count
    rows = _rows(contestants, seconds, counted, training.recipe.batch_size)
    results = {
        "benchmark": "step",
        **{name: rows["ours"][name] for name in ("images_per_second", "first_step_seconds", "peak_memory_bytes")},
        "precision": training.precision,
        "batch_size": training.recipe.batch_size,
        "timed_steps": training.timed_steps,
        "recipe": dataclasses.asdict(training.recipe),
        "parameters": total(architecture, "parameters"),
        "step_flops_per_image": step_flops(architecture),
        "machine": machine,
        "peers": packages,
        "contestants": rows,
        "ratios": {f"{a} / {b}": speed_ratio(seconds, a, b) for a, b in RATIOS if {a, b} <= seconds.keys()},
    }
    return {**results, "targets": check_targets(results)}


def _check_peer(training: Training, peers: str, python: str, log: Log) -> dict[str, str] | None:
    # The versions of the packages that the peer needs; None: it is not measured.
    if peers == "none":
        return None
    obstacle = peer_obstacle(training.recipe)
    if obstacle:
        sentence, advice = f"it has no {obstacle}", "compare without that flag"
    else:
        found = peer_packages(python)
        if not found["missing"]:
            return found["versions"]
        missing = ", ".join(f"{name} ({why})" for name, why in found["missing"].items())
        sentence = f"{python} cannot import {missing}"
        advice = "name the Python of an environment that can with --peer_python"
    if peers == "required":
        raise CommandError(f"--peers=required, but the peer cannot run: {sentence}; {advice}")
    log(f"torch is not measured: {sentence}; {advice}")
    return None


def _contestants(
    training: Training, peer_python: str | None, root: Path, figures: Mapping[str, list[dict[str, Any]]]
) -> list[Contestant]:
    commands = {"ours": ("keras_mae, fit", own_words("train"))}
    if peer_python is not None:
        commands["torch"] = (PEER, peer_words(peer_python, "train"))
    commands["floor"] = ("the dense layers' matrix products alone", own_words("matmuls"))
    return [
        contestant(name, text, words, training, root, figures[name].append) for name, (text, words) in commands.items()
    ]


def _rows(
    contestants: Sequence[Contestant],
    seconds: Mapping[str, Sequence[float]],
    figures: Mapping[str, Sequence[Mapping[str, Any]]],
    images: int,
) -> dict[str, dict[str, Any]]:
    rows = {}
    for each in contestants:
        speeds, found = [images / value for value in seconds[each.name]], figures[each.name]
        row = {
            "text": each.text,
            "images_per_second": spread(speeds)["median"],
            "spread": spread(speeds),
            "rounds": [round(value, 3) for value in speeds],
            "step_seconds": [[round(value, 4) for value in one["step_seconds"]] for one in found],
            "peak_memory_bytes": max(one["peak_memory_bytes"] for one in found),
        }
        if "loss" in found[0]:
            first = [one["seconds_to_first_step"] - statistics.median(one["step_seconds"]) for one in found]
            row["first_step_seconds"] = round(statistics.median(first), 2)
            row["build_seconds"] = round(statistics.median(one["build_seconds"] for one in found), 2)
            row["loss"] = found[-1]["loss"]
        rows[each.name] = row
    return rows


def check_targets(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each target that was measured: what, the target, the value, and whether it is met."""
    checked = [
        _target(what, ">=", limit, results["ratios"][pair]["median"])
        for what, precision, pair, limit in SPEED_TARGETS
        if precision == results["precision"] and pair in results["ratios"]
    ]
    limit = max(seconds for least, seconds in FIRST_STEP_LIMITS if results["parameters"] >= least)
    return [*checked, _target("seconds of the first step", "<=", limit, results["first_step_seconds"])]


def _target(what: str, sign: str, limit: float, value: float) -> dict[str, Any]:
    met = value >= limit if sign == ">=" else value <= limit
    return {"what": what, "target": f"{sign} {limit:g}", "measured": value, "met": met}


def step_text(results: Mapping[str, Any]) -> str:
    """The results of `measure_step` as tables for a terminal."""
    machine = results["machine"] | {f"peer's {name}": value for name, value in (results["peers"] or {}).items()}
    gflops = results["step_flops_per_image"] / 1e9
    lines = [
        "",
        f"{results['precision']}, batch {results['batch_size']}, {results['parameters']:,} parameters, {gflops:.1f} "
        f"GFLOP for an image and step; medians of {results['timed_steps']} steps, then of the rounds",
        ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in machine.items()),
        "",
        f"{'':<56}{'images/s':>9} {'(spread)':<15}{'GFLOP/s':>8}{'first step':>12}{'peak MB':>9}",
    ]
    for row in results["contestants"].values():
        speeds = "({min:.4g}-{max:.4g})".format(**row["spread"])
        first = f"{row['first_step_seconds']:.1f} s" if "first_step_seconds" in row else ""
        speed = row["images_per_second"]
        lines.append(
            f"{row['text']:<56}{speed:>9.4g} {speeds:<15}{speed * gflops:>8,.0f}{first:>12}"
            f"{row['peak_memory_bytes'] / 1e6:>9,.0f}"
        )
    lines += ["", *(f"speed of {pair}: {ratio_text(ratio)}" for pair, ratio in results["ratios"].items())]
    for target in results["targets"]:
        verdict = "met" if target["met"] else "MISSED"
        lines.append(f"target: {target['what']} {target['target']}: {target['measured']:.4g}, {verdict}")
    return "\n".join(lines)
