"""Measures this project beside the tools that do the same work, side by side in one run on one machine.

  python -m tools.benchmark shards                                  # with photographs that it makes itself
  python -m tools.benchmark shards --input=IMAGES --output=results.json
  python -m tools.benchmark pipeline --shards=SHARDS --peer_python=TORCH/bin/python --json=results.json
  python -m tools.benchmark pipeline --shards=SHARDS --view=train --rand_augment=rand-m9-mstd0.5-inc1
  python -m tools.benchmark step --recipe=vit_base --precision=bfloat16 --peer_python=TORCH/bin/python
  python -m tools.benchmark flops --recipe=vit_large

shards: the sharder against `tar cf` and webdataset's own ShardWriter, its full-decode check against nothing but
decoding and, with --million, a list of a million tiny images with the memory of each process.

pipeline: images a second that `pipeline.load` gives in batches of random crops, against a torch DataLoader with
webdataset and torchvision (with --rand_augment: timm), and against nothing but decoding; what each step costs, and for
how long Python's lock is held. --peer_python is the Python of an environment with torch, torchvision, webdataset and
timm, where this one lacks them (timm fails with Pillow 13, and needs an earlier one). Without --shards it measures on
photographs, of --input or made, as above. Batches have --batch_size=64 images of --image_size=224.

step: images a second that training takes, our `fit` with the recipe's optimizer on synthetic images, against Hugging
Face's ViTMAE in PyTorch, and against nothing but the matrix products; seconds of the first step, peak memory.
--peer_python is the Python of an environment with torch and transformers. --batch_size is 16 unless given; every other
field of the recipe is a flag, too.

flops: parameters, FLOPs and memory of a recipe's model by part, with and without mask tokens in the encoder. Nothing
runs, so every machine gives the same.

Measure on a machine that does nothing else. Everything is written to a temporary folder, and deleted at the end.
"""

import dataclasses
import functools
import json
import os
import signal
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from absl import flags

from keras_mae import commandline, recipes
from keras_mae.commandline import CommandError
from pipeline.locations import SourceError
from pipeline.manifest import ManifestError
from tools import worker_pool
from tools.benchmark_pipeline import measure_pipeline
from tools.benchmark_shards import measure_shards, shards_text
from tools.pipeline_contestants import Loading
from tools.pipeline_report import COUNTED_IMAGES, pipeline_text

FLAGS = flags.FLAGS

# For each benchmark, the flags that it takes beside --output
PHOTOGRAPH_FLAGS = ("input", "samples")
MEASURING_FLAGS = ("repeats", "workers", "scratch")
PEER_FLAGS = ("peers", "peer_python")
LOADING_FLAGS = ("view", "engine", "rand_augment", "shards", "split")
RECIPE_FLAGS = ("recipe", *(field.name for field in dataclasses.fields(recipes.PretrainRecipe)))
FLAGS_OF = {
    "shards": ("million", *PHOTOGRAPH_FLAGS, *MEASURING_FLAGS),
    "pipeline": (
        *("batch_size", "image_size", "batches", "resized"),
        *(*LOADING_FLAGS, *PHOTOGRAPH_FLAGS, *MEASURING_FLAGS, *PEER_FLAGS),
    ),
    "step": (*RECIPE_FLAGS, "precision", "timed_steps", *MEASURING_FLAGS, *PEER_FLAGS),
    "flops": (*RECIPE_FLAGS, "precision"),
}
MILLION = 1_000_000
LOADED_BATCH, LOADED_SIDE, STEP_BATCH = 64, 224, 16


def define_flags() -> None:
    recipes.define_recipe_flags(recipes.PRETRAIN_RECIPES)
    flags.DEFINE_string(
        "input", None, "Folder of photographs, used as often as needed; default: made by the benchmark."
    )
    flags.DEFINE_integer("samples", 8000, "Photographs to measure with.", lower_bound=1)
    flags.DEFINE_integer("repeats", 5, "Rounds that are counted; one more comes first.", lower_bound=1)
    flags.DEFINE_integer("workers", None, "Processes or threads of what can use several; default: one for each core.")
    flags.DEFINE_string("scratch", None, "Folder on the disk to measure on; default: that of temporary files.")
    flags.DEFINE_string("output", None, "JSON file for the results.")
    flags.DEFINE_alias("json", "output")
    flags.DEFINE_bool("million", False, "shards: measure a list of a million tiny images too; takes 5 GB of disk.")
    flags.DEFINE_string("shards", None, "pipeline: folder of a shard set to load; default: made of photographs.")
    flags.DEFINE_string("split", None, "pipeline: split of --shards; default: train, or the only one.")
    flags.DEFINE_string("view", "pretrain", "pipeline: pretrain (large random crops) or train (crops and labels).")
    flags.DEFINE_string("engine", "auto", "pipeline: auto, host or graph, see `pipeline.load`.")
    flags.DEFINE_integer("batches", None, f"pipeline: batches to count; default: those of {COUNTED_IMAGES:,} images.")
    flags.DEFINE_string("rand_augment", None, "pipeline: policy such as rand-m9-mstd0.5-inc1, for --view=train.")
    flags.DEFINE_bool("resized", False, "pipeline: load the same images re-encoded at short side 256, too.")
    flags.DEFINE_enum(
        "peers",
        "auto",
        ["auto", "required", "none"],
        "pipeline, step: torch, or timm with --rand_augment: where it is installed, as an error where it is not, or "
        "never.",
    )
    flags.DEFINE_string("peer_python", None, "pipeline, step: Python 3.11+ with torch; default: this one.")
    flags.DEFINE_enum("precision", "float32", ["float32", "bfloat16"], "step, flops: of training.")
    flags.DEFINE_integer("timed_steps", 8, "step: steps of each process that are counted; two more come first.")


def main(argv: list[str]) -> int:
    given = {name for names in FLAGS_OF.values() for name in names if FLAGS[name].present}
    benchmark = _checked_word(argv[1:], given)
    _check_places(FLAGS.scratch, FLAGS.output)
    recipe = _checked_recipe(FLAGS) if "recipe" in FLAGS_OF[benchmark] else None
    shared = {"repeats": FLAGS.repeats, "scratch": FLAGS.scratch, "log": functools.partial(print, flush=True)}
    peer = {"peers": FLAGS.peers, "peer_python": FLAGS.peer_python or sys.executable}
    workers = worker_pool.checked_workers(FLAGS.workers)
    with commandline.user_mistakes(SourceError, ManifestError):
        if benchmark == "shards":
            million = MILLION if FLAGS.million else 0
            results = measure_shards(FLAGS.input, samples=FLAGS.samples, workers=workers, million=million, **shared)
            text = shards_text(results)
        elif benchmark == "pipeline":
            described = {name: FLAGS[name].value for name in LOADING_FLAGS}
            loading = _loading(FLAGS.batch_size, FLAGS.image_size, FLAGS.batches, workers=workers, **described)
            photographs = {"photos": FLAGS.input, "samples": FLAGS.samples, "resized": FLAGS.resized}
            results = measure_pipeline(loading, **photographs, **peer, **shared)
            text = pipeline_text(results)
        elif benchmark == "step":
            results, text = _measure_step(recipe, FLAGS.precision, FLAGS.timed_steps, workers, **peer, **shared)
        else:
            results, text = _count_flops(recipe, FLAGS.precision)
    print(text)
    if FLAGS.output:
        Path(FLAGS.output).write_text(json.dumps(results, indent=2) + "\n")
    return 0


def _checked_word(words: list[str], given: Collection[str]) -> str:
    # The name of the benchmark; `given` are the flags that not all of them take.
    if len(words) != 1 or words[0] not in FLAGS_OF:
        received = " ".join(words) or "nothing"
        raise CommandError(f"expected the name of one benchmark, one of {', '.join(FLAGS_OF)}, received {received!r}")
    for name in sorted(set(given) - set(FLAGS_OF[words[0]])):
        takers = [benchmark for benchmark, names in FLAGS_OF.items() if name in names]
        plural = "s" if len(takers) > 1 else ""
        raise CommandError(f"--{name} is for the benchmark{plural} {', '.join(takers)}, received it with {words[0]}")
    if "shards" in given:
        for name in sorted({"input", "samples"} & set(given)):
            raise CommandError(f"--{name} is about photographs to make shards of; expected it, or --shards, not both")
    elif "split" in given:
        raise CommandError("--split names a split of --shards; expected both or none, received --split alone")
    return words[0]


def _checked_recipe(values: flags.FlagValues) -> recipes.PretrainRecipe:
    with commandline.user_mistakes():
        recipe = recipes.recipe_from_flags(recipes.PRETRAIN_RECIPES, values)
    if values["batch_size"].present:
        return recipe
    return dataclasses.replace(recipe, batch_size=STEP_BATCH)  # that of the recipe is for many machines


def _loading(batch_size: int | None, image_size: list[str] | None, batches: int | None, **described) -> Loading:
    # As flags hold them: a recipe's image_size may have two sides.
    sides = image_size or [str(LOADED_SIDE)]
    if len(sides) != 1 or not sides[0].isdecimal():
        received = ",".join(sides)
        raise CommandError(f"--image_size of the benchmark pipeline is one side in pixels, received {received!r}")
    batch_size = LOADED_BATCH if batch_size is None else batch_size
    if batches is None:
        batches = -(-COUNTED_IMAGES // max(batch_size, 1))
    return Loading(batch_size=batch_size, image_size=int(sides[0]), batches=batches, **described)


def _measure_step(
    recipe: recipes.PretrainRecipe, precision: str, timed_steps: int, threads: int, **options
) -> tuple[dict[str, Any], str]:
    from tools import benchmark_step  # loads Keras, which the other benchmarks do without
    from tools.step_contestants import Training

    results = benchmark_step.measure_step(Training(recipe, precision, timed_steps, threads), **options)
    return results, benchmark_step.step_text(results)


def _count_flops(recipe: recipes.PretrainRecipe, precision: str) -> tuple[dict[str, Any], str]:
    from tools import benchmark_flops

    results = benchmark_flops.count_flops(recipe, precision)
    return results, benchmark_flops.flops_text(results)


def _check_places(scratch: str | None, output: str | None) -> None:
    # Before minutes are spent.
    if scratch and not os.path.isdir(scratch):
        raise CommandError(f"--scratch={scratch} is no folder; expected one that exists, on the disk to measure on")
    if output and (os.path.isdir(output) or not os.path.isdir(os.path.dirname(output) or ".")):
        raise CommandError(f"--output={output} cannot be written; expected the name of a file in a folder that exists")


def entry_point() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # cleaned up as after Ctrl-C
    commandline.run(main, define_flags, takes_words=True)


if __name__ == "__main__":
    entry_point()
