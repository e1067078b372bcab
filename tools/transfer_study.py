"""How well pre-training transfers, on a small shard set: fine-tuned against scratch, part by part, for several seeds.

  python -m tools.transfer_study --data=SHARDS --output=runs/study
  python -m tools.transfer_study --data=SHARDS --output=runs/study --recipe=vit_small --parts=labels --fractions=1

Part `labels` fine-tunes, and trains from scratch, with each share of the labels; `blocks` fine-tunes the last blocks
only; `ratios` fine-tunes and probes encoders that were pre-trained with other masking ratios. Each seed is a study of
its own: other pre-training, other labelled images. Prints an estimate of its time, and each command that it runs.
Interrupted or killed, it goes on where it stopped; a step that fails is named, and the others go on. OUTPUT gets
results.json, table.md and transfer.png, anew after each accuracy. docs/transfer_study.md says more.
"""

import dataclasses
import datetime
import json
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

from keras_mae import commandline
from keras_mae.commandline import CommandError
from keras_mae.evaluation.results_file import ResultsError, read_results
from pipeline.manifest import ShardSet, load_manifest
from tools.output_lock import locked
from tools.study_steps import StepError, run_step, setting_differences
from tools.transfer_flags import make_study
from tools.transfer_plan import CHOICES, PARTS, Sizes, Step, Study, num_labels, rows_of, steps_of
from tools.transfer_report import FORMAT, table_text, write_report
from tools.transfer_work import seconds_left

FLAGS = flags.FLAGS


def describe(study: Study, shard_set: ShardSet, sizes: Sizes) -> dict[str, Any]:
    """What results.json says of the whole study: all that decides its figures, and how many images they are of."""
    setting = {name: value for name, value in dataclasses.asdict(study).items() if name not in CHOICES}
    fingerprints = {name: shard_set.fingerprint(name) for name in (study.split, study.val_split)}
    return {
        "format": FORMAT,
        "setting": json.loads(json.dumps({**setting, "fingerprints": fingerprints})),
        "blocks_fraction": study.blocks_fraction,
        "num_images": sizes.train,
        "num_held_out": sizes.held_out,
    }


def read_finished(path: pathlib.Path, setting: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The records of the finished steps of an earlier run of the same study, by name.

    Raises:
        CommandError: the file is damaged or something else, or its steps ran under other settings.
    """
    if not path.is_file():
        return {}
    try:
        old = json.loads(path.read_text())
        finished = {name: record for name, record in old["steps"].items() if record["state"] == "finished"}
        differences = list(setting_differences(old["setting"], setting))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CommandError(f"{path} holds no transfer study, or a damaged one: {error!r}; remove it") from None
    if finished and differences:
        raise CommandError(f"{path.parent} holds finished steps of another study: {'; '.join(differences)}")
    return finished


def still_there(steps: Sequence[Step], records: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The records without those whose output is gone while a step that has no record needs it."""
    kept = dict(records)
    for step in reversed(steps):
        for name in step.needs if step.name not in kept else ():
            needed = next(other for other in steps if other.name == name)
            if not needed.output.exists():
                kept.pop(name, None)
    return kept


def run_steps(
    steps: Sequence[Step], records: dict[str, dict[str, Any]], save: Callable[[bool], None]
) -> dict[str, dict[str, Any]]:
    """Runs the steps that have no record, one after the other, and gives each one.

    Args:
        steps: each behind those that it needs.
        records: by name of the step; filled.
        save: is called after each step, with whether it measured an accuracy.
    """
    for number, step in enumerate(steps):
        if step.name in records:
            continue
        left = datetime.timedelta(seconds=round(seconds_left(steps, records)))
        print(f"\n[{number + 1}/{len(steps)}] {step.name}; about {left} left in all", flush=True)
        missing = [name for name in step.needs if records[name]["state"] != "finished"]
        if missing:
            records[step.name] = {"state": "left out", "reason": f"it needs {missing[0]}"}
        else:
            records[step.name] = run_one(step)
        if "reason" in records[step.name]:
            print(f"{step.name}: {records[step.name]['reason']}", file=sys.stderr, flush=True)
        save(step.row is not None)
    return records


def run_one(step: Step) -> dict[str, Any]:
    """Runs a step; returns its record."""
    start = time.monotonic()
    step.output.parent.mkdir(parents=True, exist_ok=True)
    try:
        run_step(step.words)
        found = {} if step.row is None else {"accuracy": read_results(step.output)["accuracy"]}
    except (StepError, ResultsError) as error:
        return {"state": "failed", "reason": str(error)}
    # Of the run that finished it: less than all, where it was interrupted before.
    return {"state": "finished", **found, "seconds": round(time.monotonic() - start, 1)}


def row_results(study: Study, sizes: Sizes, steps: Sequence[Step], records: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What results.json says of each accuracy."""
    measuring = {step.row: step for step in steps if step.row is not None}
    found = []
    for row in rows_of(study):
        step = measuring[row]
        record = records.get(step.name, {"state": "to do"})
        described = {**dataclasses.asdict(row), "num_labels": num_labels(sizes, row), "name": row.name}
        described |= {name: record[name] for name in ("state", "reason") if name in record}
        if record["state"] == "finished":
            described["accuracy_percent"] = 100 * record["accuracy"]
        found.append(described)
    return found


def estimate_text(steps: Sequence[Step], records: Mapping[str, Any]) -> str:
    """How many commands are to run, and for how long."""
    to_do = [step for step in steps if step.name not in records]
    counts: dict[str, int] = {}
    for step in to_do:
        counts[step.module] = counts.get(step.module, 0) + 1
    listed = ", ".join(f"{count} {module}" for module, count in counts.items())
    time_left = datetime.timedelta(seconds=round(seconds_left(steps, records)))
    num_done = len(steps) - len(to_do)
    how = "by those that are done" if num_done else "on two CPU cores; corrected as steps are done"
    done = f"{num_done} of {len(steps)} steps are done. " if num_done else ""
    return f"{done}To do: {listed}. About {time_left} ({how})" if to_do else f"All {len(steps)} steps are done"


def main(argv: list[str]) -> int:
    del argv
    folder = pathlib.Path(FLAGS.output)
    with commandline.user_mistakes():
        shard_set = load_manifest(FLAGS.data)
        study, recipes = make_study(FLAGS, shard_set)
    sizes = Sizes(*(shard_set.splits[name].samples for name in (study.split, study.val_split)))
    steps = steps_of(study, recipes, sizes, folder)
    described = describe(study, shard_set, sizes)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        earlier = read_finished(folder / "results.json", described["setting"])
        records = still_there(steps, earlier)

        def save(with_figure: bool) -> dict[str, Any]:
            results = {**described, "rows": row_results(study, sizes, steps, records), "steps": records}
            write_report(folder, results, with_figure)
            return results

        print(estimate_text(steps, records), flush=True)
        run_steps(steps, records, save)
        results = save(True)
    print(f"\n{table_text(results)}\n{folder / 'table.md'}: the same; with two places on an axis, transfer.png, too")
    failed = [step.name for step in steps if records[step.name]["state"] == "failed"]
    if failed:
        print(f"ERROR: failed steps: {', '.join(failed)}; the reasons are above", file=sys.stderr)
    return 1 if failed else 0


def define_flags() -> None:
    """Defines the command's flags; not at import, because other commands have flags of the same names."""
    flags.DEFINE_string("data", None, "Folder of a shard set with classes.", required=True)
    flags.DEFINE_string("output", None, "Folder for everything the study makes.", required=True)
    flags.DEFINE_string("recipe", "digits", "Recipe of all trainings, by its name.")
    flags.DEFINE_list("seeds", ["0", "1"], "Of all trainings and of the choice of labelled images; one round for each.")
    flags.DEFINE_list("parts", list(PARTS), f"What is measured: some of {', '.join(PARTS)}.")
    flags.DEFINE_list("fractions", [".025", ".1", "1"], "Shares of the labels to fine-tune with.")
    flags.DEFINE_list(
        "trainable_blocks", ["0", ".5", "1"], "Last blocks to train, of part blocks: 0 is the head alone."
    )
    flags.DEFINE_list("mask_ratios", [".5", ".75", ".9"], "Of part ratios; the recipe's own is always one of them.")
    flags.DEFINE_string(
        "blocks_fraction",
        None,
        "Share of the labels for parts blocks and ratios; unset: the middle one of --fractions.",
    )
    flags.DEFINE_string("split", None, "Labelled split to train on; unset: train, or the only one.")
    flags.DEFINE_string("val_split", None, "Split to measure accuracy on; unset: val or held_out, the one there is.")
    flags.DEFINE_float(
        "least_epochs", 10, "Passes over its labelled images that a fine-tuning makes at least.", lower_bound=0
    )
    flags.DEFINE_float(
        "scratch_length", 3, "Images that a training from scratch sees for each of its fine-tuning.", lower_bound=1
    )
    flags.DEFINE_string("shared_flags", "", 'Flags for all trainings, such as "--precision=bfloat16".')
    flags.DEFINE_string("pretrain_flags", "", 'Flags for all pre-trainings, such as "--epochs=10".')
    flags.DEFINE_string("finetune_flags", "", 'Flags for all fine-tunings and from scratch, such as "--steps=400".')
    flags.DEFINE_string("scratch_flags", "", "More flags for trainings from scratch, but for their length.")
    flags.DEFINE_string("probe_flags", "", "Flags for all linear probes; they have --cache_features.")


def entry_point() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the training shall save and stop, as on Ctrl-C
    commandline.run(main, define_flags)


if __name__ == "__main__":
    entry_point()
