"""Fits a PCA to the patches of a shard set, for pre-training with its coefficients as target (Table 1d).

  python -m tools.fit_pca --data=SHARDS --output=pca.npz [--max_images=20000]

Reads the images once, normalises them and cuts them into patches as the encoder does, and writes the mean patch and the
first components. Give --image_size, --patch_size, --channels, --pixel_mean and --pixel_std as in the recipe. An
interrupted run begins anew (so give --max_images, of which 20,000 are plenty); the file is whole or not there.
"""

import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from absl import flags

from keras_mae import commandline
from keras_mae.commandline import CommandError
from keras_mae.models.pca_file import PatchPCA, read_pca
from keras_mae.models.vit import IMAGENET_MEAN, IMAGENET_STD, VisionTransformer
from keras_mae.training.data_errors import DataError
from pipeline.atomic import open_atomically
from tools.shard_images import check_output, define_image_flags, numbers, open_images
from tools.streaming_moments import Moments

FLAGS = flags.FLAGS

STRUCTURE = ("patch_size", "channels", "pixel_mean", "pixel_std")


def patch_moments(batches: Iterable[np.ndarray], encoder: VisionTransformer) -> Moments:
    """Mean and covariance of all patches of some images, as the encoder sees them.

    Args:
        batches: arrays (images, height, width, channels).
        encoder: normalises and cuts; it needs no weights for that.
    """
    values = encoder.patch_size**2 * encoder.channels
    moments = Moments.of_none(values)
    for images in batches:
        patches = np.asarray(encoder.normalized_patches(images))  # (B, N, P*P*C)
        moments = moments.merged(Moments.of(patches.reshape(-1, values)))
    return moments


def principal_components(moments: Moments, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The directions of largest variance.

    Args:
        moments: of the rows.
        count: how many directions.

    Returns:
        components (count, values), orthonormal rows by falling variance, the largest number of each above 0 (a sign
        must be chosen); and their variances (count,). Both float64.
    """
    variances, directions = np.linalg.eigh(moments.covariance)  # ascending; directions are columns
    components = directions.T[::-1][:count]
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, np.newaxis], axis=1)
    return components * np.sign(largest), np.maximum(variances[::-1][:count], 0)


def fit_pca(
    batches: Iterable[np.ndarray], encoder: VisionTransformer, num_components: int, source: dict[str, Any]
) -> PatchPCA:
    """Fits the PCA of the patches of some images.

    Args:
        batches: arrays (images, height, width, channels).
        encoder: normalises and cuts; it needs no weights for that.
        num_components: coefficients to keep.
        source: what the images are, for the record; JSON. The number of images is added.

    Raises:
        CommandError: there are no more patches than components.
    """
    moments = patch_moments(batches, encoder)
    if moments.count <= num_components:
        raise CommandError(
            f"{num_components} components need more patches than that. Received: {moments.count} patches; "
            "read more images, or lower --num_components"
        )
    components, variances = principal_components(moments, num_components)
    return PatchPCA(
        mean=moments.mean.astype("float32"),
        components=components.astype("float32"),
        explained_variance=variances,
        total_variance=float(np.trace(moments.covariance)),
        patch_size=encoder.patch_size,
        channels=encoder.channels,
        pixel_mean=encoder.pixel_mean,
        pixel_std=encoder.pixel_std,
        source={**source, "images": moments.count // encoder.num_patches},
    )


def finished(
    path: pathlib.Path, encoder: VisionTransformer, num_components: int, source: dict[str, Any]
) -> PatchPCA | None:
    """The PCA of an earlier run with the same values, or None where there is no file.

    Raises:
        CommandError: the file is something else, or of other values.
    """
    if not path.exists():
        return None
    with commandline.user_mistakes():
        pca = read_pca(path)
    wanted = {"num_components": num_components, **{name: getattr(encoder, name) for name in STRUCTURE}, **source}
    found = {"num_components": pca.num_components, **{name: getattr(pca, name) for name in STRUCTURE}, **pca.source}
    for name, value in wanted.items():
        if found.get(name) != value:
            raise CommandError(
                f"{path} exists and was fitted with {name}={found.get(name)}, received {value}; "
                "give another --output, or remove the file"
            )
    return pca


def summary(pca: PatchPCA) -> str:
    """How much of the variance the first 1, 2, 4, ... coefficients explain, in one line each."""
    steps = [2**i for i in range(pca.num_components.bit_length()) if 2**i < pca.num_components]
    shares = [f"{count:6d}  {100 * pca.explained_shares[count - 1]:6.2f}%" for count in (*steps, pca.num_components)]
    head = f"{pca.source['images']} images, patches of {pca.patch_size}x{pca.patch_size}x{pca.channels} values"
    return "\n".join((head, "coefficients explain, of the variance", *shares))


def main(argv: list[str]) -> int:
    output = pathlib.Path(FLAGS.output)
    check_output(output, ".npz")
    with commandline.user_mistakes():
        images = open_images(FLAGS)
        encoder = VisionTransformer(
            image_size=images.image_size,
            patch_size=FLAGS.patch_size,
            channels=FLAGS.channels,
            pixel_mean=numbers("pixel_mean", FLAGS.pixel_mean, float),
            pixel_std=numbers("pixel_std", FLAGS.pixel_std, float),
            depth=0,  # only its patches are used
        )
    values = encoder.patch_size**2 * encoder.channels
    if FLAGS.num_components > values:
        raise CommandError(
            f"--num_components must be at most {values}, the numbers in a patch, received {FLAGS.num_components}"
        )
    source = images.describe()
    pca = finished(output, encoder, FLAGS.num_components, source)
    if pca is None:
        with commandline.user_mistakes(DataError):
            pca = fit_pca(images, encoder, FLAGS.num_components, source)
        with open_atomically(output) as file:
            pca.write(file)
    else:
        print(f"{output} is finished already")
    print(summary(pca))
    return 0


def define_flags() -> None:
    """Defines the command's flags; not at import, because other commands have flags of the same names."""
    define_image_flags()
    flags.DEFINE_string("output", None, "File for the PCA, .npz.", required=True)
    flags.DEFINE_integer("num_components", 96, "Coefficients to keep; the paper has 96.", lower_bound=1)
    flags.DEFINE_integer("patch_size", 16, "Side of a patch in pixels.", lower_bound=1)
    flags.DEFINE_list("pixel_mean", [str(v) for v in IMAGENET_MEAN], "Per channel on the scale 0..1, or one for all.")
    flags.DEFINE_list("pixel_std", [str(v) for v in IMAGENET_STD], "Per channel on the scale 0..1, or one for all.")


def entry_point() -> None:
    commandline.run(main, define_flags)


if __name__ == "__main__":
    entry_point()
