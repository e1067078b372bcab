"""Makes a shard set, tars in WebDataset format and a manifest, from images wherever they are.

  python -m tools.make_shards --input=IMAGES --output=SHARDS

IMAGES holds a folder of JPEG, PNG or WebP files for each class, or the files themselves (then without labels). Instead
of such pictures they can be arrays: .npy files of uint8 or uint16, (H, W) or (H, W, channels).
Other sources:

  --source=imagenet --train_tar=ILSVRC2012_img_train.tar --val_tar=ILSVRC2012_img_val.tar \\
                    --devkit=ILSVRC2012_devkit_t12.tar.gz
  --source=list --input=LIST.jsonl         (or .csv, .tsv, .parquet: a row an image)
  --source=webdataset --input=TARS         (shards them anew; with --in_place only an index and a manifest are added)
  --source=inaturalist --input=IMAGES --annotations=train2019.json
  --source=places --input=IMAGES --file_list=places365_train_standard.txt --categories=categories_places365.txt

Images are stored as they are, in a shuffled order; --resize_short_side, --encoder and --quality make them smaller.
Another split is added by running it again with --split=val, or made in the same run with --val_fraction. The same
images, options and seed give the same bytes, whatever the number of workers. A run that was interrupted, killed or
stopped by an error goes on where it was when it is run again. A finished split is never overwritten.
docs/shards.md tells more.
"""

import dataclasses
from collections.abc import Sequence

from absl import flags

from keras_mae import commandline
from keras_mae.commandline import CommandError
from pipeline.locations import SourceError
from pipeline.manifest import ManifestError
from tools import shard_flags, worker_pool
from tools.beam_engine import beam_engine
from tools.index_in_place import index_in_place
from tools.shard_flags import SourceChoice
from tools.shard_plan import ShardOptions
from tools.sharding import make_shards, scan

FLAGS = flags.FLAGS
# Flags of the run that --in_place has no use for.
RUN_FLAGS = ("on_error", "restart", "engine")


def define_flags() -> None:
    """Defines the command's flags; not at import, because other commands have flags of the same names."""
    shard_flags.define_source_flags("Folder, list file, or tars; path or URL.")
    flags.DEFINE_string("output", None, "Folder of the shard set, or its URL; made if missing, added to otherwise.")
    shard_flags.define_shard_flags()
    flags.DEFINE_bool("in_place", False, "webdataset: index the tars where they are, and write them a manifest.")
    flags.DEFINE_enum(
        "on_error", "fail", ["fail", "skip"], "skip: leave images that cannot be used out, and list them."
    )
    flags.DEFINE_enum(
        "engine", "local", ["local", "beam"], "beam: an Apache Beam pipeline; its own options follow after --."
    )
    flags.DEFINE_integer("workers", None, "Processes; default: one for each core. Never changes the bytes.")
    flags.DEFINE_bool("restart", False, "Delete the shards of an unfinished run instead of going on with them.")


def main(argv: list[str]) -> int:
    if FLAGS.engine == "local":
        commandline.refuse_words(argv)
    with commandline.user_mistakes(ManifestError, SourceError):
        options = shard_flags.read_shard_options(FLAGS)
        choice = SourceChoice(**shard_flags.read_flags(SourceChoice, FLAGS))
        sources = choice.open(options.split)
        given = [name for name in (*RUN_FLAGS, "output", "split", "val_split") if FLAGS[name].present]
        _check_combination(choice.source, len(sources), options, given, FLAGS.in_place)
        if FLAGS.in_place:
            index_in_place(choice.input, options.split, classes=choice.read_classes(), workers=FLAGS.workers)
            return 0
        if not FLAGS.output:
            raise CommandError("--output=FOLDER is missing; see --help")
        worker_pool.checked_workers(FLAGS.workers)
        engine = beam_engine(FLAGS.output, argv[1:]) if FLAGS.engine == "beam" else None
        # All are listed before the first one is written: what is wrong with the last one shows at once.
        listings = {split: scan(source) for split, source in sources.items()}
        for split, source in sources.items():
            make_shards(
                source,
                FLAGS.output,
                dataclasses.replace(options, split=split),
                workers=FLAGS.workers,
                on_error=FLAGS.on_error,
                restart=FLAGS.restart,
                engine=engine,
                listing=listings[split],
            )
    return 0


def _check_combination(
    source: str, num_sources: int, options: ShardOptions, given: Sequence[str], in_place: bool
) -> None:
    # `given`: which of some flags are on the command line.
    if source == "imagenet" and "split" in given:
        raise CommandError("--source=imagenet makes the splits train and val; leave --split out")
    if num_sources > 1 and options.val_fraction is not None:
        raise CommandError("--val_fraction makes a split of its own; leave it out, or leave --val_tar out")
    if "val_split" in given and options.val_fraction is None:
        raise CommandError("--val_split names the split that --val_fraction makes; add that, or leave it out")
    if not in_place:
        return
    if source != "webdataset":
        raise CommandError(f"--in_place is for --source=webdataset, received --source={source}")
    if "output" in given:
        raise CommandError("--in_place writes beside the tars; leave --output out")
    unread = [name for name in RUN_FLAGS if name in given]
    if unread or options != ShardOptions(split=options.split):
        what = f"--{unread[0]}" if unread else "options for tars and images"
        raise CommandError(f"--in_place leaves tars as they are; leave {what} out (only --split and --classes fit)")


def entry_point() -> None:
    commandline.run(main, define_flags, takes_words=True)


if __name__ == "__main__":
    entry_point()
