"""The host engine: batches made by Python threads with native decoders, without TensorFlow.

`dataset.load` wraps them for TensorFlow; whoever trains with another library can iterate `batches` as it is.
"""

from collections.abc import Callable, Iterator

import numpy as np

from pipeline.augment_host import augmentation
from pipeline.host_batches import Batch, BatchMaker
from pipeline.host_plans import evaluation_rows, training_rows
from pipeline.host_reading import BlockLoader
from pipeline.host_views import central_crop, random_crop
from pipeline.load_options import LoadOptions
from pipeline.processors import available_processors
from pipeline.view_options import ViewOptions

View = Callable[[memoryview, np.ndarray, np.ndarray], None]


def batches(options: LoadOptions) -> Iterator[Batch]:
    """The batches that `pipeline.load` describes. Threads start with the first one and end with the iterator.

    Raises:
        ReadingError: a shard cannot be read, or is not what the manifest says.
        CorruptSampleError: more samples cannot be decoded than may be skipped.
    """
    loader = BlockLoader(options.shard_set, options.split, labels=options.labels, cache=options.cache)
    maker = BatchMaker(
        make_view(options),
        options.image_shape,
        dtype=options.dtype,
        seed=options.seed,
        noise=options.noise,
        stats=options.stats,
        num_threads=options.num_threads or available_processors(),
    )
    hosts = {"host": options.host, "num_hosts": options.num_hosts}
    if options.is_training:
        rows = training_rows(
            options.order, loader, batch_size=options.batch_size, start_step=options.start_step, **hosts
        )
    else:
        rows = evaluation_rows(options.order, loader, host_batch_size=options.host_batch_size, **hosts)
    return maker.batches(rows, options.host_batch_size)


def make_view(options: ViewOptions) -> View:
    """The function that makes one image: of the encoded image, its seed, and the image to fill."""
    if not options.is_training:
        return central_crop(
            options.image_size,
            channels=options.channels,
            dtype=options.dtype,
            resize_size=options.eval_resize_size,
        )
    view = random_crop(
        options.image_size,
        channels=options.channels,
        dtype=options.dtype,
        min_area=options.crop_min_area,
        flip=options.flip,
        clamped=options.view == "probe",
        fixed=options.fixed_crop,
    )
    if options.rand_augment is not None:
        view = _augmented(view, augmentation(options.rand_augment, "rand_augment"))
    if options.color_jitter is not None:
        view = _augmented(view, augmentation(options.color_jitter, "color_jitter"))
    return view


def _augmented(view: View, augment: Callable[[np.ndarray, np.ndarray], None]) -> View:
    def augmented(encoded: memoryview, seed: np.ndarray, out: np.ndarray) -> None:
        view(encoded, seed, out)
        augment(seed, out)

    return augmented
