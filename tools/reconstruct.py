"""Draws what a pre-trained model makes of images it sees a quarter of: original | masked | reconstruction.

  python -m tools.reconstruct --run_dir=runs/base --data=SHARDS --output=reconstructions.png
  python -m tools.reconstruct --run_dir=runs/base --images=a.jpg,b.png --output=reconstructions.png

Works on a run that is still training too: it takes the newest checkpoint. Of images with more channels than RGB the
first three are shown as red, green and blue; of two the first, as grey. Of 16-bit images the brightest visible value of
all originals is white.
"""

import pathlib

import numpy as np
from absl import flags

import pipeline
from keras_mae import commandline
from keras_mae.pretrain import load_run
from pipeline.array_files import is_array, only_arrays_have, read_array_header
from pipeline.view_options import default_resize_size
from tools.array_pictures import visible_channels

FLAGS = flags.FLAGS

NORMALIZED_NOTE = (
    "This model predicts pixels normalised by their own patch. Here each removed patch is de-normalised with the mean\n"
    "and deviation of the true patch, which the model does not know: the figure shows its structure, not its colours."
)
FIGURE_FORMATS = (".png", ".pdf", ".svg", ".jpg")
PLAIN_NOTE = "This model predicts plain pixels: nothing of a removed patch is taken from the original."


def read_images(paths, image_size, channels, resize_size):
    """Image files as the evaluation view sees them: (count, height, width, channels), uint8 or as their arrays are.

    Raises:
        ValueError: a file is missing or is no image of so many channels, or of another type than the others; names it.
    """
    import tensorflow as tf

    from pipeline.views import eval_view

    images = []
    for path in paths:
        if not pathlib.Path(path).is_file():
            raise ValueError(f"There is no file {path}.")
        encoded = pathlib.Path(path).read_bytes()
        dtype = _dtype(path, encoded, channels)
        try:
            image = eval_view(tf.constant(encoded), image_size, resize_size, channels=channels, dtype=dtype)
        except tf.errors.InvalidArgumentError:
            raise ValueError(f"{path} is not a JPEG, PNG or WebP image.") from None
        images.append(image.numpy())
        if images[-1].dtype != images[0].dtype:
            raise ValueError(f"--images must be of one type. Received: {path} of {dtype}, others of {images[0].dtype}")
    return np.stack(images)


def _dtype(path, encoded, channels):
    # Type of an image file for a model of so many channels.
    if not is_array(encoded):
        if only_arrays_have(channels, "uint8"):
            raise ValueError(
                f"The model takes images of {channels} channels, which only arrays (.npy) have: not {path}."
            )
        return "uint8"
    try:
        kind = read_array_header(encoded).kind
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}") from None
    if kind.channels != channels:
        raise ValueError(f"The model takes images of {channels} channels. Received: {path}, {kind}")
    return kind.dtype


def read_split(shards, split, count, image_size, channels, resize_size=None):
    """The first images of a split: uint8 or uint16 (count, height, width, channels)."""
    shard_set = pipeline.load_manifest(shards)
    split = shard_set.split(split or ("val" if "val" in shard_set.splits else None))
    batch = next(
        iter(
            pipeline.load(
                shard_set,
                split=split.name,
                view="eval",
                batch_size=min(count, split.samples),
                image_size=image_size,
                channels=channels,
                resize_size=resize_size,
            )
        )
    )
    return batch[0]["image"].numpy()


def draw(model, images, path, seed=0):
    """Writes the figure.

    Args:
        model: a `MaskedAutoencoder`.
        images: uint8 or uint16 (count, height, width, channels).
        path: of the PNG (or whatever matplotlib knows by its ending).
        seed: of the masks.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    noise = np.random.default_rng(seed).random((len(images), model.num_draws), dtype="float32")
    masked, reconstruction = (np.asarray(x) for x in model.reconstruct({"image": images, "noise": noise}))
    blocks = -(-len(images) // 8)  # up to eight images side by side, three rows for each such group
    columns = -(-len(images) // blocks)
    figure, axes = pyplot.subplots(3 * blocks, columns, figsize=(1.5 * columns + 1, 4.6 * blocks + 0.6), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    shares = [visible_channels(x) / np.iinfo(x.dtype).max for x in (images, masked, reconstruction)]
    white = 1.0 if images.dtype == np.uint8 else max(shares[0].max(), 1 / 65535)
    for i, pictures in enumerate(zip(*shares, strict=True)):
        block, column = divmod(i, columns)
        for row, picture in enumerate(pictures):
            axes[3 * block + row, column].imshow(np.minimum(picture / white, 1).squeeze(), cmap="gray", vmin=0, vmax=1)
    names = ("original", f"masked {model.mask_ratio:.0%}", "reconstruction")
    for row in range(3 * blocks):
        axes[row, 0].text(
            -0.08, 0.5, names[row % 3], rotation=90, va="center", ha="right", transform=axes[row, 0].transAxes
        )
    figure.text(
        0.5,
        0.01,
        NORMALIZED_NOTE if getattr(model.target, "normalize", False) else PLAIN_NOTE,
        ha="center",
        va="bottom",
        fontsize=7,
    )
    figure.tight_layout(rect=(0.02, 0.05, 1, 1))
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main(argv):
    from keras_mae.training.data_errors import DataError, named_data_errors
    from keras_mae.training.run_dir import read_description

    with commandline.user_mistakes(ValueError, DataError), named_data_errors():
        if bool(FLAGS.images) == (FLAGS.data is not None):
            raise ValueError("Give either --images=FILE,FILE or --data=SHARDS.")
        if pathlib.Path(FLAGS.output).suffix not in FIGURE_FORMATS:
            raise ValueError(f"--output must end in {', '.join(FIGURE_FORMATS)}. Received: {FLAGS.output}")
        model = load_run(FLAGS.run_dir)
        encoder = model.encoder
        run_resize_size = read_description(pathlib.Path(FLAGS.run_dir))["recipe"]["resize_size"]
        resize_size = FLAGS.resize_size or run_resize_size or default_resize_size(encoder.image_size)
        if resize_size < min(encoder.image_size):
            raise ValueError(f"--resize_size must be at least {min(encoder.image_size)}. Received: {resize_size}")
        if FLAGS.images:
            images = read_images(FLAGS.images, encoder.image_size, encoder.channels, resize_size)
        else:
            images = read_split(FLAGS.data, FLAGS.split, FLAGS.count, encoder.image_size, encoder.channels, resize_size)
    draw(model, images, FLAGS.output, FLAGS.seed)
    print(f"{FLAGS.output}: {len(images)} images")
    return 0


def define_flags():
    flags.DEFINE_string("run_dir", None, "Run folder of keras_mae.pretrain.", required=True)
    flags.DEFINE_list("images", None, "Image files, separated by commas.")
    flags.DEFINE_string("data", None, "Folder of a shard set.")
    flags.DEFINE_string("split", None, "Split of the shard set; unset: val, or the only one.")
    flags.DEFINE_integer("count", 8, "Images of the shard set to draw.", lower_bound=1)
    flags.DEFINE_integer("resize_size", None, "Short side before the centre crop; unset: the run's.")
    flags.DEFINE_integer("seed", 0, "Of the masks.", lower_bound=0)
    flags.DEFINE_string("output", "reconstructions.png", "File of the figure.")


def entry_point():
    commandline.run(main, define_flags)


if __name__ == "__main__":
    entry_point()
