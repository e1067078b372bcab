"""What a method sees of an image: a random crop to train on, the centre to evaluate on.

The random crop is RandomResizedCrop with the area shares of arXiv 2111.06377 (appendix A: .2 to 1 in
pre-training; .08 to 1 in fine-tuning) followed by a horizontal flip; evaluation resizes the short side and
takes the centre. Resizing is antialiased bicubic (a = -.5) as in Pillow, which the reference uses: one pass along each
axis, each rounded half up to 8 bits, in the order of Pillow 13. (`tf.image.resize` alone does not clip in between, and
differs by up to 30 levels at sharp edges. Before 13.0 Pillow always began with the width.) Wide images
(`crop_resize_wide`) are resized as Pillow does in mode "F": rounded and clipped at the end alone.

These are the views of the graph engine; `host_views` has the same ones without TensorFlow.

All randomness is a function of a sample's seed through stateless Philox draws, so a sample in an epoch gets
the same crop whatever its batch, and a resumed run sees what an uninterrupted one would have seen.

Boxes are (top, left, height, width) in pixels.
"""

import zlib

import tensorflow as tf

from pipeline.array_files import is_wide
from pipeline.crop_resize import CROP_TRIES, FixedCrop
from pipeline.decode import decode_crop, decode_image

CROP_RATIOS = (3 / 4, 4 / 3)


def sample_seed(seed: int, epoch, index):
    """The seed of everything random about one sample in one epoch.

    Args:
        seed: of the run.
        epoch: int64 scalar.
        index: int64 scalar, number of the sample in the split.

    Returns:
        int64 (2,).
    """
    run = tf.stack([tf.constant(seed, tf.int64), tf.cast(epoch, tf.int64)])
    return tf.random.experimental.stateless_fold_in(run, tf.cast(index, tf.int64), alg="philox")


def draw_uniform(seed, purpose: str, shape, dtype="float32"):
    """Uniform draws from [0, 1) for one purpose; different purposes of one sample are independent.

    Args:
        seed: int64 (2,), of the sample (`sample_seed`).
        purpose: any name, such as "crop".
        shape: of the result.
        dtype: "float32" or "float64".
    """
    tag = tf.constant(zlib.crc32(purpose.encode()), tf.int64)
    seed = tf.random.experimental.stateless_fold_in(seed, tag, alg="philox")
    return tf.random.stateless_uniform(shape, seed, dtype=dtype, alg="philox")


def random_crop_box(height, width, uniforms, min_area: float):
    """RandomResizedCrop's choice of a box, as torchvision makes it.

    Up to ten tries: a share of the area from U(min_area, 1), an aspect ratio log-uniform from 3/4 to 4/3; the
    first box that fits into the image is placed uniformly. If none fits, the central box of the allowed ratio
    nearest to the image's own.

    Args:
        height: of the image in pixels.
        width: of the image in pixels.
        uniforms: float64 (CROP_TRIES, 4), draws from [0, 1): per try area, ratio, top, left.
        min_area: lower bound of the area share.

    Returns:
        int32 (4,), the box.
    """
    image_height, image_width = tf.cast(height, tf.float64), tf.cast(width, tf.float64)
    h, w = _crop_sides(height, width, uniforms, min_area)  # (CROP_TRIES,)
    fits = (w > 0) & (w <= image_width) & (h > 0) & (h <= image_height)
    top = tf.floor(uniforms[:, 2] * (image_height - h + 1))
    left = tf.floor(uniforms[:, 3] * (image_width - w + 1))
    boxes = tf.cast(tf.stack([top, left, h, w], axis=1), tf.int32)  # (CROP_TRIES, 4)
    first = tf.argmax(tf.cast(fits, tf.int32))
    return tf.where(tf.reduce_any(fits), boxes[first], central_crop_box(height, width))


def clamped_crop_box(height, width, uniforms, min_area: float):
    """One try of RandomResizedCrop whose sides are cut to the image's: what the linear probe trains on.

    Arguments and result as for `random_crop_box`; uses the first 4 draws.
    """
    h, w = _crop_sides(height, width, uniforms[:1], min_area)
    image_height, image_width = tf.cast(height, tf.float64), tf.cast(width, tf.float64)
    h = tf.clip_by_value(h[0], 1.0, image_height)
    w = tf.clip_by_value(w[0], 1.0, image_width)
    top = tf.floor(uniforms[0, 2] * (image_height - h + 1))
    left = tf.floor(uniforms[0, 3] * (image_width - w + 1))
    return tf.cast(tf.stack([top, left, h, w]), tf.int32)


def fixed_crop_box(height, width, uniforms, fixed: FixedCrop):
    """The box of a `FixedCrop`; other arguments and result as for `random_crop_box`."""
    image_height, image_width = tf.cast(height, tf.float64), tf.cast(width, tf.float64)
    h = tf.maximum(tf.round(fixed.share * tf.minimum(image_height, image_width / fixed.aspect)), 1.0)
    w = tf.maximum(tf.round(fixed.share * tf.minimum(image_width, image_height * fixed.aspect)), 1.0)
    if fixed.centered:
        top, left = (image_height - h) // 2, (image_width - w) // 2
    else:
        top = tf.floor(uniforms[0, 2] * (image_height - h + 1))
        left = tf.floor(uniforms[0, 3] * (image_width - w + 1))
    return tf.cast(tf.stack([top, left, h, w]), tf.int32)


def _crop_sides(height, width, uniforms, min_area: float):
    # Height and width of a box for each try, rounded half to even, as Python rounds.
    pixels = tf.cast(height, tf.float64) * tf.cast(width, tf.float64)
    area = (min_area + (1.0 - min_area) * uniforms[:, 0]) * pixels  # (tries,)
    log_low, log_high = (tf.math.log(tf.constant(ratio, tf.float64)) for ratio in CROP_RATIOS)
    ratio = tf.exp(log_low + (log_high - log_low) * uniforms[:, 1])  # (tries,), width / height
    return tf.round(tf.sqrt(area / ratio)), tf.round(tf.sqrt(area * ratio))


def central_crop_box(height, width):
    """The largest central box whose ratio width / height is within 3/4 .. 4/3: int32 (4,)."""
    image_height, image_width = tf.cast(height, tf.float64), tf.cast(width, tf.float64)
    low, high = CROP_RATIOS
    h = tf.where(image_width / image_height < low, tf.round(image_width / low), image_height)
    w = tf.where(image_width / image_height > high, tf.round(image_height * high), image_width)
    top, left = (image_height - h) // 2, (image_width - w) // 2
    return tf.cast(tf.stack([top, left, h, w]), tf.int32)


def resize_bicubic(image, image_size):
    """Antialiased bicubic resize; an image that already has the size stays as it is.

    Args:
        image: uint8 or uint16 (H, W, C), C is known.
        image_size: (height, width) in pixels, integers or int32 (2,).

    Returns:
        (height, width, C), of the image's type.
    """
    image = tf.convert_to_tensor(image)
    if is_wide(image.shape[2], image.dtype.name):
        return _resize(image, image_size)
    shape = tf.shape(image)
    shrinkage = shape[:2] - tf.stack(image_size)
    # As Pillow 13 does, since the second pass then has less to do.
    vertical_first = (shrinkage[0] > 0) & (shrinkage[0] > 2 * shrinkage[1])
    return tf.cond(
        vertical_first,
        lambda: _resize_width(_resize_height(image, image_size[0]), image_size[1]),
        lambda: _resize_height(_resize_width(image, image_size[1]), image_size[0]),
    )


def _resize_width(image, width):
    shape = tf.shape(image)
    return tf.cond(
        tf.equal(shape[1], width),
        lambda: image,
        lambda: _resize(image[:, tf.newaxis], (1, width))[:, 0],  # (H, 1, W, C): a batch of rows
    )


def _resize_height(image, height):
    shape = tf.shape(image)
    rows = tf.reshape(image, [shape[0], 1, -1])  # (H, 1, W * C)
    return tf.cond(
        tf.equal(shape[0], height),
        lambda: image,
        lambda: tf.reshape(_resize(rows, (height, 1)), [height, shape[1], shape[2]]),
    )


def _resize(image, size):
    resized = tf.image.resize(image, size, method="bicubic", antialias=True)
    return tf.cast(tf.floor(tf.clip_by_value(resized, 0.0, image.dtype.max) + 0.5), image.dtype)


def random_view(
    encoded, seed, image_size, *, channels=3, dtype="uint8", min_area=0.2, flip=True, clamped=False, fixed=None
):
    """What training sees: a random resized crop, flipped half of the times.

    Args:
        encoded: string scalar, a JPEG, PNG, WebP or array.
        seed: int64 (2,), of the sample in this epoch (`sample_seed`).
        image_size: (height, width) of the result in pixels.
        channels, dtype: as for `decode.decode_image`.
        min_area: lower bound of the crop's share of the image's area.
        flip: whether to flip horizontally with probability .5.
        clamped: whether the box is `clamped_crop_box`'s, as in the linear probe, instead of `random_crop_box`'s.
        fixed: a `FixedCrop` instead; None: a random resized crop.

    Returns:
        (height, width, channels) of `dtype`.
    """
    uniforms = draw_uniform(seed, "crop", (CROP_TRIES, 4), "float64")

    def choose_box(height, width):
        if fixed is not None:
            return fixed_crop_box(height, width, uniforms, fixed)
        return (clamped_crop_box if clamped else random_crop_box)(height, width, uniforms, min_area)

    image = decode_crop(encoded, choose_box, channels, dtype)
    image = resize_bicubic(image, image_size)
    if flip:
        image = tf.cond(draw_uniform(seed, "flip", ()) < 0.5, lambda: image[:, ::-1], lambda: image)
    return tf.ensure_shape(image, (*image_size, channels))


def eval_view(encoded, image_size, resize_size: int, *, channels=3, dtype="uint8"):
    """What evaluation sees: the centre of the image.

    A square view is torchvision's Resize(resize_size) and CenterCrop: the image's short side is resized to
    `resize_size`. For a view that is not square, `resize_size` belongs to the view's short side, and the
    image is resized so that it just covers the view enlarged by that factor.

    Args:
        encoded: string scalar, a JPEG, PNG, WebP or array.
        image_size: (height, width) of the result in pixels.
        resize_size: pixels, at least the short side of `image_size`.
        channels, dtype: as for `decode.decode_image`.

    Returns:
        (height, width, channels) of `dtype`.
    """
    image = decode_image(encoded, channels, dtype)
    shape = tf.shape(image)[:2]
    image = resize_bicubic(image, covering_size(shape[0], shape[1], image_size, resize_size))
    margin = tf.cast(tf.shape(image)[:2] - tf.constant(image_size), tf.float64)
    top, left = tf.unstack(tf.cast(tf.round(margin / 2), tf.int32))  # half to even, as torchvision
    return tf.ensure_shape(tf.slice(image, [top, left, 0], [*image_size, channels]), (*image_size, channels))


def covering_size(height, width, image_size, resize_size: int):
    """The size to which `eval_view` resizes an image of (height, width): int32 (2,).

    One side becomes the enlarged view's, exactly; the other keeps the aspect ratio, rounded down.
    """
    short = min(image_size)
    target_height, target_width = (-(-side * resize_size // short) for side in image_size)
    h, w = tf.cast(height, tf.int64), tf.cast(width, tf.int64)
    fit_height = tf.stack([tf.constant(target_height, tf.int64), target_height * w // h])
    fit_width = tf.stack([target_width * h // w, tf.constant(target_width, tf.int64)])
    return tf.cast(tf.where(h * target_width <= w * target_height, fit_height, fit_width), tf.int32)
