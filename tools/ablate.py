"""The paper's Table 1 in small: pre-trains, fine-tunes and probes once for each row; a table beside the paper's.

  python -m tools.ablate --table=1a --data=SHARDS --output=runs/ablations [--recipe=digits] [--labels=labelled]

Rows differ in nothing but what the table varies; --shared_flags, --pretrain_flags, --finetune_flags and --probe_flags
change all of them. Prints each command it runs. Interrupted, it goes on where it stopped; finished rows are skipped. A
row that fails is named, and the others go on. OUTPUT/TABLE gets results.json, table.md and table.png, anew after each
row.
"""

import dataclasses
import datetime
import json
import os
import pathlib
import shlex
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import flags

from keras_mae import commandline
from keras_mae.commandline import CommandError
from keras_mae.recipes import FINETUNE_RECIPES, PRETRAIN_RECIPES, PretrainRecipe
from keras_mae.recipes.probing import LINEAR_PROBE_RECIPES
from pipeline.manifest import ShardSet, load_manifest
from tools.ablation_report import table_text, write_report
from tools.ablation_tables import TABLES, Row, Study, own_flags, row_commands, row_flags, row_text
from tools.demo import last_value
from tools.output_lock import locked
from tools.study_flags import choose_splits, parse_flags
from tools.study_steps import StepError, run_step, setting_differences

FLAGS = flags.FLAGS

OWN_FLAGS = ("recipe", "seed", "target_file")  # recipe flags that this command sets itself


def check_flags(study: Study) -> PretrainRecipe:
    """The recipe that the rows of a study vary.

    Raises:
        CommandError: no row could run like this.
    """
    recipe, given = parse_flags(PRETRAIN_RECIPES, study.recipe, study.pretrain_flags, "--pretrain_flags")
    given |= parse_flags(FINETUNE_RECIPES, study.recipe, study.finetune_flags, "--finetune_flags")[1]
    if study.probe_flags is not None:
        given |= parse_flags(LINEAR_PROBE_RECIPES, study.recipe, study.probe_flags, "--probe_flags")[1]
    words = {word for row in TABLES[study.table].rows for word in row_flags(row, recipe)}
    varied = {word.removeprefix("--").partition("=")[0] for word in words}
    for name in sorted(given & varied):
        raise CommandError(f"--{name} is what table {study.table} varies; leave it out of the flags for all rows")
    for name in sorted(given & set(OWN_FLAGS)):
        raise CommandError(f"--{name} cannot be given to every row; --recipe, --seed and --tokenizer are flags here")
    return recipe


def plan_row(study: Study, row: Row, recipe: PretrainRecipe, folder: pathlib.Path) -> dict[str, Any]:
    """What results.json says of a row before it has run: "to do", or why it cannot run.

    Args:
        study: what all rows share.
        row: of the study's table.
        recipe: of `check_flags`.
        folder: of the row.
    """
    described = {
        "name": row.name,
        "text": row_text(row, recipe),
        "flags": row_flags(row, recipe) + ([f"--target_file={study.tokenizer}"] if row.needs_tokenizer else []),
        "paper_finetuned_percent": row.finetuned,
        "paper_linear_percent": row.linear,
    }
    if row.needs_tokenizer and study.tokenizer is None:
        return {**described, "state": "left out", "reason": "it needs a --tokenizer=PATH"}
    try:
        parse_flags(PRETRAIN_RECIPES, study.recipe, (*study.pretrain_flags, *own_flags(study, row, recipe, folder)), "")
    except CommandError as error:
        return {**described, "state": "refused", "reason": str(error)}
    return {**described, "state": "to do"}


def read_finished(path: pathlib.Path, setting: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The finished rows of an earlier run of the same command, by name.

    Raises:
        CommandError: the file is damaged, or its rows were made under other settings.
    """
    if not path.is_file():
        return {}
    try:
        old = json.loads(path.read_text())
        finished = {row["name"]: row for row in old["rows"] if row["state"] == "finished"}
        differences = list(setting_differences(old["setting"], setting))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CommandError(f"{path} is damaged: {error!r}; remove it") from None
    if finished and differences:
        raise CommandError(f"{path.parent} holds finished rows of another run: {'; '.join(differences)}")
    return finished


def describe(study: Study, shard_set: ShardSet) -> dict[str, Any]:
    """What results.json says of the whole table: all that decides its figures, and how many images they are of."""
    setting = {name: value for name, value in dataclasses.asdict(study).items() if name not in ("data", "tokenizer")}
    fingerprints = {name: shard_set.fingerprint(name) for name in (study.split, study.labels, study.val_split)}
    return {
        "table": study.table,
        "text": TABLES[study.table].text,
        "setting": json.loads(json.dumps({**setting, "fingerprints": fingerprints})),
        "num_images": shard_set.splits[study.split].samples,
        "num_labels": shard_set.splits[study.labels].samples,
        "num_held_out": shard_set.splits[study.val_split].samples,
    }


def run_table(study: Study, recipe: PretrainRecipe, shard_set: ShardSet, folder: pathlib.Path) -> dict[str, Any]:
    """Runs the rows that are not finished, one after the other; returns what results.json holds."""
    results = describe(study, shard_set)
    finished = read_finished(folder / "results.json", results["setting"])
    rows = TABLES[study.table].rows
    planned = [plan_row(study, row, recipe, folder / row.name) for row in rows]
    results["rows"] = [kept_or_new(row, finished.get(row["name"])) for row in planned]
    for number, row in enumerate(rows):
        described = results["rows"][number]
        print(f"\n[{number + 1}/{len(rows)}] {described['text']}: {_progress(described, results['rows'])}", flush=True)
        if described["state"] == "to do":
            commands = row_commands(study, row, recipe, folder / row.name)
            described.update(run_row(commands, folder / row.name, study.probe_flags is not None))
            write_report(folder, results)
    write_report(folder, results)
    return results


def kept_or_new(planned: dict[str, Any], finished: dict[str, Any] | None) -> dict[str, Any]:
    """A row as it was finished, where it still means the same; else as it is planned."""
    kept = finished is not None and (planned["state"] == "left out" or planned["flags"] == finished["flags"])
    return finished if kept else planned


def run_row(commands: Iterable[Sequence[str]], folder: pathlib.Path, has_probe: bool) -> dict[str, Any]:
    """Runs the commands of a row; returns what came of it, for results.json."""
    start = time.monotonic()
    folder.mkdir(exist_ok=True)
    try:
        for words in commands:
            run_step(words)
    except StepError as error:
        print(f"{folder.name} failed; {error}", file=sys.stderr, flush=True)
        return {"state": "failed", "reason": str(error)}
    found = {"state": "finished", "finetuned_percent": 100 * last_value(folder / "finetune", "val_accuracy")}
    if has_probe:
        found["linear_percent"] = 100 * last_value(folder / "probe", "val_accuracy")
    return {**found, "seconds": round(time.monotonic() - start, 1)}  # of the run that finished the row


def _progress(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    if row["state"] != "to do":
        return (
            f"{row['state']}, {row['reason']}"
            if "reason" in row
            else f"finished already, {row['finetuned_percent']:.1f}%"
        )
    seconds = [other["seconds"] for other in rows if other["state"] == "finished"]
    if not seconds:
        return "to do"
    left = sum(seconds) / len(seconds) * sum(other["state"] == "to do" for other in rows)
    return f"to do; about {datetime.timedelta(seconds=round(left))} left"


def main(argv: list[str]) -> int:
    del argv
    if FLAGS.tokenizer is not None and FLAGS.table != "1d":
        raise CommandError(f"--tokenizer is for table 1d, received --table={FLAGS.table}")
    if FLAGS.tokenizer is not None and not os.path.isfile(FLAGS.tokenizer):
        raise CommandError(f"There is no file {FLAGS.tokenizer} (--tokenizer)")
    folder = pathlib.Path(FLAGS.output, FLAGS.table)
    with commandline.user_mistakes():
        texts = (FLAGS.shared_flags, FLAGS.pretrain_flags, FLAGS.finetune_flags, FLAGS.probe_flags)
        shared, pretrain, finetune, probe = map(shlex.split, texts)
        if probe and not FLAGS.probe:
            raise CommandError("--probe_flags are for linear probes, and --noprobe leaves them out")
        shard_set = load_manifest(FLAGS.data)
        study = Study(
            table=FLAGS.table,
            data=FLAGS.data,
            recipe=FLAGS.recipe,
            seed=FLAGS.seed,
            **choose_splits(shard_set, FLAGS.split, FLAGS.labels, FLAGS.val_split),
            pretrain_flags=(*shared, *pretrain),
            finetune_flags=(*shared, *finetune),
            probe_flags=(*shared, *probe) if FLAGS.probe else None,
            tokenizer=FLAGS.tokenizer,
        )
        recipe = check_flags(study)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        results = run_table(study, recipe, shard_set, folder)
    missing = [row["name"] for row in results["rows"] if row["state"] in ("failed", "refused")]
    print(f"\n{table_text(results)}\nLook at {folder / 'table.png'}; the figures are in {folder / 'results.json'}")
    if missing:
        print(f"ERROR: rows without a result: {', '.join(missing)}; the reasons are above", file=sys.stderr)
    return 1 if missing else 0


def define_flags() -> None:
    """Defines the command's flags; not at import, because other commands have flags of the same names."""
    flags.DEFINE_enum("table", None, list(TABLES), "Which part of the paper's Table 1.", required=True)
    flags.DEFINE_string("data", None, "Folder of a shard set with classes.", required=True)
    flags.DEFINE_string("output", None, "Folder; the table goes to OUTPUT/TABLE.", required=True)
    flags.DEFINE_string("recipe", "digits", "Recipe of all trainings, by its name.")
    flags.DEFINE_string("split", None, "Split to pre-train and to probe on; unset: train, or the only one.")
    flags.DEFINE_string(
        "labels", None, "Split to fine-tune on; unset: labelled, where there is one, or all of --split."
    )
    flags.DEFINE_string("val_split", None, "Split to measure accuracy on; unset: val or held_out, the one there is.")
    flags.DEFINE_integer("seed", 0, "Of all trainings.", lower_bound=0)
    flags.DEFINE_string("tokenizer", None, "For table 1d: a tokenizer of keras_mae.pretrain_tokenizer (.keras).")
    flags.DEFINE_boolean("probe", True, "Train a linear probe for each row, too.")
    flags.DEFINE_string("shared_flags", "", 'Flags for all trainings of all rows, such as "--precision=bfloat16".')
    flags.DEFINE_string("pretrain_flags", "", 'Flags for all pre-trainings, such as "--epochs=10 --min_area=.3".')
    flags.DEFINE_string("finetune_flags", "", 'Flags for all fine-tunings, such as "--steps=400".')
    flags.DEFINE_string("probe_flags", "", 'Flags for all linear probes, such as "--cache_features".')


def entry_point() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the training shall save and stop, as on Ctrl-C
    commandline.run(main, define_flags)


if __name__ == "__main__":
    entry_point()
