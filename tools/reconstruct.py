"""Draws what a pre-trained model makes of images it sees a quarter of: original | masked | reconstruction.

  python -m tools.reconstruct --run_dir=runs/base --data=SHARDS --output=reconstructions.png
  python -m tools.reconstruct --run_dir=runs/base --images=a.jpg,b.png --mask_ratios=.5,.75,.9
  python -m tools.reconstruct --model=converted/base --images=a.jpg,b.png

Works on a run that is still training too: it takes the newest checkpoint. With several ratios it shows them side by
side, like Figure 4 of the paper: the same weights, and the same noise for each mask, so that random masks of a higher
ratio remove what those of a lower one do, and more. Of images with more channels than RGB the
first three are shown as red, green and blue; of two the first, as grey. Of 16-bit images the brightest visible value of
all originals is white.
"""

import pathlib
from collections.abc import Sequence

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


def open_model(path):
    """The masked autoencoder of an export or converted folder, or of a `.keras` file.

    Raises:
        ValueError: there is no model, or one without a decoder.
    """
    from keras_mae.models import MaskedAutoencoder
    from keras_mae.training.saved_model import load_model

    folders = (pathlib.Path(path), pathlib.Path(path, "export"))
    whole = [folder / "mae.keras" for folder in folders if (folder / "mae.keras").is_file()]
    model = load_model(whole[0] if whole else path)
    if not isinstance(model, MaskedAutoencoder):
        raise ValueError(f"{path} holds no masked autoencoder but a {type(model).__name__}, which has no decoder.")
    return model


def with_mask_ratio(model, mask_ratio):
    """The same masked autoencoder, which removes another share of the patches.

    Raises:
        ValueError: its masks cannot be of this ratio.
    """
    from keras_mae.training.saved_model import copy_weights

    if mask_ratio == model.mask_ratio:
        return model
    copy = type(model).from_config({**model.get_config(), "mask_ratio": mask_ratio})
    copy.build()
    copy_weights(model, copy)
    return copy


def make_panels(models: Sequence, images: np.ndarray, seed: int = 0) -> list[tuple[str, np.ndarray]]:
    """What the figure shows of the images: (title, images) each, the originals first.

    Args:
        models: a `MaskedAutoencoder` for each mask ratio.
        images: uint8 or uint16 (count, height, width, channels).
        seed: of the masks.
    """
    panels = [("original", images)]
    for model in models:
        noise = np.random.default_rng(seed).random((len(images), model.num_draws), dtype="float32")
        masked, reconstruction = (np.asarray(x) for x in model.reconstruct({"image": images, "noise": noise}))
        panels += [(f"masked {100 * model.mask_ratio:.4g}%", masked), ("reconstruction", reconstruction)]
    return panels


def draw(panels: Sequence[tuple[str, np.ndarray]], note: str, path) -> None:
    """Writes the figure: of one ratio the images side by side, of several an image a row.

    Args:
        panels: of `make_panels`.
        note: written below.
        path: of the PNG (or whatever matplotlib knows by its ending).
    """
    from matplotlib.figure import Figure

    place = _rows_of_images if len(panels) > 3 else _blocks_of_images
    figure = Figure()
    axes = place(figure, [title for title, _ in panels], len(panels[0][1]))
    shares = [visible_channels(images) / np.iinfo(images.dtype).max for _, images in panels]
    white = 1.0 if panels[0][1].dtype == np.uint8 else max(shares[0].max(), 1 / 65535)
    for row, pictures in zip(axes, shares, strict=True):
        for axis, picture in zip(row, pictures, strict=True):
            axis.imshow(np.minimum(picture / white, 1).squeeze(), cmap="gray", vmin=0, vmax=1)
    figure.text(0.5, 0.01, note, ha="center", va="bottom", fontsize=7)
    figure.tight_layout(rect=(0.02, 0.05, 1, 1))
    figure.savefig(path, dpi=130)


def _rows_of_images(figure, titles, count):
    """Axes (panels, images): an image a row, titles above."""
    figure.set_size_inches(max(1.5 * len(titles) + 0.4, 7), 1.6 * count + 0.9)
    axes = figure.subplots(count, len(titles), squeeze=False).T
    for title, row in zip(titles, axes, strict=True):
        row[0].set_title(title, fontsize=10)
    _hide(axes)
    return axes


def _blocks_of_images(figure, titles, count):
    """Axes (panels, images): up to eight images side by side, and so many rows for each such block; titles before."""
    blocks = -(-count // 8)
    columns = -(-count // blocks)
    figure.set_size_inches(1.5 * columns + 1, 4.6 * blocks + 0.6)
    axes = figure.subplots(len(titles) * blocks, columns, squeeze=False)
    _hide(axes)
    for row, title in enumerate(blocks * list(titles)):
        text = {"rotation": 90, "va": "center", "ha": "right", "transform": axes[row, 0].transAxes}
        axes[row, 0].text(-0.08, 0.5, title, **text)
    axes = axes.reshape(blocks, len(titles), columns).swapaxes(0, 1)
    return axes.reshape(len(titles), -1)[:, :count]


def _hide(axes):
    for axis in axes.flat:
        axis.set_axis_off()


def read_ratios(words: Sequence[str], model) -> list[float]:
    """The numbers of --mask_ratios; without words the model's own.

    Raises:
        ValueError: one is no number.
    """
    try:
        return [float(word) for word in words or [model.mask_ratio]]
    except ValueError:
        raise ValueError(f"mask_ratios takes numbers such as .5,.75,.9. Received: {','.join(words)!r}") from None


def main(argv):
    from keras_mae.training.data_errors import DataError, named_data_errors
    from keras_mae.training.run_dir import description_above

    with commandline.user_mistakes(ValueError, DataError), named_data_errors():
        if bool(FLAGS.images) == (FLAGS.data is not None):
            raise ValueError("Give either --images=FILE,FILE or --data=SHARDS.")
        if (FLAGS.run_dir is None) == (FLAGS.model is None):
            raise ValueError("Give either --run_dir=RUN of keras_mae.pretrain or --model=PATH.")
        if pathlib.Path(FLAGS.output).suffix not in FIGURE_FORMATS:
            raise ValueError(f"--output must end in {', '.join(FIGURE_FORMATS)}. Received: {FLAGS.output}")
        model = load_run(FLAGS.run_dir) if FLAGS.run_dir else open_model(FLAGS.model)
        models = [with_mask_ratio(model, ratio) for ratio in read_ratios(FLAGS.mask_ratios, model)]
        encoder, description = model.encoder, description_above(pathlib.Path(FLAGS.run_dir or FLAGS.model))
        run_resize_size = description["recipe"]["resize_size"] if description else None
        resize_size = FLAGS.resize_size or run_resize_size or default_resize_size(encoder.image_size)
        if resize_size < min(encoder.image_size):
            raise ValueError(f"--resize_size must be at least {min(encoder.image_size)}. Received: {resize_size}")
        if FLAGS.images:
            images = read_images(FLAGS.images, encoder.image_size, encoder.channels, resize_size)
        else:
            images = read_split(FLAGS.data, FLAGS.split, FLAGS.count, encoder.image_size, encoder.channels, resize_size)
        panels = make_panels(models, images, FLAGS.seed)
    note = NORMALIZED_NOTE if getattr(model.target, "normalize", False) else PLAIN_NOTE
    draw(panels, note, FLAGS.output)
    print(f"{FLAGS.output}: {len(images)} images")
    return 0


def define_flags():
    flags.DEFINE_string("run_dir", None, "Run folder of keras_mae.pretrain.")
    flags.DEFINE_string(
        "model", None, "Instead of --run_dir: folder with mae.keras, as tools.convert_weights writes it."
    )
    flags.DEFINE_list("mask_ratios", [], "Shares of the patches to remove, such as .5,.75,.9; unset: the model's own.")
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
